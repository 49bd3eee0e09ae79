"""Image classification: images as patches or as sequences of pixels."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from subquad.data import Tokenizer
from subquad.data.images import EvaluationImages, ImageData, TrainingImages, open_images
from subquad.evaluation.accuracy import score_batch
from subquad.evaluation.images import TOP, as_in_training, check_classes, evaluate_images, model_inputs
from subquad.evaluation.runs import Run
from subquad.models import SubquadConfig, SubquadForImageClassification, SubquadForSequenceClassification
from subquad.training.recipe import ImageRecipe, Recipe
from subquad.training.sampler import fitting_batch_size, num_devices
from subquad.training.tasks.base import Task, register_task
from subquad.training.tasks.continued import blank_model, check_data, continued_model


def image_classifier(recipe: Recipe, *, classes: Sequence[str], num_channels: int) -> PreTrainedModel:
    """The classifier of a recipe with its initial values; inputs and classes are those of the data.

    Args:
        recipe: The recipe.
        classes: Names of the classes, in the order of their numbers.
        num_channels: Channels of an image.

    Raises:
        ValueError: An option is unknown (the message names the nearest valid one), impossible, or not to be set here.
    """
    data = recipe.data
    assert isinstance(data, ImageRecipe)
    model_class: Any
    if data.layout == "patches":
        model_class = SubquadForImageClassification
        inputs = {"image_size": data.image_size, "num_channels": num_channels}
    else:
        model_class = SubquadForSequenceClassification
        inputs = {"input_features": num_channels, "vocab_size": 1}
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: label for label, name in enumerate(classes)}}
    for name in ("image_size", "num_channels", "input_features", "vocab_size", "num_labels", *labels):
        if name in recipe.model:
            raise ValueError(f"model.{name} is not set in a recipe: it follows from data")
    config = SubquadConfig.from_options(recipe.model | inputs | labels)
    if data.layout == "pixels":
        config.check_grids(data.image_size**2)
    return model_class(config)


@register_task("image-classification")
class ImageClassification(Task):
    """Name the class of an image; the best model is the one with the best validation accuracy."""

    score_names = ("nll", "top5", "correct", "examples")
    selected_by = "accuracy"
    example_name = "images"
    unit = "images"

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer | None = None) -> None:
        section: Any = recipe.data
        self.recipe = recipe
        self.section: ImageRecipe = section
        self.tokenizer = tokenizer

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Build the model without memory, for images in colour."""
        assert isinstance(recipe.data, ImageRecipe)
        if not isinstance(recipe.data.source, str):
            raise ValueError(f"images are in one folder, got {recipe.data.source}")
        training = recipe.training
        size = fitting_batch_size(training.batch_size, training.device_batch_size, num_devices())
        if recipe.data.augmentation.mixes and size % 2:
            raise ValueError(
                f"data.augmentation: images are mixed in pairs, and batches of a device hold {size}: choose an even "
                "training.device_batch_size, or mixup 0 and cutmix 0"
            )
        if recipe.init is not None:
            blank_model(recipe)
            return
        with torch.device("meta"):
            image_classifier(recipe, classes=[str(label) for label in range(10)], num_channels=3)

    @cached_property
    def data(self) -> ImageData:
        """The images of all splits; the model of a run goes on with the normalisation that it was trained with."""
        opened = open_images(self.section.source, valid_fraction=self.section.valid_fraction)
        return opened if self.recipe.init is None else as_in_training(opened, Run(self.recipe.init))

    @property
    def repeats(self) -> int:
        """Of repeated augmentation."""
        return self.section.augmentation.repeats

    @cached_property
    def train_data(self) -> TrainingImages:
        """Images of the train split."""
        section = self.section
        return TrainingImages(self.data, section.image_size, section.augmentation, self.recipe.training.seed)

    @cached_property
    def valid_data(self) -> EvaluationImages:
        """Images of the validation split."""
        return EvaluationImages(self.data, "valid", self.section.image_size)

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Change, normalise and mix images of the train split."""
        return model_inputs(self.train_data.collate(examples), self.section.layout)

    def collate_valid(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Normalise images of the validation split."""
        return model_inputs(self.valid_data.collate(examples), self.section.layout)

    def data_record(self) -> dict[str, Any]:
        """Name and content of the data, how validation came about, and what inputs are normalised with."""
        return self.data.record()

    def build_model(self) -> PreTrainedModel:
        """The model with its initial values, or those of the run `init`."""
        if self.recipe.init is None:
            return image_classifier(self.recipe, classes=self.data.classes, num_channels=self.data.num_channels)
        return self._continued()

    def _continued(self) -> PreTrainedModel:
        model, data, size = continued_model(self.recipe), self.data, self.section.image_size
        config, init = model.config, self.recipe.init or ""
        if self.section.layout == "patches":
            sides = [size, size] if isinstance(config.image_size, list) else size
            check_data(config, init, image_size=sides, num_channels=data.num_channels, num_labels=len(data.classes))
        else:
            check_data(config, init, input_features=data.num_channels, num_labels=len(data.classes))
        check_classes(config, data, init)
        config.id2label = dict(enumerate(data.classes))
        config.label2id = {name: label for label, name in enumerate(data.classes)}
        return model

    def num_targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Number of images."""
        return torch.tensor(len(batch["labels"]))

    def num_units(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Number of images."""
        return torch.tensor(len(batch["labels"]))

    def score(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
        """Negative log-likelihood in nats, right classes among five answers, right answers, and images."""
        return score_batch(model, batch, top=TOP)

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Nats per image, and shares of right answers."""
        shares = {"accuracy": sums["correct"] / sums["examples"]}
        if len(self.data.classes) > TOP:
            shares["top5_accuracy"] = sums["top5"] / sums["examples"]
        return {"loss": sums["nll"] / sums["examples"], **shares}

    def final_metrics(self, model: PreTrainedModel, *, progress: bool) -> dict[str, Any]:
        """Accuracy over the whole test split, or over that of validation where there is no other."""
        split = "valid" if self.data.test is None else "test"
        training = self.recipe.training
        result = evaluate_images(
            model,
            EvaluationImages(self.data, split, self.section.image_size),
            layout=self.section.layout,
            batch_size=training.device_batch_size,
            num_workers=training.num_workers,
            progress=progress,
        )
        return result.to_dict() | {"validation": self.data.split_rule, "split": split}

    def describe(self, metrics: Mapping[str, Any]) -> str:
        """Accuracy and loss, and whether they are those of validation."""
        top5 = f", {metrics['top5_accuracy']:.2%} in five answers" if "top5_accuracy" in metrics else ""
        is_validation = self.data.test is None or self.data.test is self.data.valid
        images = f"{metrics['examples']:,} images" + (" (the images that chose the model)" if is_validation else "")
        return f"accuracy {metrics['accuracy']:.2%}{top5} of {images}, loss {metrics['loss']:.4f}"
