"""The product of gated units: one branch times the SiLU of the other.

    y = x ⊙ silu(z),   silu(z) = z σ(z)

Precision: float64 in float64, everything else in float32. The branches are all that is kept for the backward pass.

| backend   | what it is                       | gradients |
| reference | the formula                      | x, gate (autograd, any order) |
| numba     | compiled loop, one pass (CPU)    | x, gate (hand-written; higher orders by the formula) |
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.ops.backends import choose, differentiate
from subquad.ops.precision import accumulator

SMALL = 2**14
"""Up to so many numbers `auto` takes the formula: calling a registered operator costs more than it."""


def gated_product(x: Tensor, gate: Tensor, *, backend: str = "auto") -> Tensor:
    """Multiply `x` by the SiLU of `gate` (Shazeer 2020, arXiv 2002.05202, equation 6).

    Args:
        x: (..., dim).
        gate: Shape of `x`; fastest in the same order in memory.
        backend: "auto", "numba" or "reference"; compilers are given the formula, which they fuse themselves.

    Returns:
        y, of the shape of `x` and of the wider dtype.

    Raises:
        ValueError: If the shapes differ or the backend cannot run.
    """
    if x.shape != gate.shape:
        raise ValueError(f"`gate` must be {tuple(x.shape)}, as `x`, got {tuple(gate.shape)}")
    chosen = choose("gated_product", backend, x.device)
    if chosen == "reference" or torch.compiler.is_compiling() or (backend == "auto" and x.numel() <= SMALL):
        return _formula(x, gate)
    return _gated_product(x, gate)


def _formula(x: Tensor, gate: Tensor) -> Tensor:
    return x * F.silu(gate)


@torch.library.custom_op("subquad::gated_product", mutates_args=())
def _gated_product(x: Tensor, gate: Tensor) -> Tensor:
    from subquad.ops import elementwise_numba

    dtype = torch.promote_types(x.dtype, gate.dtype)
    return elementwise_numba.product(x, gate, accumulator(x.new_empty(0, dtype=dtype))).to(dtype)


@_gated_product.register_fake
def _(x, gate):
    return torch.empty_like(gate, dtype=torch.promote_types(x.dtype, gate.dtype))


@torch.library.custom_op("subquad::gated_product_backward", mutates_args=())
def _gated_product_backward(gradient: Tensor, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    from subquad.ops import elementwise_numba

    grad_x, grad_gate = elementwise_numba.product_backward(gradient, x, gate, accumulator(gradient))
    return grad_x.to(x.dtype), grad_gate.to(gate.dtype)


@_gated_product_backward.register_fake
def _(gradient, x, gate):
    return torch.empty_like(gate, dtype=x.dtype), torch.empty_like(gate)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, *gradients):
    return differentiate(ctx, gradients, _formula, _gated_product_backward)


_gated_product.register_autograd(_differentiate, setup_context=_save)
