"""Relative positions by rotation, for attention with and without a softmax: rotary positions and LRPE.

Both turn the pair of features (2m, 2m + 1) of a query or key at position t by the angle t·θ_m, so that a product of the
two depends on the difference of their positions alone.
"""

import math

import torch
from torch import Tensor, nn

from subquad.ops import rotate_pairs
from subquad.registry import unknown_name


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

    def forward(self, x: Tensor, angles: Tensor, elu: float | None = None) -> Tensor:
        """Encode queries or keys.

        Args:
            x: (..., dim).
            angles: What `angles` returned; it broadcasts against `x`.
            elu: The constant c of the feature map c + elu(x), which comes first; default: no feature map.

        Returns:
            Shape and dtype of `x`; computed in float32 at least.
        """
        return rotate_pairs(x, angles, elu=elu)


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

    def forward(self, x: Tensor, angles: Tensor, elu: float | None = None) -> Tensor:
        """Encode queries or keys, as in `RotaryPositions`."""
        return rotate_pairs(x, angles, self.reflection, elu=elu)


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
