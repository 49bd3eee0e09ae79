"""What is learned: each task turns a recipe into data, a model and figures; the trainer knows none of them.

A new task is one class with `@register_task(name)`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from subquad.data import Blocks, Corpus, DataError, Tokenizer, Vocabulary, build_tokenizer, collate, prepare
from subquad.data.blocks import IGNORED
from subquad.models import SubquadConfig, SubquadForCausalLM
from subquad.registry import unknown_name
from subquad.training.callbacks import perplexity
from subquad.training.recipe import Recipe


class Task:
    """Base of all tasks. Attributes are computed when they are asked for.

    Args:
        recipe: The recipe of the run.
        tokenizer: The tokenizer of a run that is resumed; default: made as the recipe says.
    """

    train_data: Dataset[Any]
    """Examples to train on; `len` is known."""
    valid_data: Dataset[Any]
    """Examples that choose the best checkpoint; `len` is known."""
    tokenizer: Tokenizer
    corpus: Corpus
    score_names: ClassVar[tuple[str, ...]]
    """What `score` sums."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer | None = None) -> None:
        raise NotImplementedError

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Find the mistakes of a recipe that can be found without its data.

        Raises:
            ValueError: There is one.
        """

    def build_model(self) -> PreTrainedModel:
        """The model with its initial values; its loss must accept `num_items_in_batch`."""
        raise NotImplementedError

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Make a batch of examples: the keyword arguments of the model."""
        raise NotImplementedError

    def num_targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the summed loss of a batch is divided by, a scalar: its number of targets."""
        raise NotImplementedError

    def score(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
        """Sums over one batch of the validation data, `(len(score_names),)` float64 on the CPU."""
        raise NotImplementedError

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Figures of the whole validation data from the sums over all batches; "loss" is the one that is minimised."""
        raise NotImplementedError

    def final_metrics(self, model: PreTrainedModel, *, progress: bool) -> dict[str, Any]:
        """Figures of the best model for `metrics.json`."""
        raise NotImplementedError


TASKS: dict[str, type[Task]] = {}


def register_task(name: str) -> Callable[[type[Task]], type[Task]]:
    """Class decorator: make a task available to recipes under `name`."""

    def register(cls: type[Task]) -> type[Task]:
        if name in TASKS:
            raise ValueError(f"task {name!r} is registered already, as {TASKS[name].__name__}")
        TASKS[name] = cls
        return cls

    return register


def task_class(name: str) -> type[Task]:
    """The task called `name`.

    Raises:
        ValueError: There is no such task; the message names the nearest one.
    """
    if name not in TASKS:
        raise ValueError(unknown_name("task", name, TASKS))
    return TASKS[name]


def model_config(recipe: Recipe, vocabulary: Vocabulary) -> SubquadConfig:
    """The configuration of a recipe's model; vocabulary and special tokens are those of the tokenizer.

    Raises:
        ValueError: An option is unknown (the message names the nearest valid one), impossible, or not to be set here.
    """
    from_tokenizer = {
        "vocab_size": vocabulary.size,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": vocabulary.eos_id,
        "eos_token_id": vocabulary.eos_id,
    }
    for name in from_tokenizer:
        if name in recipe.model:
            raise ValueError(f"model.{name} is not set in a recipe: it follows from data.tokenizer")
    return SubquadConfig.from_options(recipe.model | from_tokenizer)


@register_task("causal-lm")
class CausalLM(Task):
    """Predict the next token, in blocks of one stream of text."""

    score_names = ("nll", "targets")

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Build the model without memory, with any vocabulary."""
        config = model_config(recipe, Vocabulary(unit="", size=8, hash="", eos_id=2, pad_id=1))
        with torch.device("meta"):
            SubquadForCausalLM(config)

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer | None = None) -> None:
        self.recipe = recipe
        data = recipe.data
        self.tokenizer = tokenizer or build_tokenizer(data.tokenizer, data.source, text_column=data.text_column)
        self.config = model_config(recipe, self.tokenizer.vocabulary)

    @cached_property
    def corpus(self) -> Corpus:
        """The encoded text."""
        data = self.recipe.data
        corpus = prepare(data.source, self.tokenizer, text_column=data.text_column)
        for split in ("train", "valid"):
            if corpus.splits[split].num_tokens < 2:
                raise DataError(f"{corpus.name}: the split '{split}' has fewer than 2 tokens")
        return corpus

    def _blocks(self, split: str) -> Blocks:
        data: Any = self.recipe.data
        return Blocks(self.corpus.splits[split], data.block_size, data.block_mode)

    @cached_property
    def train_data(self) -> Blocks:
        """Blocks of the train split."""
        available, block_size = self.corpus.splits["train"].num_tokens, self.recipe.data.block_size
        if available < block_size:
            raise DataError(
                f"{self.corpus.name}: the train split has {available} tokens, data.block_size is {block_size}: "
                "give more text or a smaller block_size"
            )
        return self._blocks("train")

    @cached_property
    def valid_data(self) -> Blocks:
        """Blocks of the valid split."""
        return self._blocks("valid")

    @cached_property
    def collate(self) -> Callable[[Sequence[Any]], dict[str, Tensor]]:
        """Pads with the tokenizer's padding token."""
        return partial(collate, pad_id=self.tokenizer.vocabulary.pad_id)

    def build_model(self) -> PreTrainedModel:
        """A causal language model with its initial values."""
        return SubquadForCausalLM(self.config)

    def num_targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Number of tokens that are predicted."""
        return (batch["shift_labels"] != IGNORED).sum()

    def score(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
        """Negative log-likelihood in nats, and number of predicted tokens."""
        targets = self.num_targets(batch)
        nll = model(**batch, num_items_in_batch=1, use_cache=False, return_logits=False).loss
        return torch.stack([nll, targets]).cpu().double()

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Nats per token, and perplexity."""
        loss = sums["nll"] / sums["targets"]
        return {"loss": loss, "perplexity": perplexity(loss)}

    def final_metrics(self, model: PreTrainedModel, *, progress: bool) -> dict[str, Any]:
        """Perplexity of the whole test split, or of the validation split where there is no test split."""
        from subquad.evaluation import evaluate_perplexity

        split = "test" if "test" in self.corpus.splits else "valid"
        stream = self.corpus.splits[split]
        result = evaluate_perplexity(model, stream, length=self.recipe.data.block_size, progress=progress).to_dict()
        names = ("loss", "perplexity", "bits_per_byte", "word_perplexity", "tokens", "words", "bytes", "vocabulary")
        return {name: result[name] for name in names} | {"split": split}
