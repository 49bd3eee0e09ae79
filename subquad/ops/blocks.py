"""Sequences cut into blocks, and blocks joined to sequences: two linear maps, each the transpose of the other.

They move numbers and compute nothing, so they have one implementation. As registered operators they keep the views of
reshaping, from which compilers derive conditions on the length, to themselves.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def cut(x: Tensor, places: Tensor | None, blocks: int, block_size: int) -> Tensor:
    """As `to_blocks`, without a gradient, and without a copy where `x` has the heads before the length in memory."""
    capacity = blocks * block_size
    rows = x.transpose(1, 2)
    if places is not None:
        rows = x.new_zeros(*rows.shape[:2], capacity + 1, x.shape[3]).scatter_(
            2, places.clamp_max(capacity)[:, None, :, None].expand_as(rows), rows
        )[:, :, :-1]
    elif x.shape[1] != capacity:
        rows = torch.cat([rows, rows.new_zeros(*rows.shape[:2], capacity - x.shape[1], x.shape[3])], dim=2)
    return rows.unflatten(2, (blocks, block_size)).flatten(0, 2)


def join(blocks: Tensor, places: Tensor | None, batch: int, length: int, heads: int) -> Tensor:
    """As `from_blocks`, without a gradient, and without a copy where the blocks are full."""
    dim = blocks.shape[-1]
    if blocks.numel() == 0:
        return heads_first(blocks, (batch, length, heads, dim)).zero_()
    rows = blocks.reshape(batch, heads, -1, dim)
    if places is None:
        return rows[:, :, :length].contiguous().transpose(1, 2)
    there = (places < rows.shape[2])[:, None, :, None]
    index = places.clamp_max(rows.shape[2] - 1)[:, None, :, None].expand(-1, heads, -1, dim)
    return (rows.gather(2, index) * there).transpose(1, 2)


def heads_first(x: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty (batch, length, heads, dim) of this shape and the dtype of `x`, heads before the length in memory."""
    batch, length, heads, dim = shape
    return x.new_empty(batch, heads, length, dim).transpose(1, 2)


@torch.library.custom_op("subquad::to_blocks", mutates_args=())
def to_blocks(x: Tensor, places: Tensor | None, blocks: int, block_size: int) -> Tensor:
    """Cut rows into blocks, with zeros where nothing is placed.

    Args:
        x: (batch, length, heads, dim).
        places: (batch, length) int64, where each position goes in a row of `blocks` · `block_size` places, beyond its
            end: nowhere. No two go to the same place. Default: position i to place i.
        blocks: Blocks of a row.
        block_size: Places of a block.

    Returns:
        (batch · heads · blocks, block_size, dim).
    """
    result = cut(x, places, blocks, block_size)
    # An operator's result shares no memory with its arguments.
    return result.clone() if result.data_ptr() == x.data_ptr() else result


@torch.library.custom_op("subquad::from_blocks", mutates_args=())
def from_blocks(blocks: Tensor, places: Tensor | None, batch: int, length: int, heads: int) -> Tensor:
    """Read rows from blocks, with zeros where a position is nowhere.

    Args:
        blocks: (batch · heads · blocks, block_size, dim).
        places: (batch, length) int64, as in `to_blocks`.
        batch: Rows.
        length: Positions of a row.
        heads: Heads.

    Returns:
        (batch, length, heads, dim), heads before the length in memory.
    """
    result = join(blocks, places, batch, length, heads)
    return result.clone() if result.data_ptr() == blocks.data_ptr() else result


@to_blocks.register_fake
def _(x, places, blocks, block_size):
    return x.new_empty(x.shape[0] * x.shape[2] * blocks, block_size, x.shape[3])


@from_blocks.register_fake
def _(blocks, places, batch, length, heads):
    return heads_first(blocks, (batch, length, heads, blocks.shape[2]))


def _save_cut(ctx, inputs, output):
    x, places, _, _ = inputs
    ctx.shape = x.shape
    ctx.save_for_backward(places)


def _save_joined(ctx, inputs, output):
    blocks, places, batch, _, heads = inputs
    ctx.blocks, ctx.block_size = blocks.shape[0] // (batch * heads), blocks.shape[1]
    ctx.save_for_backward(places)


def _differentiate_cut(ctx, gradient):
    return from_blocks(gradient, *ctx.saved_tensors, *ctx.shape[:3]), None, None, None


def _differentiate_joined(ctx, gradient):
    return to_blocks(gradient, *ctx.saved_tensors, ctx.blocks, ctx.block_size), None, None, None, None


to_blocks.register_autograd(_differentiate_cut, setup_context=_save_cut)
from_blocks.register_autograd(_differentiate_joined, setup_context=_save_joined)
