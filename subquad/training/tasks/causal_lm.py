"""Causal language modelling: predict the next token."""

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel

from subquad.data import Blocks
from subquad.training.recipe import Recipe
from subquad.training.tasks.base import register_task
from subquad.training.tasks.text import LanguageModel


@register_task("causal-lm")
class CausalLM(LanguageModel):
    """Predict the next token, in blocks of one stream of text."""

    auto_class = AutoModelForCausalLM
    labels = "shift_labels"

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Build the model without memory; nothing is masked."""
        super().check(recipe)
        data: Any = recipe.data
        if data.masking is not None:
            raise ValueError("data.masking belongs to the task masked-lm, the task is causal-lm: leave it out")

    def blocks(self, split: str) -> Dataset[dict[str, Tensor]]:
        """Blocks whose targets are one token ahead."""
        data: Any = self.recipe.data
        return Blocks(self.corpus.splits[split], data.block_size, data.block_mode)

    def evaluate(self, model: PreTrainedModel, split: str, *, progress: bool) -> dict[str, Any]:
        """Perplexity of every token."""
        from subquad.evaluation import evaluate_perplexity

        data: Any = self.recipe.data
        stream = self.corpus.splits[split]
        return evaluate_perplexity(model, stream, length=data.block_size, progress=progress).to_dict()
