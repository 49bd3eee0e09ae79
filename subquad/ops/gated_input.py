"""The forget gate of a gated linear recurrence with a lower bound, and the inputs that it lets through.

    λ = γ + (1 − γ) σ(z)        forget gate, from logits z and lower bound γ
    w = (1 − λ) ⊙ silu(x)       gated input; complex: 1 − λ for real and imaginary parts alike

Precision: float64 in float64, everything else in float32; 1 − λ is (1 − γ) σ(−z), exact where λ is near 1.

| backend   | what it is                       | gradients |
| reference | the formula                      | x, logits, lower bound (autograd, any order) |
| numba     | compiled loop, one pass (CPU)    | x, logits, lower bound (hand-written; of higher order by the formula) |

With a the gradient of w and g that of λ:  e = g − Σ_parts a ⊙ silu(x);  ∂z = e (1 − γ) σ(z) σ(−z);  ∂γ = Σ e σ(−z).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.ops.backends import choose, differentiate
from subquad.ops.gated_product import SMALL
from subquad.ops.precision import accumulator


def forget_gate(logits: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """The forget gate λ = γ + (1 − γ) σ(z) and its complement 1 − λ, of the shape of the logits z.

    Both in float32 at least, and 1 − λ as (1 − γ) σ(−z): half precision knows no number between 0.996 and 1, where
    upper layers live.

    Args:
        logits: z (..., dim).
        lower_bound: γ (dim,), or None for 0.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    bound = logits.new_zeros(()) if lower_bound is None else lower_bound.to(logits.dtype)
    return bound + (1 - bound) * torch.sigmoid(logits), (1 - bound) * torch.sigmoid(-logits)


def gated_input(
    x: Tensor, logits: Tensor, lower_bound: Tensor | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The gated inputs and the forget gate of a recurrence (HGRN, arXiv 2311.04823, section 3.2).

    Args:
        x: (batch, length, dim), or (batch, length, 2·dim), all real parts before all imaginary ones.
        logits: z (batch, length, dim).
        lower_bound: γ (dim,), or one for all channels (), or None for 0.
        backend: "auto", "numba" or "reference"; compilers are given the formula, which they fuse themselves.

    Returns:
        (1 − λ) ⊙ silu(x), shape of `x`, and λ, shape of `logits`, float32 or float64.

    Raises:
        ValueError: If the shapes do not fit or the backend cannot run.
    """
    if logits.ndim != 3:
        raise ValueError(f"`logits` must be (batch, length, dim), got {tuple(logits.shape)}")
    width = logits.shape[-1]
    if x.shape[:-1] != logits.shape[:-1] or x.shape[-1] not in (width, 2 * width):
        raise ValueError(
            f"`x` must be {tuple(logits.shape)}, as `logits`, or twice as wide if complex, got {tuple(x.shape)}"
        )
    if lower_bound is not None and lower_bound.shape not in ((width,), ()):
        raise ValueError(f"`lower_bound` must be ({width},) or one number, got {tuple(lower_bound.shape)}")
    chosen = choose("gated_input", backend, x.device)
    if chosen == "reference" or torch.compiler.is_compiling() or (backend == "auto" and x.numel() <= SMALL):
        return _formula(x, logits, lower_bound)
    bound = logits.new_zeros(()) if lower_bound is None else lower_bound
    return _gated_input(x, logits, bound.to(accumulator(logits)).expand(width))


def _formula(x: Tensor, logits: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    decay, complement = forget_gate(logits, lower_bound)
    inputs = F.silu(x.to(decay.dtype)).unflatten(-1, (-1, logits.shape[-1]))
    return (inputs * complement.unsqueeze(-2)).flatten(-2), decay


@torch.library.custom_op("subquad::gated_input", mutates_args=())
def _gated_input(x: Tensor, logits: Tensor, lower_bound: Tensor) -> tuple[Tensor, Tensor]:
    from subquad.ops import elementwise_numba

    return elementwise_numba.gated_input(x, logits, lower_bound)


@_gated_input.register_fake
def _(x, logits, lower_bound):
    return lower_bound.new_empty(x.shape), lower_bound.new_empty(logits.shape)


@torch.library.custom_op("subquad::gated_input_backward", mutates_args=())
def _gated_input_backward(
    grad_inputs: Tensor, grad_decay: Tensor, x: Tensor, logits: Tensor, lower_bound: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from subquad.ops import elementwise_numba

    grad_x, grad_logits, grad_bound = elementwise_numba.gated_input_backward(
        grad_inputs, grad_decay, x, logits, lower_bound
    )
    return grad_x.to(x.dtype), grad_logits.to(logits.dtype), grad_bound


@_gated_input_backward.register_fake
def _(grad_inputs, grad_decay, x, logits, lower_bound):
    return x.new_empty(x.shape), logits.new_empty(logits.shape), lower_bound.new_empty(lower_bound.shape)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, *gradients):
    return differentiate(ctx, gradients, _formula, _gated_input_backward)


_gated_input.register_autograd(_differentiate, setup_context=_save)
