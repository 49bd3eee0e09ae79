"""GLUE: the official metrics of a finetuned model, of whole splits, and the table of papers."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from subquad.data import DataError
from subquad.data.glue import GLUE_TASKS, GlueExamples, GlueSource, collate_examples, glue_task, open_glue
from subquad.evaluation.confusion import count_confusions
from subquad.evaluation.metrics import accuracy, f1, matthews_correlation, pearson_correlation, spearman_correlation
from subquad.evaluation.runs import Run
from subquad.models.losses import label_loss

METRICS = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews_correlation,
    "pearson": pearson_correlation,
    "spearman": spearman_correlation,
}
TITLES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews' correlation",
    "pearson": "Pearson's correlation",
}
"""Of the metrics that the table has."""
# Of two classes, the one whose F1 is meant.
POSITIVE = "1"


@dataclass(frozen=True, eq=False)
class GlueResult:
    """How well a model does one task of GLUE.

    Args:
        task: Name of the task.
        figures: The official metrics, from −1 or 0 to 1; the first one is that of tables.
        loss: Nats per example; of STS-B the squared error of the score divided by 5.
        examples: Number of examples, all of them scored.
        confusion: (classes, classes) int64: how many examples of a class, the row, were taken for another, the column;
            None of STS-B, which has scores.
        classes: Names of the classes; none of STS-B.
    """

    task: str
    figures: dict[str, float]
    loss: float
    examples: int
    confusion: Tensor | None
    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {"loss": self.loss, **self.figures, "examples": self.examples, "glue_task": self.task, "task": "glue"}

    def table(self) -> list[list[str]]:
        """Rows of what is measured, its value, and what it is taken over, for the terminal."""
        over = f"{self.examples:,} examples of {GLUE_TASKS[self.task].title}, none skipped"
        rows = [[f"{name} × 100", f"{value * 100:.2f}", over] for name, value in self.figures.items()]
        return [*rows, ["loss", f"{self.loss:.4f}", over]]


def evaluate_glue(
    model: PreTrainedModel,
    examples: GlueExamples,
    task: str,
    *,
    classes: Sequence[str] | None,
    pad_id: int,
    batch_size: int = 32,
    progress: bool = True,
) -> GlueResult:
    """Compute the official metrics of a task over a whole split.

    Args:
        model: A sequence classifier; its mode (training or not) is left as it was.
        examples: The split.
        task: Name of the task.
        classes: The labels in the order of the model's classes; None for scores.
        pad_id: Fills up short examples.
        batch_size: Examples in a batch. The result does not depend on it, except in models whose `padding` is not
            "masked".
        progress: Show a progress bar on a terminal.

    Raises:
        ValueError: The model's loss is not finite.
    """
    logits, labels = _predict(model, examples, pad_id, batch_size, progress)
    loss = float(label_loss(logits, labels))
    if not np.isfinite(loss):
        raise ValueError(f"the model's loss is {loss}")
    predictions = logits.flatten() if classes is None else logits.argmax(-1)
    figures = {}
    for name in glue_task(task).metrics:
        metric: Any = METRICS[name]
        if name == "f1":
            assert classes is not None
            metric = partial(f1, positive=list(classes).index(POSITIVE))
        figures[name] = metric(predictions.numpy(), labels.numpy())
    confusion = None if classes is None else count_confusions(labels, predictions, len(classes))
    return GlueResult(task, figures, loss, len(examples), confusion, tuple(classes or ()))


@torch.inference_mode()
def _predict(model: Any, examples: GlueExamples, pad_id: int, batch_size: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Logits (examples, num_labels) in float64, and labels (examples,), on the CPU."""
    was_training, device = model.training, model.device
    model.eval()
    logits, labels = [], []
    hidden = None if progress else True  # None: shown on a terminal only
    try:
        with tqdm(total=len(examples), desc="examples", disable=hidden) as bar:
            for start in range(0, len(examples), batch_size):
                rows = range(start, min(start + batch_size, len(examples)))
                batch = collate_examples([examples[index] for index in rows], pad_id)
                labels.append(batch.pop("labels"))
                logits.append(model(**{name: x.to(device) for name, x in batch.items()}).logits.cpu().double())
                bar.update(len(rows))
    finally:
        model.train(was_training)
    return torch.cat(logits), torch.cat(labels)


def evaluate_glue_run(
    run: Run,
    data: str | Path | None = None,
    split: str = "valid",
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> tuple[GlueResult, GlueSource]:
    """Compute the official metrics of a finetuned run folder; returns them, and the data.

    Args:
        run: A run of the task "glue".
        data: See `subquad.data.glue.open_glue`; default: the data of the recipe.
        split: "valid", of MNLI also "valid_mismatched", or "train"; the labels of the test splits are not public.
        device: Where to compute; default: a GPU where there is one.
        progress: Show a progress bar.

    Raises:
        DataError: The run or the data cannot be read, or the split has no labels.
    """
    options = run.recipe.get("data")
    if not isinstance(options, dict) or not {"task", "max_length"} <= options.keys():
        raise DataError(f"{run.folder}: which task of GLUE it was finetuned for is not known (no recipe.yaml)")
    task, source = options["task"], options.get("source") if data is None else data
    if source is None:
        raise DataError(f"{run.folder}: its data is not known: give the folder with the official files of GLUE")
    opened = open_glue(source, task)
    rows = opened.read(split)
    tokenizer, model = run.load_tokenizer(), run.load_model(device)
    classes = model_classes(model.config)
    examples = GlueExamples(rows, tokenizer, options["max_length"], classes)
    pad_id = tokenizer.vocabulary.pad_id
    return evaluate_glue(model, examples, task, classes=classes, pad_id=pad_id, progress=progress), opened


def model_classes(config: Any) -> list[str] | None:
    """The labels of a finetuned model in the order of its classes; None of one that predicts scores."""
    return None if config.num_labels == 1 else [config.id2label[index] for index in range(config.num_labels)]


def glue_table(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> tuple[list[str], list[list[str]]]:
    """The table as papers print it: one column for each task, × 100, the median over the seeds.

    MNLI is accuracy on the matched and the mismatched set, MRPC F1, CoLA Matthews' correlation, STS-B Pearson's
    correlation, the others are accuracy; the average is that of the first number of each column.

    Args:
        scores: For each task the figures of each seed, as they stand in `metrics.json`.

    Returns:
        The names of the columns, and the only row.
    """
    head, cells, averaged = [], [], []
    for name, task in GLUE_TASKS.items():
        if name not in scores:
            continue
        keys = [task.metrics[0], *(["accuracy_mismatched"] if name == "mnli" else [])]
        values = [100 * statistics.median(figures[key] for figures in scores[name]) for key in keys]
        head.append("MNLI (m/mm)" if name == "mnli" else task.title)
        cells.append("/".join(f"{value:.2f}" for value in values))
        averaged.append(values[0])
    return [*head, "avg"], [[*cells, f"{statistics.mean(averaged):.2f}"]]


def glue_note(tasks: Iterable[str]) -> str:
    """What the numbers in the table of these tasks are.

    Example:
        >>> glue_note(["rte", "cola"])
        "median over the seeds, × 100: CoLA is Matthews' correlation, all else accuracy"
    """
    kinds = {name: GLUE_TASKS[name].metrics[0] for name in GLUE_TASKS if name in set(tasks)}
    others = [f"{GLUE_TASKS[name].title} is {TITLES[kind]}" for name, kind in kinds.items() if kind != "accuracy"]
    if "accuracy" in kinds.values():
        others.append("all else accuracy" if others else "accuracy")
    return f"median over the seeds, × 100: {', '.join(others)}"
