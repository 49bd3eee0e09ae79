"""Positions by rotation: pairs of features are turned by angles, after a feature map and a reflection if wanted.

    y = R_α (z − 2 (z·r) r),   z = x, or c + elu(x);   R_α turns the features (2m, 2m + 1) by α_m

Precision: float64 in float64, everything else in float32; y has the dtype of x. Inputs are all that is kept for the
backward pass. In memory y has the heads before the length, as attention wants it.

| backend   | what it is                       | gradients |
| reference | the formula                      | x, angles, direction (autograd, any order) |
| numba     | compiled loop, one pass (CPU)    | x, angles (hand-written; of higher order by the formula) |

With G the gradient of y, H = R_{−α} G and f = z − 2 (z·r) r:  ∂x = elu'(x) ⊙ (H − 2 (H·r) r);
∂α_m = f_{2m} H_{2m+1} − f_{2m+1} H_{2m}, added up over all that an angle turns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.ops.backends import choose, differentiate
from subquad.ops.blocks import heads_first
from subquad.ops.gated_product import SMALL
from subquad.ops.precision import accumulator


def rotate_pairs(
    x: Tensor,
    angles: Tensor,
    direction: Tensor | None = None,
    *,
    elu: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Turn pairs of features by angles (Su et al. 2021, arXiv 2104.09864; arXiv 2210.10340, section 4).

    Features 2m and 2m + 1 are a pair; an odd last feature stays as it is.

    Args:
        x: (..., dim); compiled loops take (batch, length, heads, dim).
        angles: (..., dim // 2), broadcasting against `x`; for compiled loops the same for all heads, (length, 1,
            dim // 2) or (batch or 1, length, 1, dim // 2).
        direction: Unit vector (dim,); features are reflected at the plane normal to it before they are turned.
        elu: The constant c of the feature map c + elu(x), which comes before all; default: no feature map.
        backend: "auto", "numba" or "reference"; compilers are given the formula, which they fuse themselves.

    Returns:
        y, shape and dtype of `x`.

    Raises:
        ValueError: If the shapes do not fit or the backend cannot run.
    """
    if angles.shape[-1:] != (x.shape[-1] // 2,):
        pairs = x.shape[-1] // 2
        raise ValueError(f"`angles` must be (..., {pairs}) for pairs of {x.shape[-1]}, got {tuple(angles.shape)}")
    if direction is not None and direction.shape != x.shape[-1:]:
        raise ValueError(f"`direction` must be ({x.shape[-1]},), got {tuple(direction.shape)}")
    chosen = choose("rotate_pairs", backend, x.device)
    if chosen == "reference" or torch.compiler.is_compiling() or (backend == "auto" and x.numel() <= SMALL):
        return _formula(x, angles, direction, elu)
    of_rows = angles.unsqueeze(0) if angles.ndim == 3 else angles
    fits = x.ndim == 4 and of_rows.shape[:-1] in ((1, x.shape[1], 1), (x.shape[0], x.shape[1], 1))
    if not fits or (direction is not None and direction.requires_grad):
        if backend == "auto":
            return _formula(x, angles, direction, elu)
        raise ValueError(
            "backend 'numba' turns (batch, length, heads, dim) by angles of all heads, and learns no direction: "
            f"got {tuple(x.shape)} and {tuple(angles.shape)}"
        )
    return _rotate_pairs(x, of_rows.to(accumulator(x)), direction, elu)


def reflect(x: Tensor, direction: Tensor) -> Tensor:
    """Reflect `x` (..., dim) at the plane that is normal to the unit vector r, `direction` (dim,): x − 2 (x·r) r.

    Computed and returned in float32 at least.
    """
    wide = x.to(accumulator(x))
    direction = direction.to(wide.dtype)
    return torch.addcmul(wide, (wide * direction).sum(-1, keepdim=True), direction, value=-2)


def _formula(x: Tensor, angles: Tensor, direction: Tensor | None, elu: float | None = None) -> Tensor:
    wide = x.to(accumulator(x))
    if elu is not None:
        wide = F.elu(wide) + elu if elu else F.elu(wide)
    if direction is not None:
        wide = reflect(wide, direction)
    # Real arithmetic, which compilers fuse; they have no complex one.
    angles = angles.to(wide.dtype)
    first, second = wide[..., : wide.shape[-1] // 2 * 2].unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
    if turned.shape[-1] != x.shape[-1]:
        turned = torch.cat([turned, wide[..., -1:]], dim=-1)
    return turned.to(x.dtype)


@torch.library.custom_op("subquad::rotate_pairs", mutates_args=())
def _rotate_pairs(x: Tensor, angles: Tensor, direction: Tensor | None, elu: float | None) -> Tensor:
    from subquad.ops import elementwise_numba

    return elementwise_numba.rotate(x, angles, direction, elu).to(x.dtype)


@_rotate_pairs.register_fake
def _(x, angles, direction, elu):
    return heads_first(x, x.shape)


@torch.library.custom_op("subquad::rotate_pairs_backward", mutates_args=())
def _rotate_pairs_backward(
    gradient: Tensor, x: Tensor, angles: Tensor, direction: Tensor | None, elu: float | None
) -> tuple[Tensor, Tensor]:
    from subquad.ops import elementwise_numba

    grad_x, grad_angles = elementwise_numba.rotate_backward(gradient, x, angles, direction, elu)
    return grad_x.to(x.dtype), grad_angles


@_rotate_pairs_backward.register_fake
def _(gradient, x, angles, direction, elu):
    return x.new_empty(x.shape), angles.new_empty(angles.shape)


def _save(ctx, inputs, output):
    x, angles, direction, ctx.elu = inputs
    ctx.save_for_backward(x, angles, direction)


def _differentiate(ctx, gradient):
    def formula(x, angles, direction):
        return _formula(x, angles, direction, ctx.elu)

    def backward(gradient, x, angles, direction):
        return (*_rotate_pairs_backward(gradient, x, angles, direction, ctx.elu), None)

    return (*differentiate(ctx, (gradient,), formula, backward), None)


_rotate_pairs.register_autograd(_differentiate, setup_context=_save)
