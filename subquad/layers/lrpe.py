"""Relative positions by rotation, for attention with and without a softmax: rotary positions and LRPE.

Both turn the pair of features (2m, 2m + 1) of a query or key at position t by the angle t·θ_m, so that a product of the
two depends on the difference of their positions alone.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from subquad.ops.blocks import heads_first
from subquad.registry import unknown_name


def rotate_pairs(x: Tensor, angles: Tensor, direction: Tensor | None = None) -> Tensor:
    """Turn the features (2m, 2m + 1) of `x` (..., dim) by `angles` (..., dim // 2), which broadcast against it.

    An odd last feature stays as it is. Computed in float32 at least, returned in the dtype of `x`. Queries and keys
    (batch, length, heads, dim) come back with the heads before the length in memory, as attention wants them.

    Args:
        x: (..., dim).
        angles: (..., dim // 2).
        direction: Unit vector (dim,); `x` is reflected at the plane normal to it before it is turned.
    """
    angles = angles.to(_widen(x).dtype)
    fixed = direction is None or not direction.requires_grad
    if x.ndim == 4 and x.shape[-1] % 2 == 0 and fixed and not torch.compiler.is_compiling():
        return _Rotation.apply(x, angles, direction)
    # Real arithmetic, which compilers fuse; they have no complex one.
    wide = _widen(x) if direction is None else reflect(x, direction)
    first, second = wide[..., : wide.shape[-1] // 2 * 2].unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
    if turned.shape[-1] != x.shape[-1]:
        turned = torch.cat([turned, wide[..., -1:]], dim=-1)
    return turned.to(x.dtype)


def reflect(x: Tensor, direction: Tensor) -> Tensor:
    """Reflect `x` (..., dim) at the plane that is normal to the unit vector r, `direction` (dim,): x − 2 (x·r) r.

    Computed and returned in float32 at least.
    """
    wide = _widen(x)
    direction = direction.to(wide.dtype)
    return torch.addcmul(wide, (wide * direction).sum(-1, keepdim=True), direction, value=-2)


class _Rotation(torch.autograd.Function):
    """`rotate_pairs` of (batch, length, heads, even dim) in complex arithmetic, in few passes over the memory.

    Reflection and rotation are orthogonal: the gradient of x is the gradient of y, turned back and reflected. That of
    an angle is Σ Im(conj(y) · gradient of y), y a pair of features as a complex number, over all that it turns.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, angles: Tensor, direction: Tensor | None) -> Tensor:
        wide = _widen(x)
        rotation = torch.polar(torch.ones_like(angles), angles)
        y = heads_first(wide, wide.shape)
        if direction is None:
            torch.mul(_complex(wide), rotation, out=_complex(y))
        else:
            direction = direction.to(wide.dtype)
            torch.addcmul(wide, _components(wide, direction), direction, value=-2, out=y)
            _complex(y).mul_(rotation)
        y = y.to(x.dtype)
        ctx.save_for_backward(y, rotation, direction)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        y, rotation, direction = ctx.saved_tensors
        wide = _widen(gradient)
        by_angles = None
        if ctx.needs_input_grad[1]:
            products = _complex(_widen(y)).conj_physical().mul_(_complex(wide))
            by_angles = products.imag.sum_to_size(rotation.shape)
        by_x = wide.new_empty(wide.shape)
        torch.mul(_complex(wide), rotation.conj_physical(), out=_complex(by_x))
        if direction is not None:
            by_x.addcmul_(_components(by_x, direction), direction, value=-2)
        return by_x.to(y.dtype), by_angles, None


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _complex(x: Tensor) -> Tensor:
    """The pairs of features of `x` (..., dim) as complex numbers (..., dim // 2), in the memory of `x` if it can be."""
    strides = x.stride()
    fits = strides[-1] == 1 and not any(stride % 2 for stride in (*strides[:-1], x.storage_offset()))
    return torch.view_as_complex((x if fits else x.contiguous()).unflatten(-1, (-1, 2)))


def _components(x: Tensor, direction: Tensor) -> Tensor:
    """The products (..., 1) of `x` (..., dim) with `direction` (dim,)."""
    with torch.autocast(x.device.type, enabled=False):
        return (x @ direction).unsqueeze(-1)


class RotaryPositions(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864), θ_m = 10000^(−2m/d). There are no parameters.

    Args:
        dim: Features d of a query or key; where it is odd the last one is not turned, and d is the even number below.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def frequencies(self, device: torch.device) -> Tensor:
        """Angles per position (dim // 2,), float64."""
        half = self.dim // 2
        return 10000.0 ** (-torch.arange(half, device=device, dtype=torch.float64) / max(half, 1))

    def angles(self, positions: Tensor) -> Tensor:
        """Angles (..., dim // 2) of `positions` (...), in float64 and reduced: late ones are inexact in float32."""
        return (positions.double().unsqueeze(-1) * self.frequencies(positions.device)).remainder(2 * math.pi)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """Encode queries or keys.

        Args:
            x: (..., dim).
            angles: What `angles` returned; it broadcasts against `x`.

        Returns:
            Shape and dtype of `x`; computed in float32 at least.
        """
        return rotate_pairs(x, angles)


class LRPE(RotaryPositions):
    """Linearised relative position encoding as TransNormer has it (arXiv 2210.10340, section 4): reflect, then turn.

        x ↦ R_t (x − 2 (x·r) r),   R_t the rotation by t·θ

    θ is learned, the unit vector r drawn once and kept.

    Args:
        dim: Features of a query or key; where it is odd the last one is reflected alone.
    """

    def __init__(self, dim: int):
        super().__init__(dim)
        self.theta = nn.Parameter(torch.empty(dim // 2))
        self.theta._no_weight_decay = True  # type: ignore[attr-defined]
        self.reflection = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """θ_m = 10000^(−2m/d), and a random direction."""
        exponents = torch.arange(self.dim // 2, device=self.theta.device) * (-2.0 / self.dim)
        with torch.no_grad():
            self.theta.copy_(10000.0**exponents)
            nn.init.normal_(self.reflection)
            self.reflection /= torch.linalg.vector_norm(self.reflection)

    def frequencies(self, device: torch.device) -> Tensor:
        """Angles per position (dim // 2,), float64."""
        return self.theta.double()

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """Encode queries or keys, as in `RotaryPositions`."""
        return rotate_pairs(x, angles, self.reflection)


RELATIVE_POSITIONS: dict[str, type[RotaryPositions]] = {"lrpe": LRPE, "rotary": RotaryPositions}


def build_relative_positions(name: str | None, dim: int) -> RotaryPositions | None:
    """The relative positions called `name` for heads of `dim` features; None is none.

    Raises:
        ValueError: If there are none of this name; the message names the nearest.
    """
    if name is None:
        return None
    if name not in RELATIVE_POSITIONS:
        raise ValueError(unknown_name("relative positions", name, RELATIVE_POSITIONS))
    return RELATIVE_POSITIONS[name](dim)
