"""Masked language modelling: which tokens of a block are hidden, and what the model sees in their place.

The masks of a block are a function of the seed, the epoch and the number of the block: the same on any device, in any
process, and after a resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from subquad.data.blocks import IGNORED, Blocks, Mode
from subquad.data.dictionary import PAD
from subquad.data.storage import TokenStream
from subquad.data.tokenizers import Tokenizer
from subquad.registry import build_from


@dataclass(frozen=True)
class Masking:
    """Base of the rules: some tokens are chosen, and each becomes the mask, a random token, or stays as it is.

    BERT, arXiv 1810.04805, section 3.1.

    Args:
        mask_id: The id of the mask.
        num_ids: Number of ids, the mask included.
        special_ids: Ids that are no text; the mask is not one of them.
        probability: Of a token to be chosen.
        random: Share of the chosen tokens that become random ones.
        unchanged: Share of the chosen tokens that stay as they are.

    Raises:
        ValueError: A number is out of range.
    """

    mask_id: int
    num_ids: int
    special_ids: Sequence[int]
    probability: float = 0.15
    random: float = 0.1
    unchanged: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"masking: probability must be in (0, 1], got {self.probability}")
        if min(self.random, self.unchanged) < 0 or self.random + self.unchanged > 1:
            raise ValueError(
                "masking: random and unchanged are shares of the chosen tokens and at most 1 together, "
                f"got {self.random} and {self.unchanged}"
            )

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Hide some of the tokens.

        Args:
            tokens: `(length,)` int64.
            rng: Where the choices come from.

        Returns:
            What the model sees, and its labels: the tokens that were chosen, -100 elsewhere. Both `(length,)` int64.
        """
        chosen = self.choose(tokens, rng)
        originals = tokens[chosen]
        fate = rng.random(len(chosen))
        replacements = np.full_like(originals, self.mask_id)
        is_random, is_unchanged = fate < self.random, fate >= 1 - self.unchanged
        replacements[is_random] = self.random_ids[rng.integers(len(self.random_ids), size=is_random.sum())]
        replacements[is_unchanged] = originals[is_unchanged]
        inputs, labels = tokens.copy(), np.full_like(tokens, IGNORED)
        inputs[chosen], labels[chosen] = replacements, originals
        return inputs, labels

    def choose(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The positions that are chosen, each once."""
        raise NotImplementedError

    @property
    def random_ids(self) -> np.ndarray:
        """What random tokens are drawn from."""
        raise NotImplementedError


class FairseqMasking(Masking):
    """fairseq's rule: of L tokens exactly ⌊probability · L + u⌋ are chosen, u uniform in [0, 1).

    Special tokens are chosen like any other. Random tokens are any but special ones; the mask may be among them.
    """

    def choose(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Positions without replacement."""
        count = int(self.probability * len(tokens) + rng.random())
        return rng.choice(len(tokens), count, replace=False)

    @cached_property
    def random_ids(self) -> np.ndarray:
        """All ids but special ones."""
        return np.setdiff1d(np.arange(self.num_ids), self.special_ids)


class BernoulliMasking(Masking):
    """The rule of the collator of transformers: each token that is not special is chosen by itself.

    Random tokens are any, special ones included.
    """

    def choose(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Positions that are drawn one by one."""
        is_text = ~np.isin(tokens, self.special_ids)
        return np.flatnonzero(is_text & (rng.random(len(tokens)) < self.probability))

    @cached_property
    def random_ids(self) -> np.ndarray:
        """All ids."""
        return np.arange(self.num_ids)


MASKINGS: dict[str, type[Masking]] = {"fairseq": FairseqMasking, "bernoulli": BernoulliMasking}


def build_masking(options: dict[str, Any] | None, tokenizer: Tokenizer | None = None) -> Masking:
    """Make a masking rule.

    Args:
        options: `{"type": "fairseq" | "bernoulli", option: value, ...}`; None: fairseq's, 15 % of the tokens, of which
            80 % become the mask, 10 % random tokens, 10 % stay.
        tokenizer: Whose ids are masked, with a mask among them; None to find mistakes in the options alone.

    Raises:
        ValueError: The type or an option is unknown (the message names the nearest valid one), or out of range.
    """
    ids = (4, 5, range(4)) if tokenizer is None else (tokenizer.mask_id, tokenizer.num_ids, tokenizer.special_ids)
    return build_from("masking", MASKINGS, options or {"type": "fairseq"}, *ids)


class MaskedBlocks(Dataset[dict[str, torch.Tensor]]):
    """Examples for masked language modelling, `{"input_ids": (length,), "labels": (length,)}`, both int64.

    A block begins with the symbol for the start of a sequence, which counts as one of its tokens. `labels` are the
    tokens that were hidden, at their positions, and -100 elsewhere; in a tiny block that may be everywhere.

    Args:
        stream: The corpus.
        block_size: Largest number of tokens in a block.
        mode: See `Blocks`.
        cls_id: The symbol that a block begins with.
        masking: Which tokens are hidden.
        seed: The masks are a function of it, of the epoch and of the number of the block.
        compat: See `Blocks`.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from subquad.data import MaskedBlocks, build_masking, build_tokenizer, prepare
        >>> tokenizer = build_tokenizer("bytes")
        >>> tokenizer.add_mask()
        >>> masking = build_masking(None, tokenizer)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     text = Path(folder) / "train.txt"
        ...     _ = text.write_text("to be or not to be")
        ...     stream = prepare(text, tokenizer, cache_dir=folder, progress=False).splits["train"]
        ...     blocks = MaskedBlocks(stream, 8, "none", cls_id=tokenizer.cls_id, masking=masking)
        ...     [len(block["input_ids"]) for block in blocks]
        [8, 8, 4]
    """

    def __init__(
        self,
        stream: TokenStream,
        block_size: int,
        mode: Mode = "complete",
        *,
        cls_id: int,
        masking: Masking,
        seed: int = 0,
        compat: Literal["fairseq"] | None = None,
    ) -> None:
        if block_size < 2:
            raise ValueError(f"block_size must be at least 2, the start symbol and a token, got {block_size}")
        self.block_size = block_size
        self.blocks = Blocks(stream, block_size - 1, mode, compat=compat)
        self.cls_id = cls_id
        self.masking = masking
        self.seed = seed

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each block, the start symbol included, `(num_blocks,)` int64."""
        return self.blocks.lengths + 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """A block with the masks of epoch 0: the same at every call."""
        return self.example(index, 0)

    def example(self, index: int, epoch: int) -> dict[str, torch.Tensor]:
        """A block with the masks of an epoch."""
        text = self.blocks.stream.read(*self.blocks.slices[index])
        tokens = np.concatenate([[self.cls_id], text])
        inputs, labels = self.masking(tokens, np.random.default_rng((self.seed, epoch, int(index))))
        if self.blocks.compat:
            labels[labels == PAD] = IGNORED
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
