"""What the two mixers of TransNormer (Qin et al. 2022, arXiv 2210.10340) share: heads, their maps and positions."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from subquad.layers import apply_norm_to_heads, build_norm, build_relative_positions
from subquad.layers.activations import ELU_OFFSETS
from subquad.mixers.base import Mixer


class TransNormerMixer(Mixer):
    """Base of attention in heads with relative positions and a norm over all heads; a subclass implements `mix`.

    Args:
        dim: Features in and out, a multiple of `num_heads`.
        causal: Whether a position sees only itself and earlier ones.
        num_heads: Heads.
        positions: Relative positions of queries and keys: "lrpe", "rotary" or None.
        norm: Norm of the concatenated heads, by name, or None.
        bias: Whether the four maps have biases.
    """

    state_type = "recurrent"
    gain: ClassVar[float]
    """Gain of the initial maps to queries, keys and values."""

    def __init__(self, dim: int, causal: bool, *, num_heads: int, positions: str | None, norm: str | None, bias: bool):
        super().__init__(dim, causal)
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"`num_heads` must divide the {dim} features, got {num_heads}")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, dim, bias=bias)
        self.output_proj = nn.Linear(dim, dim, bias=bias)
        self.positions = build_relative_positions(positions, dim // num_heads)
        self.norm = build_norm(norm, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform maps."""
        for proj in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(proj.weight, gain=self.gain)
        nn.init.xavier_uniform_(self.output_proj.weight)
        if self.output_proj.bias is not None:
            nn.init.zeros_(self.output_proj.bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (batch, length, heads, head_dim) of `x` (batch, length, dim)."""
        q, k, v = (proj(x).unflatten(-1, (self.num_heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return q, k, v

    def encode(
        self, q: Tensor, k: Tensor, positions: Tensor, activation: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Put `positions` (length,) or (batch, length) into queries and keys (batch, length, heads, head_dim).

        Args:
            q: Queries.
            k: Keys.
            positions: Of the rows.
            activation: A feature map that comes first; those of the papers are taken in the pass that turns.
        """
        elu = None if activation is None or self.positions is None else ELU_OFFSETS.get(activation)
        if activation is not None and elu is None:
            q, k = activation(q), activation(k)
        if self.positions is None:
            return q, k
        angles = self.positions.angles(positions.unsqueeze(-1))
        return self.positions(q, angles, elu), self.positions(k, angles, elu)

    def output(self, o: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Norm and output map of what the heads return, (batch, length, heads, head_dim), in the dtype of `x`."""
        return self.output_proj(apply_norm_to_heads(self.norm, o, mask).to(x.dtype))


def packed_positions(cu_seqlens: Tensor, length: int) -> Tensor:
    """Position (length,) of each entry of a packed row in its own sequence."""
    starts = cu_seqlens[:-1].repeat_interleave(cu_seqlens.diff(), output_size=length)
    return torch.arange(length, device=cu_seqlens.device) - starts
