"""Norms by name: over the last axis, and one over positions.

The root-mean-square norms add their epsilon to the root, x / (‖x‖₂/√d + 1e-8), as the published models do (TNN,
arXiv 2305.04749; TransNormer, arXiv 2210.10340). They are computed in float32 at least: 1e-8 underflows in float16.
Those with an epsilon in their name have it inside the root, x / √(mean(x²) + ε), as most language models do.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from subquad.ops import rms_norm
from subquad.registry import unknown_name


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _epsilon_rms_norm(x: Tensor, eps: float) -> Tensor:
    wide = _widen(x)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class SimpleRMSNorm(nn.Module):
    """Root-mean-square norm without parameters, over the last axis of (..., dim)."""

    def __init__(self, dim: int):
        super().__init__()

    def forward(self, x: Tensor, num_axes: int = 1) -> Tensor:
        """Normalise `x` (..., dim), or that of so many axes at the end, whose product is `dim`."""
        return rms_norm(x, num_axes=num_axes)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a scale (and an offset, if `bias`), over the last axis of (..., dim)."""

    def __init__(self, dim: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., dim)."""
        y = self.weight * rms_norm(x)
        return y if self.bias is None else y + self.bias


class GatedRMSNorm(nn.Module):
    """Root-mean-square norm times a gate on its input, scale · norm(x) · σ(gate · x), over the last axis."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.gate = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., dim)."""
        return self.weight * rms_norm(x) * torch.sigmoid(self.gate * x)


class EpsilonRMSNorm(nn.Module):
    """weight ⊙ x / √(mean(x²) + eps) over the last axis of (..., dim) (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., dim)."""
        return self.weight * _epsilon_rms_norm(x, self.eps)


class ScaleNorm(nn.Module):
    """g · x / √(mean(x²) + 1e-5) with one learned scalar g, over the last axis of (..., dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., dim)."""
        return self.weight * _epsilon_rms_norm(x, 1e-5)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of each feature over all positions of (batch, length, dim) (Ioffe & Szegedy 2015, arXiv 1502.03167).

    In training the statistics are those of the batch, which a running average keeps for evaluation (momentum 0.1).
    Padding is left out of them, and has the output zero in training. Under gradient checkpointing each batch enters the
    running average twice, because the forward pass is run twice.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            x: (batch, length, dim).
            mask: (batch, length) bool or longer, True for real tokens; the last `length` columns are those of `x`.
        """
        if mask is None or not self.training:
            return super().forward(x.flatten(0, -2)).view_as(x)
        mask = mask[:, -x.shape[1] :]
        y = torch.zeros_like(x)
        y[mask] = super().forward(x[mask])
        return y


def apply_norm(norm: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Normalise `x` (batch, length, dim); a norm over positions is told by `mask` which of them are padding."""
    return norm(x, mask) if isinstance(norm, BatchNorm) else norm(x)


def apply_norm_to_heads(norm: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Normalise `x` (batch, length, heads, head_dim) over all heads; y is (batch, length, heads · head_dim)."""
    if isinstance(norm, SimpleRMSNorm):
        # Heads that come before the length in memory are read where they are.
        return norm(x, num_axes=2).flatten(-2)
    return apply_norm(norm, x.flatten(-2), mask)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layernorm": nn.LayerNorm,
    "rmsnorm": RMSNorm,
    "rmsnorm_1e-5": functools.partial(EpsilonRMSNorm, eps=1e-5),
    "rmsnorm_1e-6": functools.partial(EpsilonRMSNorm, eps=1e-6),
    "simple_rmsnorm": SimpleRMSNorm,
    "gated_rmsnorm": GatedRMSNorm,
    "scalenorm": ScaleNorm,
    "batchnorm": BatchNorm,
}


def build_norm(name: str | None, dim: int) -> nn.Module:
    """The norm called `name` over `dim` features; None is the identity.

    Raises:
        ValueError: If there is no such norm; the message names the nearest one.
    """
    if name is None:
        return nn.Identity()
    if name not in NORMS:
        raise ValueError(unknown_name("norm", name, NORMS))
    return NORMS[name](dim)
