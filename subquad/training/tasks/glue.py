"""GLUE: finetune the model of a run on one of the eight tasks."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from subquad.data import DataError, Tokenizer
from subquad.data.glue import (
    SHORTEST,
    GlueExamples,
    GlueSource,
    classes_by_frequency,
    collate_examples,
    glue_task,
    open_glue,
)
from subquad.evaluation.glue import evaluate_glue
from subquad.evaluation.runs import Run
from subquad.models import SubquadConfig, SubquadModel
from subquad.training.recipe import GlueRecipe, Recipe
from subquad.training.tasks.base import Task, register_task
from subquad.training.tasks.continued import changed_config, check_length, copy_weights


def finetuned_config(recipe: Recipe, labels: Sequence[str] | None) -> PreTrainedConfig:
    """The configuration of the model a run starts from, with a classifier, and what the recipe's `model` changes.

    Args:
        recipe: The recipe.
        labels: Names of the classes in order; None for a score.

    Raises:
        DataError: The run cannot be read, or its model is not one that sees tokens.
        ValueError: An option is unknown (the message names the nearest valid one), impossible, or not to be set here.
    """
    assert recipe.init is not None
    assert isinstance(recipe.data, GlueRecipe)
    run = Run(recipe.init)
    if any(run.config.get(name) is not None for name in ("image_size", "input_features")):
        raise DataError(f"{recipe.init}: its model cannot be finetuned on text")
    from_data = (
        {"num_labels": 1}
        if labels is None
        else {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    )
    for name in (*from_data, "num_labels", "vocab_size"):
        if name in recipe.model:
            raise ValueError(f"model.{name} is not set in a recipe: it follows from data.task and init")
    changes = recipe.model | from_data
    if run.config.get("model_type") == SubquadConfig.model_type:
        config = changed_config(run, changes)
    else:
        config = run.load_config().with_classifier(changes)
    check_length(config, recipe.data.max_length, "max_length", recipe.init)
    return config


@register_task("glue")
class Glue(Task):
    """Finetune all weights of a model that a run trained, with a new classifier.

    The best model is that of the highest accuracy on the validation split, for STS-B that of the lowest loss.
    """

    score_names = ("loss", "correct", "examples")
    selected_by = "score"
    starts_from_run = True

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer | None = None) -> None:
        assert recipe.init is not None
        section: Any = recipe.data
        self.recipe = recipe
        self.section: GlueRecipe = section
        self.kind = glue_task(section.task)
        self.tokenizer: Tokenizer = tokenizer or Run(recipe.init).load_tokenizer()

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Build the model without memory."""
        assert isinstance(recipe.data, GlueRecipe)
        if not isinstance(recipe.data.source, str):
            raise ValueError(f"the data of GLUE is one folder or hf:NAME, got {recipe.data.source}")
        kind = glue_task(recipe.data.task)
        if recipe.data.max_length < SHORTEST:
            raise ValueError(f"data.max_length must be at least {SHORTEST}, got {recipe.data.max_length}")
        config = finetuned_config(recipe, None if kind.is_regression else kind.labels)
        with torch.device("meta"):
            AutoModelForSequenceClassification.from_config(config)

    @cached_property
    def source(self) -> GlueSource:
        """The data before it is encoded."""
        return open_glue(self.section.source, self.section.task)

    @cached_property
    def classes(self) -> list[str] | None:
        """The labels in the order of the model's classes; None for scores."""
        if self.kind.is_regression:
            return None
        classes = classes_by_frequency(self.source.read("train").labels or [])  # pyright: ignore[reportArgumentType]
        if len(classes) != len(self.kind.labels):
            raise DataError(
                f"{self.source.name}: the train split has the labels {', '.join(classes)}, {self.kind.title} has "
                f"{', '.join(self.kind.labels)}"
            )
        return classes

    def examples(self, split: str) -> GlueExamples:
        """The encoded examples of a split."""
        return GlueExamples(self.source.read(split), self.tokenizer, self.section.max_length, self.classes)

    @cached_property
    def train_data(self) -> GlueExamples:
        """Examples of the train split."""
        return self.examples("train")

    @cached_property
    def valid_data(self) -> GlueExamples:
        """Examples of the validation split."""
        return self.examples("valid")

    @property
    def example_name(self) -> str:
        """What an example is, and how many were too long."""
        name, cut = f"examples of {self.kind.title}", self.train_data.num_cut
        return f"{name} ({cut:,} in all were cut to {self.section.max_length} tokens)" if cut else name

    @cached_property
    def collate(self) -> Callable[[Sequence[Any]], dict[str, Tensor]]:
        """Pads with the tokenizer's padding token."""
        return partial(collate_examples, pad_id=self.tokenizer.vocabulary.pad_id)

    def data_record(self) -> dict[str, str]:
        """Name, fingerprint and split rule of the data."""
        return self.source.record()

    def build_model(self) -> PreTrainedModel:
        """A classifier with initial values, on the model of the run.

        Raises:
            DataError: The weights of the run do not fit the options of the recipe.
        """
        assert self.recipe.init is not None
        run = Run(self.recipe.init)
        backbone = run.load_model("cpu").base_model
        if not isinstance(backbone, SubquadModel):
            raise DataError(f"{self.recipe.init}: its model has no backbone of ours, and cannot be finetuned")
        config = finetuned_config(self.recipe, self.classes)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        copy_weights(model.base_model, backbone, run.folder)
        return model

    def num_targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Number of examples."""
        return torch.tensor(len(batch["labels"]))

    def num_units(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Number of tokens without padding."""
        return batch["attention_mask"].sum()

    def score(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
        """Sum of the losses, right answers (of scores none), and number of examples."""
        outputs = model(**batch, num_items_in_batch=1)
        correct = (outputs.logits.argmax(-1) == batch["labels"]).sum()
        return torch.tensor([outputs.loss.item(), correct.item(), len(batch["labels"])], dtype=torch.float64)

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Loss per example, and the score that chooses the best model: accuracy, of STS-B the negative loss."""
        loss = sums["loss"] / sums["examples"]
        return {"loss": loss, "score": -loss if self.kind.is_regression else sums["correct"] / sums["examples"]}

    def final_metrics(self, model: PreTrainedModel, *, progress: bool) -> dict[str, Any]:
        """The official metrics of the validation splits; the labels of the test splits are not public."""
        metrics: dict[str, Any] = {}
        for split in [name for name in self.source.readers if name.startswith("valid")]:
            result = evaluate_glue(
                model,
                self.examples(split),
                self.section.task,
                classes=self.classes,
                pad_id=self.tokenizer.vocabulary.pad_id,
                batch_size=self.recipe.training.device_batch_size,
                progress=progress,
            ).to_dict()
            suffix = split.removeprefix("valid")
            metrics |= {f"{name}{suffix}": result[name] for name in ("loss", *self.kind.metrics, "examples")}
        return metrics | {"glue_task": self.section.task, "split": "valid"}

    def describe(self, metrics: Mapping[str, Any]) -> str:
        """The official metrics."""
        names = [name for name in metrics if name.split("_")[0] in self.kind.metrics]
        return ", ".join(f"{name.replace('_', ' ')} {metrics[name] * 100:.2f}" for name in names)
