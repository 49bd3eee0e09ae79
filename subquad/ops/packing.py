"""Sequences packed into one row, described by their boundaries `cu_seqlens` (num_sequences + 1,)."""

from itertools import pairwise

import torch
from torch import Tensor


def validate_cu_seqlens(cu_seqlens: Tensor, batch: int) -> None:
    """Hold shape and dtype of boundaries, and the batch, against what packing needs.

    Raises:
        ValueError: If they do not fit.
    """
    if batch != 1:
        raise ValueError(f"`cu_seqlens` needs batch size 1, got {batch}: flatten the batch first")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"`cu_seqlens` must be (num_sequences + 1,) int32 or int64, got {tuple(cu_seqlens.shape)} "
            f"{cu_seqlens.dtype}"
        )


def boundaries(cu_seqlens: Tensor, length: int) -> list[int]:
    """The boundaries as numbers: their values are only looked at where an op really runs.

    Raises:
        ValueError: If they do not rise from 0 to `length`.
    """
    numbers: list[int] = cu_seqlens.tolist()
    if numbers[0] != 0 or numbers[-1] != length or any(a > b for a, b in pairwise(numbers)):
        raise ValueError(f"`cu_seqlens` must rise from 0 to the length {length}, got {numbers}")
    return numbers


def block_rows(cu_seqlens: Tensor, length: int, block_size: int) -> Tensor:
    """Where each position of a packed row goes if every sequence begins with a block, and the blocks follow each other.

    Args:
        cu_seqlens: (num_sequences + 1,) int.
        length: Length of the packed row.
        block_size: Positions of a block.

    Returns:
        (length,) int64.
    """
    lengths = cu_seqlens.diff()
    blocks = (lengths + block_size - 1) // block_size
    shifts = (blocks.cumsum(0) - blocks) * block_size - cu_seqlens[:-1]
    return torch.arange(length, device=cu_seqlens.device) + shifts.repeat_interleave(lengths, output_size=length)
