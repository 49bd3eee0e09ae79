"""Blocks: the stream of a corpus cut into examples of a model, by fairseq's rules.

Every token of the stream is a target exactly once, and its input is the token before it; before the stream stands the
end symbol. Nothing is dropped: the short last block is kept, and an item longer than a block is divided.
"""

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from subquad.data.dictionary import PAD
from subquad.data.storage import TokenStream

Mode = Literal["none", "complete", "complete_doc", "eos"]
IGNORED = -100


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Examples for causal language modelling, `{"input_ids": (length,), "shift_labels": (length,)}`, both int64.

    `shift_labels` are the targets of the positions of `input_ids`, with no shift left to do; -100 is not scored.

    Args:
        stream: The corpus.
        block_size: Largest number of inputs in a block. With mode "eos" it may be None: no limit.
        mode: "none" cuts anywhere; "complete" fills blocks with whole items; "complete_doc" does too, but an item of
            one token (an empty line) ends a block and is left out; "eos" makes each item a block.
        context_window: Mode "none": up to this many inputs before each block are repeated as context and not scored; a
            block then has `block_size - context_window` new tokens.
        compat: "fairseq" drops blocks over `block_size` instead of dividing them, and does not score a literal `<pad>`
            of the text.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from subquad.data import Blocks, build_tokenizer, prepare
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     text = Path(folder) / "train.txt"
        ...     _ = text.write_text("to be or not to be")
        ...     corpus = prepare(text, build_tokenizer("bytes"), cache_dir=folder, progress=False)
        ...     blocks = Blocks(corpus.splits["train"], 8)
        ...     len(blocks), blocks[0]["input_ids"].shape
        (3, torch.Size([8]))
    """

    def __init__(
        self,
        stream: TokenStream,
        block_size: int | None,
        mode: Mode = "none",
        context_window: int = 0,
        *,
        compat: Literal["fairseq"] | None = None,
    ) -> None:
        if block_size is None and mode != "eos":
            raise ValueError(f"block_size=None needs mode 'eos', got mode {mode!r}: give the number of tokens")
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        if context_window and mode != "none":
            raise ValueError(f"context_window={context_window} needs mode 'none', got {mode!r}")
        if block_size is not None and not 0 <= context_window < block_size:
            raise ValueError(f"context_window must be in 0 … block_size - 1 = {block_size - 1}, got {context_window}")
        if compat not in (None, "fairseq"):
            raise ValueError(f"compat must be None or 'fairseq', got {compat!r}")
        self.stream = stream
        self.context_window = context_window
        self.compat = compat
        size = None if block_size is None else block_size - context_window
        slices = block_slices(stream.item_offsets, mode, size)
        self.slices = slices if size is None or mode == "none" else _fit(slices, size, drop=compat == "fairseq")

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def lengths(self) -> np.ndarray:
        """Targets in each block, `(num_blocks,)` int64."""
        return self.slices[:, 1] - self.slices[:, 0]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start, stop = self.slices[index]
        context = min(self.context_window, start)
        first = start - context
        if first > 0:
            tokens = self.stream.read(first - 1, stop)
        else:
            tokens = np.concatenate([[self.stream.vocabulary.eos_id], self.stream.read(0, stop)])
        inputs, labels = tokens[:-1], tokens[1:].copy()
        labels[:context] = IGNORED
        if self.compat:
            labels[labels == PAD] = IGNORED
        return {"input_ids": torch.from_numpy(inputs), "shift_labels": torch.from_numpy(labels)}


def block_slices(item_offsets: np.ndarray, mode: Mode, block_size: int | None) -> np.ndarray:
    """Where fairseq's blocks begin and end in the stream; except in mode "none" they may be longer than `block_size`.

    Args:
        item_offsets: Where each item begins, and the end of the last, `(num_items + 1,)`.
        mode: See `Blocks`.
        block_size: Tokens in a block; not used by mode "eos".

    Returns:
        `(num_blocks, 2)` int64.

    Raises:
        ValueError: There is no such mode.
    """
    offsets = np.asarray(item_offsets, dtype=np.int64)
    if mode == "eos":
        slices = np.stack([offsets[:-1], offsets[1:]], axis=1)
        return slices[slices[:, 1] > slices[:, 0]]
    assert block_size is not None
    if mode == "none":
        starts = np.arange(0, offsets[-1], block_size)
        return np.stack([starts, np.minimum(starts + block_size, offsets[-1])], axis=1)
    if mode == "complete":
        return _complete(offsets, block_size)
    if mode == "complete_doc":
        # Empty lines divide the corpus; between two of them the rule is that of "complete".
        empty = np.flatnonzero(np.diff(offsets) == 1)
        bounds = zip([0, *(empty + 1)], [*empty, len(offsets) - 1], strict=True)
        parts = [_complete(offsets[first : last + 1], block_size) for first, last in bounds if last > first]
        slices = np.concatenate(parts) if parts else np.empty((0, 2), dtype=np.int64)
        return slices[slices[:, 1] - slices[:, 0] > 1]
    raise ValueError(f"mode must be 'none', 'complete', 'complete_doc' or 'eos', got {mode!r}")


def _complete(offsets: np.ndarray, block_size: int) -> np.ndarray:
    """As many whole items in each block as fit, and at least one token."""
    slices = []
    start, end = int(offsets[0]), int(offsets[-1])
    while start < end:
        # The last item end within the block, or, where one item exceeds it, the first one after it.
        fitting = np.searchsorted(offsets, start + block_size, side="right") - 1
        stop = int(offsets[fitting])
        if stop <= start:
            stop = int(offsets[np.searchsorted(offsets, start, side="right")])
        slices.append((start, stop))
        start = stop
    return np.array(slices, dtype=np.int64).reshape(-1, 2)


def _fit(slices: np.ndarray, block_size: int, *, drop: bool) -> np.ndarray:
    """Divide, or drop, blocks that are too long."""
    is_long = slices[:, 1] - slices[:, 0] > block_size
    if not is_long.any():
        return slices
    if drop:
        return slices[~is_long]
    warnings.warn(f"{is_long.sum()} of {len(slices)} blocks exceed {block_size} tokens and are divided", stacklevel=3)
    starts = [np.arange(start, stop, block_size) for start, stop in slices]
    stops = [np.append(start[1:], stop) for start, (_, stop) in zip(starts, slices, strict=True)]
    return np.stack([np.concatenate(starts), np.concatenate(stops)], axis=1)


def collate(examples: Sequence[dict[str, torch.Tensor]], pad_id: int = PAD) -> dict[str, torch.Tensor]:
    """Stack examples of different lengths, filled up on the right.

    Args:
        examples: From `Blocks` or `MaskedBlocks`.
        pad_id: Fills `input_ids`; labels are filled with -100.

    Returns:
        `input_ids` and the labels of the examples, `(batch, length)` int64; only when something was filled also
        `attention_mask`, `(batch, length)` int64 with 1 for real tokens.
    """
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(
            [example[name] for example in examples],
            batch_first=True,
            padding_value=pad_id if name == "input_ids" else IGNORED,
        )
        for name in examples[0]
    }
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    if (lengths < lengths.max()).any():
        batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return batch
