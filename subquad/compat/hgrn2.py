"""HGRN2 as published (arXiv 2404.07904): the token mixers of hgru2-pytorch.

One published map holds ours of values, queries and forget gates, in this order.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from subquad.compat.reference import Conversion, Rules, activation_name, check_options, norm_name, register_family
from subquad.mixers import HGRN2
from subquad.ops import gated_linear_attention

NAMES: Rules = [(r"^unit\.", ""), (r"^output_proj\.", "out_proj.")]


class UnscaledHGRN2(HGRN2):
    """Heads whose outputs are S_tᵀ q_t, not divided by √head_dim."""

    def readout(self, o: Tensor) -> Tensor:
        """The output (batch, length, dim) from those of all heads (batch, length, heads, head_dim)."""
        return super().readout(o * self.head_dim**0.5)


class Sequences(nn.Module):
    """A unit called as published: time first, with the lower bound as the second argument."""

    def __init__(self, unit: HGRN2):
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor, lower_bound: Tensor | float = 0.0) -> Tensor:
        """Mix `x` (length, batch, dim); `lower_bound` is (dim,) or one number."""
        bound = torch.as_tensor(lower_bound, dtype=x.dtype, device=x.device)
        return self.unit(x.transpose(0, 1), lower_bound=bound)[0].transpose(0, 1)


class GridsInSeries(Sequences):
    """The whole bidirectional unit along the columns of a grid, then again along its rows."""

    def forward(self, x: Tensor, lower_bound: Tensor | float = 0.0) -> Tensor:
        """Mix `x` (height, width, batch, dim); `lower_bound` is (dim,) or one number."""
        for _ in range(2):
            x = super().forward(x.flatten(1, 2), lower_bound).view_as(x).transpose(0, 1)
        return x


class GridsInParallel(Sequences):
    """The outputs of four scans over a grid are added up, both ways along both axes, and share all maps."""

    def forward(self, x: Tensor, lower_bound: Tensor | float = 0.0) -> Tensor:
        """Mix `x` (height, width, batch, dim); `lower_bound` is (dim,) or one number."""
        parts = self.unit.project(x, torch.as_tensor(lower_bound, dtype=x.dtype, device=x.device))
        return self.unit.readout(_scans(parts, axis=0) + _scans(parts, axis=1))


def _scans(parts: tuple[Tensor, ...], axis: int) -> Tensor:
    """Both ways along one axis of q, k, v and log_decay (height, width, batch, heads, head_dim)."""
    q, k, v, log_decay = (part.movedim(axis, 2) for part in parts)
    forward, backward = (
        gated_linear_attention(*(part.flatten(0, 1) for part in (q, k, v, log_decay)), reverse=reverse)[0]
        for reverse in (False, True)
    )
    return (forward + backward).unflatten(0, q.shape[:2]).movedim(2, axis)


def _convert(
    wrap: Callable[[HGRN2], nn.Module],
    causal: bool,
    tensors: dict[str, Tensor],
    *,
    embed_dim: int,
    expand_ratio: int = 2,
    act_fun: str = "silu",
    uv_act_fun: str = "sigmoid",
    use_norm: bool = True,
    bias: bool = True,
    norm_type: str = "layernorm",
) -> Conversion:
    unit = UnscaledHGRN2(
        embed_dim,
        causal,
        head_dim=expand_ratio,
        query_activation=activation_name(uv_act_fun),
        value_activation=activation_name(act_fun),
        norm=norm_name(norm_type) if use_norm else None,
        bias=bias,
    )
    tensors = dict(tensors)
    for kind in ("weight", "bias"):
        if f"in_proj.{kind}" in tensors:
            for name, part in zip(("v", "q", "forget"), tensors.pop(f"in_proj.{kind}").chunk(3), strict=True):
                tensors[f"{name}_proj.{kind}"] = part
    return Conversion(wrap(unit), tensors, NAMES)


def _register(family: str, wrap: Callable[[HGRN2], nn.Module], causal: bool) -> None:
    build = functools.partial(_convert, wrap, causal)

    def convert(tensors: dict[str, Tensor], **config: Any) -> Conversion:
        check_options(family, build, config)
        return build(tensors, **config)

    register_family(family)(convert)


_register("hgrn2.Hgru2_1d", Sequences, causal=True)
_register("hgrn2.BiHgru2_1d", Sequences, causal=False)
_register("hgrn2.Hgru2_2d_parallel", GridsInParallel, causal=False)
_register("hgrn2.Hgru2_2d_series", GridsInSeries, causal=False)
