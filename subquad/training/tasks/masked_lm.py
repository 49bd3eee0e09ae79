"""Masked language modelling: predict tokens that are hidden, from both sides."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

from subquad.data import DataError, MaskedBlocks, Tokenizer, build_masking
from subquad.data.blocks import IGNORED
from subquad.training.recipe import Recipe
from subquad.training.tasks.base import register_task
from subquad.training.tasks.text import LanguageModel, model_config


@register_task("masked-lm")
class MaskedLM(LanguageModel):
    """Predict hidden tokens, in blocks of one stream of text.

    Masks of the training data change with every epoch; those of the other splits never do.
    """

    auto_class = AutoModelForMaskedLM
    labels = "labels"

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Build the masking, and the model without memory."""
        data: Any = recipe.data
        build_masking(data.masking)
        super().check(recipe)

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(recipe, tokenizer)
        self.tokenizer.add_mask()

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The configuration of the model: its vocabulary is that of the text and the mask."""
        vocabulary = replace(self.tokenizer.vocabulary, size=self.tokenizer.num_ids)
        return model_config(self.recipe, vocabulary, bos_token_id=self.tokenizer.cls_id)

    def blocks(self, split: str) -> MaskedBlocks:
        """Blocks that begin with the start symbol, and their masks."""
        recipe: Any = self.recipe
        return MaskedBlocks(
            self.corpus.splits[split],
            recipe.data.block_size,
            recipe.data.block_mode,
            cls_id=self.tokenizer.cls_id,
            masking=build_masking(recipe.data.masking, self.tokenizer),
            seed=recipe.training.seed,
        )

    @cached_property
    def valid_data(self) -> Dataset[dict[str, Tensor]]:
        """Blocks of the valid split; also sees to it that figures of all splits but train will be defined."""
        for split in self.corpus.splits.keys() - {"train"}:
            blocks = self.blocks(split)
            if not any((blocks[index]["labels"] != IGNORED).any() for index in range(len(blocks))):
                raise DataError(f"{self.corpus.name}: nothing in the split '{split}' is masked: give more text")
        return self.blocks("valid")

    def evaluate(self, model: PreTrainedModel, split: str, *, progress: bool) -> dict[str, Any]:
        """Perplexity of the tokens that are masked."""
        from subquad.evaluation import evaluate_masked_perplexity

        return evaluate_masked_perplexity(model, self.blocks(split), progress=progress).to_dict()

    def describe(self, metrics: Mapping[str, Any]) -> str:
        """Loss and perplexity; only masked tokens are scored."""
        return super().describe({**metrics, "vocabulary": f"masked {metrics['vocabulary']}"})
