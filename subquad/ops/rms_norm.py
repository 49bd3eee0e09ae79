"""Root-mean-square norm with the epsilon outside of the root, as the published models have it.

    y = x / (r + 1e-8),   r = ‖x‖₂ / √d,   d numbers in a row

Precision: float64 in float64, everything else in float32; y has the dtype of x. For the backward pass x is kept
(torch: and r).

| backend   | what it is                       | gradient |
| reference | the formula                      | autograd, any order |
| torch     | the formula                      | hand-written, half the passes over memory; first order |
| numba     | compiled loops, one pass (CPU)   | hand-written; of higher order by the formula |

With s = r + 1e-8 and G the gradient of y, that of x is (G − x (G·x)/(d r s)) / s; at x = 0 it is G/s.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from subquad.ops.backends import choose, differentiate
from subquad.ops.gated_product import SMALL
from subquad.ops.precision import accumulator

EPSILON = 1e-8


def rms_norm(x: Tensor, *, num_axes: int = 1, backend: str = "auto") -> Tensor:
    """Divide rows by their root mean square (TNN, arXiv 2305.04749; TransNormer, arXiv 2210.10340).

    Args:
        x: (..., dim), or what heads return, (batch, length, heads, head_dim).
        num_axes: How many axes at the end are a row; 2 for that of all heads.
        backend: "auto", "numba", "torch" or "reference"; compilers are given the formula, which they fuse themselves.

    Returns:
        y, shape and dtype of `x`. Compiled loops read heads that come before the length in memory without a copy, and
        their y is contiguous.

    Raises:
        ValueError: If `x` has fewer axes, or the backend is unknown or cannot run.
    """
    if not 1 <= num_axes <= x.ndim:
        raise ValueError(f"`num_axes` must be from 1 to {x.ndim}, the axes of `x`, got {num_axes}")
    chosen = choose("rms_norm", backend, x.device)
    if chosen == "reference" or torch.compiler.is_compiling():
        return _formula(x.flatten(-num_axes)).reshape(x.shape)
    if chosen == "torch" or (backend == "auto" and x.numel() <= SMALL):
        return _RMSNorm.apply(x.flatten(-num_axes)).reshape(x.shape)
    return _rms_norm(x, num_axes)


def _root_mean_square(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5


def _formula(x: Tensor) -> Tensor:
    wide = x.to(accumulator(x))
    return (wide / (_root_mean_square(wide) + EPSILON)).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        wide = x.to(accumulator(x))
        root = _root_mean_square(wide)
        ctx.save_for_backward(x, root)
        return (wide / (root + EPSILON)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, root = ctx.saved_tensors
        wide, gradient = x.to(root.dtype), gradient.to(root.dtype)
        scale = root + EPSILON
        along = (gradient * wide).sum(-1, keepdim=True) / (x.shape[-1] * root * scale)
        along.masked_fill_(root == 0, 0)
        return torch.addcmul(gradient, wide, along, value=-1).div_(scale).to(x.dtype)


@torch.library.custom_op("subquad::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, num_axes: int) -> Tensor:
    from subquad.ops import rms_norm_numba

    return rms_norm_numba.forward(x.to(accumulator(x)), num_axes, EPSILON).to(x.dtype)


@_rms_norm.register_fake
def _(x, num_axes):
    return x.new_empty(x.shape)


@torch.library.custom_op("subquad::rms_norm_backward", mutates_args=())
def _rms_norm_backward(gradient: Tensor, x: Tensor, num_axes: int) -> Tensor:
    from subquad.ops import rms_norm_numba

    wide = accumulator(x)
    return rms_norm_numba.backward(gradient.to(wide), x.to(wide), num_axes, EPSILON).to(x.dtype)


@_rms_norm_backward.register_fake
def _(gradient, x, num_axes):
    return torch.empty_like(x)


def _save(ctx, inputs, output):
    x, ctx.num_axes = inputs
    ctx.save_for_backward(x)


def _differentiate(ctx, gradient):
    def formula(x):
        return _formula(x.flatten(-ctx.num_axes)).reshape(x.shape)

    def backward(gradient, x):
        return (_rms_norm_backward(gradient, x, ctx.num_axes),)

    return *differentiate(ctx, (gradient,), formula, backward), None


_rms_norm.register_autograd(_differentiate, setup_context=_save)
