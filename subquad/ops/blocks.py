"""Sequences cut into blocks, and blocks joined to sequences: two linear maps, each the transpose of the other.

They move numbers and compute nothing, so they have one implementation. As registered operators they keep the views of
reshaping, from which compilers derive conditions on the length, to themselves.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cut(x: Tensor, places: Tensor | None, blocks: int, block_size: int) -> Tensor:
    """As `to_blocks`, without a gradient."""
    capacity = blocks * block_size
    if places is not None:
        rows = x.new_zeros(x.shape[0], capacity + 1, *x.shape[2:])
        x = rows.scatter_(1, places.clamp_max(capacity)[:, :, None, None].expand_as(x), x)[:, :-1]
    elif x.shape[1] != capacity:
        x = F.pad(x, (0, 0, 0, 0, 0, capacity - x.shape[1]))
    split = x.unflatten(1, (blocks, block_size)).permute(1, 0, 3, 2, 4)
    return split.clone(memory_format=torch.contiguous_format).view(-1, block_size, x.shape[-1])


def join(blocks: Tensor, places: Tensor | None, batch: int, length: int, heads: int) -> Tensor:
    """As `from_blocks`, without a gradient."""
    dim = blocks.shape[-1]
    if blocks.numel() == 0:
        return blocks.new_zeros(batch, length, heads, dim)
    split = blocks.unflatten(0, (-1, batch, heads)).permute(1, 0, 3, 2, 4)
    rows = split.clone(memory_format=torch.contiguous_format).view(batch, -1, heads, dim)
    if places is None:
        return rows[:, :length].contiguous()
    index = places.clamp_max(rows.shape[1] - 1)[:, :, None, None].expand(-1, -1, heads, dim)
    return rows.gather(1, index) * (places < rows.shape[1])[:, :, None, None]


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
        (blocks · batch · heads, block_size, dim).
    """
    return cut(x, places, blocks, block_size)


@torch.library.custom_op("subquad::from_blocks", mutates_args=())
def from_blocks(blocks: Tensor, places: Tensor | None, batch: int, length: int, heads: int) -> Tensor:
    """Read rows from blocks, with zeros where a position is nowhere.

    Args:
        blocks: (blocks · batch · heads, block_size, dim).
        places: (batch, length) int64, as in `to_blocks`.
        batch: Rows.
        length: Positions of a row.
        heads: Heads.

    Returns:
        (batch, length, heads, dim).
    """
    return join(blocks, places, batch, length, heads)


@to_blocks.register_fake
def _(x, places, blocks, block_size):
    return x.new_empty(blocks * x.shape[0] * x.shape[2], block_size, x.shape[3])


@from_blocks.register_fake
def _(blocks, places, batch, length, heads):
    return blocks.new_empty(batch, length, heads, blocks.shape[2])


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
