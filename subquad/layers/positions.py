"""Absolute and rotary positions."""

import math

import torch
from torch import Tensor, nn


class SinusoidalPositions(nn.Module):
    """Fixed position vectors of sines and cosines (Vaswani et al. 2017, arXiv 1706.03762). Nothing is stored.

    Two forms are in use. Concatenated (fairseq, tensor2tensor): [sin(p ω_0 … ω_{d/2−1}), cos(same)] with
    ω_k = 10000^(−k/(d/2−1)). Interleaved (the paper, Long Range Arena): sin(p ω_0), cos(p ω_0), sin(p ω_1), … with
    ω_k = 10000^(−2k/d).

    Args:
        dim: Features, at least 4; with an odd dim the concatenated form ends in a zero column.
        interleaved: Whether sines and cosines alternate.
    """

    def __init__(self, dim: int, interleaved: bool = False):
        super().__init__()
        if dim < 4:
            raise ValueError(f"sinusoidal positions need at least 4 features, got {dim}")
        self.dim = dim
        self.interleaved = interleaved

    def forward(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Vectors (..., dim) of integer `positions` (...); negative positions have the zero vector.

        They are computed in float32 at least, and returned in `dtype`.
        """
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        half = (self.dim + 1) // 2 if self.interleaved else self.dim // 2
        steps = torch.arange(half, dtype=wide, device=positions.device)
        longest = self.dim / 2 if self.interleaved else half - 1
        angles = positions.unsqueeze(-1).to(wide) * torch.exp(steps * -(math.log(10000.0) / longest))
        if self.interleaved:
            vectors = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., : self.dim]
        else:
            vectors = torch.cat([angles.sin(), angles.cos()], dim=-1)
            vectors = nn.functional.pad(vectors, (0, self.dim % 2))
        return (vectors * (positions >= 0).unsqueeze(-1)).to(dtype)


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
