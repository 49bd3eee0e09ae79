"""What the tasks on one stream of text share: tokenizer, corpus, blocks, loss."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel

from subquad.data import Corpus, DataError, Tokenizer, Vocabulary, build_tokenizer, collate, prepare
from subquad.data.blocks import IGNORED
from subquad.evaluation.runs import Run
from subquad.models import SubquadConfig
from subquad.training.callbacks import perplexity
from subquad.training.recipe import Recipe
from subquad.training.tasks.base import Task
from subquad.training.tasks.continued import blank_model, check_length, continued_model

# What `metrics.json` takes from an evaluation.
FIGURES = ("loss", "perplexity", "bits_per_byte", "word_perplexity", "tokens", "words", "bytes", "vocabulary")


def model_config(recipe: Recipe, vocabulary: Vocabulary, *, bos_token_id: int | None = None) -> PreTrainedConfig:
    """The configuration of a recipe's model; vocabulary and special tokens are those of the tokenizer.

    A model with a `family` is a published one that no `SubquadConfig` describes.

    Args:
        recipe: The recipe.
        vocabulary: Its `size` is that of the model.
        bos_token_id: What stands before a text; default: the end symbol.

    Raises:
        ValueError: An option is unknown (the message names the nearest valid one), impossible, or not to be set here.
    """
    if "family" in recipe.model:
        # What reads published checkpoints stands above the models, and no other recipe needs it.
        from subquad.compat.pretrained import ReferenceConfig

        sizes = {"vocab_size": vocabulary.size, "padding_idx": vocabulary.pad_id}
        return ReferenceConfig.from_options(recipe.model, sizes)
    from_tokenizer = {
        "vocab_size": vocabulary.size,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": vocabulary.eos_id if bos_token_id is None else bos_token_id,
        "eos_token_id": vocabulary.eos_id,
    }
    for name in from_tokenizer:
        if name in recipe.model:
            raise ValueError(f"model.{name} is not set in a recipe: it follows from data.tokenizer")
    return SubquadConfig.from_options(recipe.model | from_tokenizer)


class LanguageModel(Task):
    """Base of tasks that predict tokens of one stream of text, in blocks."""

    score_names = ("nll", "targets")
    auto_class: ClassVar[Any]
    labels: ClassVar[str]
    """Where the targets of a batch are; -100 is none."""
    tokenizer: Tokenizer

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer | None = None) -> None:
        self.recipe = recipe
        data: Any = recipe.data
        self.example_name = f"blocks of {data.block_size} tokens"
        if tokenizer is None and recipe.init is not None:
            tokenizer = Run(recipe.init).tokenizer_for(data.source)
        self.tokenizer = tokenizer or build_tokenizer(data.tokenizer, data.source, text_column=data.text_column)

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Build the model without memory, with any vocabulary."""
        data: Any = recipe.data
        if recipe.init is not None:
            check_length(blank_model(recipe).config, data.block_size, "block_size", recipe.init)
            return
        config = model_config(recipe, Vocabulary(unit="", size=1 << 20, hash="", eos_id=2, pad_id=1))
        with torch.device("meta"):
            cls.auto_class.from_config(config)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The configuration of the model."""
        return model_config(self.recipe, self.tokenizer.vocabulary)

    @cached_property
    def corpus(self) -> Corpus:
        """The encoded text."""
        data: Any = self.recipe.data
        corpus = prepare(data.source, self.tokenizer, text_column=data.text_column)
        for split in ("train", "valid"):
            if corpus.splits[split].num_tokens < 2:
                raise DataError(f"{corpus.name}: the split '{split}' has fewer than 2 tokens")
        return corpus

    def data_record(self) -> dict[str, str]:
        """Name, fingerprint and split rule of the corpus."""
        return self.corpus.record()

    def blocks(self, split: str) -> Dataset[dict[str, Tensor]]:
        """The blocks of a split."""
        raise NotImplementedError

    @cached_property
    def train_data(self) -> Dataset[dict[str, Tensor]]:
        """Blocks of the train split."""
        data: Any = self.recipe.data
        available, block_size = self.corpus.splits["train"].num_tokens, data.block_size
        if available < block_size:
            raise DataError(
                f"{self.corpus.name}: the train split has {available} tokens, data.block_size is {block_size}: "
                "give more text or a smaller block_size"
            )
        return self.blocks("train")

    @cached_property
    def valid_data(self) -> Dataset[dict[str, Tensor]]:
        """Blocks of the valid split."""
        return self.blocks("valid")

    @cached_property
    def collate(self) -> Callable[[Sequence[Any]], dict[str, Tensor]]:
        """Pads with the tokenizer's padding token."""
        return partial(collate, pad_id=self.tokenizer.vocabulary.pad_id)

    def build_model(self) -> PreTrainedModel:
        """The model with its initial values, or those of the run `init`."""
        if self.recipe.init is None:
            return self.auto_class.from_config(self.config)
        model, size = continued_model(self.recipe), self.tokenizer.num_ids
        if size > model.config.vocab_size:
            raise DataError(f"{self.recipe.init}: its model has {model.config.vocab_size} tokens, its tokenizer {size}")
        return model

    def num_targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Number of tokens that are predicted."""
        return (batch[self.labels] != IGNORED).sum()

    def num_units(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Number of tokens without padding."""
        mask = batch.get("attention_mask")
        return torch.tensor(batch["input_ids"].numel()) if mask is None else mask.sum()

    def score(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
        """Negative log-likelihood in nats, and number of predicted tokens."""
        targets = self.num_targets(batch)
        nll = model(**batch, num_items_in_batch=1, use_cache=False, return_logits=False).loss
        return torch.stack([nll, targets]).cpu().double()

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Nats per predicted token, and perplexity."""
        loss = sums["nll"] / sums["targets"]
        return {"loss": loss, "perplexity": perplexity(loss)}

    def evaluate(self, model: PreTrainedModel, split: str, *, progress: bool) -> dict[str, Any]:
        """Figures of a split, `FIGURES` among them."""
        raise NotImplementedError

    def final_metrics(self, model: PreTrainedModel, *, progress: bool) -> dict[str, Any]:
        """Perplexity of the whole test split, or of the validation split where there is no test split."""
        split = "test" if "test" in self.corpus.splits else "valid"
        result = self.evaluate(model, split, progress=progress)
        return {name: result[name] for name in FIGURES} | {"split": split}

    def describe(self, metrics: Mapping[str, Any]) -> str:
        """Loss and perplexity."""
        return f"loss {metrics['loss']:.4f}, perplexity {metrics['perplexity']:.2f} per {metrics['vocabulary']}"
