"""Absolute and rotary positions."""

import math

import torch
from torch import Tensor, nn


class SinusoidalPositions(nn.Module):
    """Fixed position vectors [sin(p ω_0 … ω_{d/2−1}), cos(same)] with ω_k = 10000^(−k/(d/2−1)).

    The form of fairseq and tensor2tensor: sines and cosines are concatenated, not interleaved. Nothing is stored.

    Args:
        dim: Features, at least 4; an odd dim ends in a zero column.
    """

    def __init__(self, dim: int):
        super().__init__()
        if dim < 4:
            raise ValueError(f"sinusoidal positions need at least 4 features, got {dim}")
        self.dim = dim

    def forward(self, positions: Tensor) -> Tensor:
        """Vectors (..., dim) of integer `positions` (...), float32; negative positions have the zero vector."""
        half = self.dim // 2
        steps = torch.arange(half, dtype=torch.float32, device=positions.device)
        frequencies = torch.exp(steps * -(math.log(10000.0) / (half - 1)))
        angles = positions.unsqueeze(-1).float() * frequencies
        vectors = torch.cat([angles.sin(), angles.cos()], dim=-1)
        if self.dim % 2:
            vectors = nn.functional.pad(vectors, (0, 1))
        return vectors * (positions >= 0).unsqueeze(-1)


def apply_rotary(x: Tensor, offset: int = 0, base: float = 10000.0) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): rotate pairs of features by the position times a frequency.

    Args:
        x: (batch, heads, length, head_dim), head_dim even; pairs are (i, i + head_dim/2).
        offset: Position of the first token.
        base: Longest wavelength is 2π·base.

    Returns:
        The rotated tensor, shape and dtype of `x`; angles are computed in float32 at least.
    """
    length, half = x.shape[-2], x.shape[-1] // 2
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=wide) / half)
    angles = (torch.arange(length, device=x.device, dtype=wide) + offset).unsqueeze(-1) * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = x.to(wide).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
