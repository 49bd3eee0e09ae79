"""Sequence classification: the tasks of the Long Range Arena (arXiv 2011.04006)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from subquad.data import DataError, Tokenizer
from subquad.data.lra import LRAData, open_lra
from subquad.data.lra.datasets import NUM_LABELS, PIPELINES, RULES, num_features
from subquad.evaluation.accuracy import evaluate_accuracy, score_batch
from subquad.models import SubquadConfig, SubquadForSequenceClassification
from subquad.registry import unknown_name
from subquad.training.recipe import LongRangeArenaRecipe, Recipe
from subquad.training.tasks.base import Task, register_task
from subquad.training.tasks.continued import blank_model, check_data, continued_model

# Of one sequence, and of a pair.
HEADS = {"s4": ("linear", "pair"), "byte": ("mlp", "pair"), "google": ("mlp", "deep_pair")}


def classifier_config(recipe: Recipe, *, vocab_size: int | None, input_features: int | None) -> SubquadConfig:
    """The configuration of a recipe's classifier; inputs, classes and head are those of the data.

    Args:
        recipe: The recipe.
        vocab_size: Number of tokens; None where the inputs are numbers.
        input_features: Numbers at each position; None where the inputs are tokens.

    Raises:
        ValueError: An option is unknown (the message names the nearest valid one), impossible, or not to be set here.
    """
    data = recipe.data
    assert isinstance(data, LongRangeArenaRecipe)
    from_data = {
        "num_labels": NUM_LABELS[data.task],
        "classifier": HEADS[data.pipeline][data.task == "retrieval"],
        "input_features": input_features,
        "vocab_size": vocab_size or 1,
    }
    for name in from_data:
        if name in recipe.model:
            raise ValueError(f"model.{name} is not set in a recipe: it follows from data.task and data.pipeline")
    return SubquadConfig.from_options(recipe.model | from_data)


@register_task("sequence-classification")
class SequenceClassification(Task):
    """Name the class of a sequence, or of a pair of them; the best model is the one with the best validation accuracy.

    There is no tokenizer: what a token is follows from the pipeline and the training data.
    """

    score_names = ("nll", "correct", "examples")
    selected_by = "accuracy"
    reports_last = True

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer | None = None) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        section: Any = recipe.data
        self.example_name = f"examples of {section.task}"

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Build the model without memory, with any vocabulary."""
        data = recipe.data
        assert isinstance(data, LongRangeArenaRecipe)
        if data.task not in NUM_LABELS:
            raise ValueError(unknown_name("task of the Long Range Arena", data.task, NUM_LABELS))
        if data.pipeline not in PIPELINES:
            raise ValueError(unknown_name("pipeline", data.pipeline, PIPELINES))
        if not isinstance(data.source, str):
            raise ValueError(f"the data of the Long Range Arena is one folder, got {data.source}")
        if recipe.init is not None:
            check_data(blank_model(recipe).config, recipe.init, num_labels=NUM_LABELS[data.task])
            return
        is_tokens = (data.pipeline, data.task) in RULES or data.pipeline != "s4"
        inputs = (256, None) if is_tokens else (None, num_features(data.colour, data.permute))
        with torch.device("meta"):
            SubquadForSequenceClassification(classifier_config(recipe, vocab_size=inputs[0], input_features=inputs[1]))

    @cached_property
    def data(self) -> LRAData:
        """The examples of all splits."""
        options = dataclasses.asdict(self.recipe.data)
        return open_lra(root=options.pop("source"), **options, augment_seed=self.recipe.training.seed)

    @property
    def train_data(self) -> Any:
        """Examples of the train split."""
        return self.data.train

    @property
    def valid_data(self) -> Any:
        """Examples of the validation split."""
        return self.data.valid

    @property
    def collate(self) -> Callable[[Sequence[Any]], dict[str, Tensor]]:
        """Pads as the pipeline does."""
        return self.data.train.collate

    def data_record(self) -> dict[str, Any]:
        """Name, content and size of the data, and how validation came about."""
        return self.data.record()

    def build_model(self) -> PreTrainedModel:
        """The model with its initial values, or those of the run `init`."""
        data, init = self.data, self.recipe.init
        section: Any = self.recipe.data
        if init is not None:
            model = continued_model(self.recipe)
            kind = {"input_features": data.input_features}
            check_data(model.config, init, **(kind if data.vocab_size is None else {"vocab_size": data.vocab_size}))
            if model.config.is_of_pairs != (section.task == "retrieval"):
                raise DataError(f"{init}: only a model of the task retrieval compares pairs")
            return model
        config = classifier_config(self.recipe, vocab_size=data.vocab_size, input_features=data.input_features)
        config.check_grids(data.longest)
        return SubquadForSequenceClassification(config)

    def num_targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Number of examples; a pair is one."""
        return torch.tensor(len(batch["labels"]))

    def num_units(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Number of tokens or pixels without padding."""
        if "attention_mask" in batch:
            return batch["attention_mask"].sum()
        return torch.tensor(batch["input_values"].shape[:2].numel())

    def score(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
        """Negative log-likelihood in nats, right answers, and number of examples."""
        return score_batch(model, batch)

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Nats per example, and share of right answers."""
        return {"loss": sums["nll"] / sums["examples"], "accuracy": sums["correct"] / sums["examples"]}

    def final_metrics(self, model: PreTrainedModel, *, progress: bool) -> dict[str, Any]:
        """Accuracy of the whole test split."""
        size = self.recipe.training.device_batch_size
        result = evaluate_accuracy(model, self.data.test, batch_size=size, progress=progress)
        return result.to_dict() | {"validation": self.data.validation, "split": "test"}

    def describe(self, metrics: Mapping[str, Any]) -> str:
        """Accuracy and loss."""
        return f"accuracy {metrics['accuracy']:.2%} of {metrics['examples']:,} examples, loss {metrics['loss']:.4f}"
