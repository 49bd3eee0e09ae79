"""Image classifiers: accuracy, the right class among the five most likely, and which classes are confused."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from subquad.data import DataError
from subquad.data.images import EvaluationImages, ImageData, open_images
from subquad.evaluation.accuracy import AccuracyResult, confusion_matrix, score_batch, total_scores
from subquad.evaluation.runs import Run

TOP = 5


@dataclass(frozen=True, eq=False)
class ImageResult(AccuracyResult):
    """How well a model names the classes of images.

    Args:
        nll: Negative log-likelihood of all right classes in nats.
        confusion: (classes, classes) int64: how many images of a class, the row, were taken for another, the column.
        classes: Names of the classes.
        top5: Number of images whose class is among the five most likely.
    """

    task: ClassVar[str] = "image-classification"
    example: ClassVar[str] = "image"
    top5: int

    @property
    def top5_accuracy(self) -> float | None:
        """Share of images whose class is among the five most likely; None where there are no more classes."""
        return self.top5 / self.examples if len(self.classes) > TOP else None

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return super().to_dict() | ({} if self.top5_accuracy is None else {"top5_accuracy": self.top5_accuracy})

    def table(self) -> list[list[str]]:
        """Rows of what is measured, its value, and what it is taken over, for the terminal."""
        accuracy, loss = super().table()
        if self.top5_accuracy is None:
            return [accuracy, loss]
        of_all = f"{self.top5:,} of {self.examples:,} images"
        return [accuracy, ["accuracy in five answers", f"{self.top5_accuracy:.2%}", of_all], loss]


def evaluate_images(
    model: PreTrainedModel,
    images: EvaluationImages,
    *,
    layout: str,
    batch_size: int,
    num_workers: int = 0,
    progress: bool = True,
) -> ImageResult:
    """Classify every image.

    Args:
        model: A classifier; its mode (training or not) is left as it was.
        images: A split, as evaluation sees it.
        layout: "patches" or "pixels"; see `model_inputs`.
        batch_size: Images in a batch.
        num_workers: Processes that read images; 0: none but this one.
        progress: Show a progress bar on a terminal.

    Raises:
        ValueError: There is no image, or the loss is not finite.
    """
    loader = DataLoader(images, batch_size=batch_size, collate_fn=images.collate, num_workers=num_workers)
    sums = total_scores(
        model,
        (model_inputs(batch, layout) for batch in loader),
        partial(score_batch, top=TOP, confusion=True),
        len(images),
        progress=progress,
        what="images",
    )
    return ImageResult(sums[0].item(), confusion_matrix(sums[2:]), images.data.classes, int(sums[1]))


def model_inputs(batch: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """A batch of images as a model takes it.

    Args:
        batch: `pixel_values` (batch, channels, height, width) and `labels`.
        layout: "patches": as they are; "pixels": `input_values` (batch, height · width, channels), row after row.
    """
    if layout == "patches":
        return batch
    return {"input_values": batch["pixel_values"].flatten(2).mT.contiguous(), "labels": batch["labels"]}


def evaluate_image_run(
    run: Run,
    data: str | Path | None = None,
    split: str = "test",
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> tuple[ImageResult, ImageData]:
    """Evaluate a run of the task "image-classification"; returns the figures, and the data.

    Args:
        run: The run.
        data: Folder of images with the classes of the run; default: that of the recipe.
        split: "train", "valid" or "test".
        device: Where to compute; default: a GPU where there is one.
        progress: Show a progress bar.

    Raises:
        DataError: The recipe is missing or damaged, or the classes are not those of the run.
    """
    section, training = run.recipe.get("data"), run.recipe.get("training")
    if not isinstance(section, dict) or not isinstance(size := section.get("image_size"), int):
        raise DataError(f"{run.folder}: its data is not known (no recipe.yaml)")
    source = section.get("source") if data is None else data
    held_out = section.get("valid_fraction", 0.0)
    opened = open_images(str(source), valid_fraction=held_out if isinstance(held_out, int | float) else 0.0)
    opened = as_in_training(opened, run)
    model = run.load_model(device)
    check_classes(model.config, opened, str(run.folder))
    workers = training.get("num_workers") if isinstance(training, dict) else 0
    result = evaluate_images(
        model,
        EvaluationImages(opened, split, size),
        layout=section.get("layout", "patches"),
        batch_size=run.device_batch_size,
        num_workers=workers if isinstance(workers, int) else 0,
        progress=progress,
    )
    return result, opened


def check_classes(config: Any, opened: ImageData, folder: str) -> None:
    """Hold that images have the classes of the model in a run folder.

    Raises:
        DataError: They have others.
    """
    names = tuple(config.id2label[label] for label in range(config.num_labels))
    # Published checkpoints have numbers alone, those of the classes in alphabetical order.
    numbers = tuple(f"LABEL_{label}" for label in range(len(opened.classes)))
    if names not in (opened.classes, numbers):
        raise DataError(
            f"{opened.name}: other classes ({_some(opened.classes)}) than {folder} was trained on ({_some(names)})"
        )


def as_in_training(opened: ImageData, run: Run) -> ImageData:
    """The images with the mean and standard deviation that the inputs of a run were normalised with.

    Raises:
        DataError: The run was trained on images of other channels.
    """
    record = run.info.get("data")
    known = {name: record[name] for name in ("mean", "std") if name in record} if isinstance(record, dict) else {}
    for name, values in known.items():
        if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
            raise DataError(f"{run.folder / 'run.json'}: data.{name} must be a list of numbers, got {values!r}")
        if len(values) != opened.num_channels:
            raise DataError(
                f"{opened.name}: images of {opened.num_channels} channels, those of {run.folder} have {len(values)}"
            )
    return dataclasses.replace(opened, **{name: tuple(values) for name, values in known.items()})


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" … {len(names)} in all" if len(names) > 3 else "")
