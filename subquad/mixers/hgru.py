"""Gated linear recurrence with layer-wise lower bounds (HGRN, arXiv 2311.04823).

    u_t = φ(W_in x_t)                   input; complex: all real parts before all imaginary ones
    λ_t = γ + (1 − γ) σ(W_f x_t)        forget gate, bounded from below by γ, which grows from layer to layer
    h_t = λ_t e^{iθ} ⊙ h_{t−1} + (1 − λ_t) ⊙ u_t
    y_t = W_o (norm(h_t) ⊙ φ(W_g x_t))

θ is a learned constant of each channel; the real form has none. Bidirectional: the sum of a forward and a reverse scan
of the same inputs and gates, each with a θ of its own. On a grid: the sum of four scans, both ways along both axes.
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.layers import LowerBounds, build_norm, gated, shared_lower_bounds
from subquad.layers import activation as get_activation
from subquad.mixers.base import Mixer, State, grid_of, register_mixer
from subquad.ops import forget_gate, gated_input, linear_recurrence

Scans = list[tuple[bool, Tensor | None]]
"""Whether each scan is reverse, and its phase."""


@register_mixer("hgru")
class HGRU(Mixer):
    """Hierarchically gated recurrent unit (HGRN, arXiv 2311.04823, section 3). The state is one vector, of any length.

    Args:
        dim: Features in and out.
        causal: Whether a position sees only itself and earlier ones.
        complex: Whether the recurrence is complex.
        separate_phases: Whether the two directions of a bidirectional complex unit have a θ each, or share one.
        expand_ratio: Channels of the recurrence over `dim`.
        gate_rank: Rank of the maps of both gates; None is full rank.
        lower_bounds: Whether the forget gates of a model's layers have lower bounds.
        activation: φ of the input and of the output gate, by name.
        norm: Norm of the recurrent output, by name.
        bias: Whether the maps have biases.

    Example:
        >>> import torch
        >>> from subquad.mixers import HGRU
        >>> unit = HGRU(64)
        >>> y, state = unit(torch.randn(2, 100, 64), lower_bound=torch.full((64,), 0.9))
        >>> y.shape, state[0].shape
        (torch.Size([2, 100, 64]), torch.Size([2, 128]))
    """

    state_type = "recurrent"

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        complex: bool = True,
        separate_phases: bool = True,
        expand_ratio: float = 1,
        gate_rank: int | None = None,
        lower_bounds: bool = True,
        activation: str = "silu",
        norm: str = "layernorm",
        bias: bool = True,
    ):
        super().__init__(dim, causal)
        self.channels = int(expand_ratio * dim)
        if self.channels < 1:
            raise ValueError(f"`expand_ratio` {expand_ratio} leaves no channel of {dim}")
        if gate_rank is not None and gate_rank < 1:
            raise ValueError(f"`gate_rank` must be positive, or None for full rank, got {gate_rank}")
        width = 2 * self.channels if complex else self.channels
        self.input_proj = nn.Linear(dim, width, bias=bias)
        self.forget_proj = _gate_map(dim, self.channels, gate_rank, bias)
        self.gate_proj = _gate_map(dim, width, gate_rank, bias)
        self.output_proj = nn.Linear(width, dim, bias=bias)
        self.activation = get_activation(activation)
        self.norm = build_norm(norm, width)
        self.phase = self._new_phase() if complex else None
        self.reverse_phase = self._new_phase() if complex and separate_phases and not causal else None
        self.reset_parameters()

    def _new_phase(self) -> nn.Parameter:
        phase = nn.Parameter(torch.empty(self.channels))
        phase._no_weight_decay = True  # type: ignore[attr-defined]
        return phase

    def reset_parameters(self) -> None:
        """Set the phases to their initial values, 10000^(−2j/channels): from one radian per step to next to none."""
        for phase in (self.phase, self.reverse_phase):
            if phase is not None:
                exponents = torch.arange(self.channels, device=phase.device) * (-2.0 / self.channels)
                with torch.no_grad():
                    phase.copy_(10000.0**exponents)

    @classmethod
    def shared_module(cls, configs: list[dict[str, Any]], dim: int) -> LowerBounds | None:
        """The lower bounds of all layers of this kind."""
        return shared_lower_bounds(configs, [int(config.get("expand_ratio", 1) * dim) for config in configs])

    def scans(self) -> Scans:
        """The scans whose states are added up."""
        forward = (False, self.phase)
        reverse = (True, self.phase if self.reverse_phase is None else self.reverse_phase)
        return [forward] if self.causal else [forward, reverse]

    def mix(
        self, x: Tensor, state: State | None, mask: Tensor | None, lower_bound: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Mix a batch of rows; `lower_bound` (channels,) is γ. A padded step does not touch the state."""
        inputs, decay = self.gates(x, lower_bound)
        if mask is not None:
            mask = mask[:, -x.shape[1] :]
            inputs = inputs * mask.unsqueeze(-1)
            decay = decay.where(mask.unsqueeze(-1), 1.0)
        initial = None if state is None else state[0]
        scanned = [_scan(inputs, decay, initial, mask, reverse, phase) for reverse, phase in self.scans()]
        y = self.readout(x, functools.reduce(torch.add, [h for h, _ in scanned]))
        return y, (scanned[0][1],) if self.causal else None

    def mix_packed(self, x: Tensor, cu_seqlens: Tensor, lower_bound: Tensor | None = None) -> Tensor:
        """Mix sequences packed into one row: the recurrence restarts at each boundary."""
        return self.readout(x, _sum_of_scans(*self.gates(x, lower_bound), self.scans(), cu_seqlens=cu_seqlens))

    def gates(self, x: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
        """The gated input (1 − λ) ⊙ u and the forget gate λ, float32 at least."""
        u, logits = self.input_proj(x), self.forget_proj(x)
        if self.activation is F.silu:
            return gated_input(u, logits, lower_bound)
        decay, complement = forget_gate(logits, lower_bound)
        inputs = self.activation(u).unflatten(-1, (-1, self.channels))
        return (inputs * complement.unsqueeze(-2)).flatten(-2), decay

    def readout(self, x: Tensor, h: Tensor) -> Tensor:
        """The output (batch, length, dim) from the input and the states."""
        return self.output_proj(gated(self.norm(h.to(x.dtype)), self.gate_proj(x), self.activation))


@register_mixer("hgru_2d")
class HGRU2D(HGRU):
    """Hierarchically gated recurrent unit over a grid: the sum of four scans, both ways along both axes.

    All scans have the same inputs and gates; the forward ones share a θ, and so do the reverse ones.

    Args:
        dim: Features in and out.
        causal: Must be False.
        height: Rows of the grid.
        width: Columns of the grid.
        complex: Whether the recurrence is complex.
        separate_phases: Whether forward and reverse scans have a θ each, or share one.
        lower_bounds: Whether the forget gates of a model's layers have lower bounds.
        activation: φ of the input and of the output gate, by name.
        norm: Norm of the recurrent output, by name.
        bias: Whether the maps have biases.

    Example:
        >>> import torch
        >>> from subquad.mixers import HGRU2D
        >>> y, _ = HGRU2D(64, height=8, width=8)(torch.randn(2, 64, 64))
        >>> y.shape
        torch.Size([2, 64, 64])
    """

    directions = (False,)

    def __init__(
        self,
        dim: int,
        causal: bool = False,
        *,
        height: int,
        width: int,
        complex: bool = True,
        separate_phases: bool = True,
        lower_bounds: bool = True,
        activation: str = "silu",
        norm: str = "layernorm",
        bias: bool = True,
    ):
        super().__init__(
            dim,
            causal,
            complex=complex,
            separate_phases=separate_phases,
            lower_bounds=lower_bounds,
            activation=activation,
            norm=norm,
            bias=bias,
        )
        self.grid: tuple[int, int] = grid_of(height, width)

    def mix(
        self, x: Tensor, state: State | None, mask: Tensor | None, lower_bound: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Mix a batch of grids (batch, height · width, dim); `lower_bound` (dim,) is γ."""
        inputs, decay = self.gates(x, lower_bound)
        h = self._along_rows(inputs, decay) + self._along_columns(inputs, decay)
        return self.readout(x, h), None

    def mix_packed(self, x: Tensor, cu_seqlens: Tensor, **shared: Tensor) -> Tensor:
        """Mix grids packed into one row."""
        return Mixer.mix_packed(self, x, cu_seqlens, **shared)

    def _along_rows(self, inputs: Tensor, decay: Tensor) -> Tensor:
        inputs_of_rows, decay_of_rows = (tensor.unflatten(1, self.grid).flatten(0, 1) for tensor in (inputs, decay))
        return _sum_of_scans(inputs_of_rows, decay_of_rows, self.scans()).view_as(inputs)

    def _along_columns(self, inputs: Tensor, decay: Tensor) -> Tensor:
        # One recurrence whose channels are those of all columns, side by side. Only complex numbers are copied for it:
        # their real parts have to come first.
        width = self.grid[1]

        def side_by_side(tensor: Tensor) -> Tensor:
            return tensor.unflatten(1, self.grid).unflatten(-1, (-1, self.channels)).transpose(2, 3).flatten(2)

        scans = [(reverse, None if phase is None else phase.repeat(width)) for reverse, phase in self.scans()]
        h = _sum_of_scans(side_by_side(inputs), side_by_side(decay), scans)
        return h.unflatten(-1, (-1, width, self.channels)).transpose(2, 3).reshape_as(inputs)


def _gate_map(dim: int, width: int, rank: int | None, bias: bool) -> nn.Module:
    if rank is None:
        return nn.Linear(dim, width, bias=bias)
    return nn.Sequential(nn.Linear(dim, rank, bias=bias), nn.Linear(rank, width, bias=bias))


def _sum_of_scans(inputs: Tensor, decay: Tensor, scans: Scans, cu_seqlens: Tensor | None = None) -> Tensor:
    states = [
        linear_recurrence(inputs, decay, phase=phase, reverse=reverse, cu_seqlens=cu_seqlens)[0]
        for reverse, phase in scans
    ]
    return functools.reduce(torch.add, states)


def _scan(
    inputs: Tensor, decay: Tensor, initial: Tensor | None, mask: Tensor | None, reverse: bool, phase: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The states of one scan, and the last one; `inputs` are 0 and `decay` is 1 where `mask` is False."""
    if phase is None or mask is None:
        return linear_recurrence(inputs, decay, initial, phase=phase, reverse=reverse)
    # A padded step must not rotate the state: the frame of each position is turned by the number of real steps so far,
    # and the recurrence in turned frames is real. Angles are reduced in float64, or late steps lose theirs.
    steps = mask.flip(1).cumsum(1).flip(1) if reverse else mask.cumsum(1)
    angles = (steps.double().unsqueeze(-1) * phase.double()).remainder(2 * math.pi).to(decay.dtype)
    h, final = linear_recurrence(_rotate(inputs, -angles), torch.cat([decay, decay], dim=-1), initial, reverse=reverse)
    return _rotate(h, angles), _rotate(final, angles[:, 0 if reverse else -1])


def _rotate(z: Tensor, angles: Tensor) -> Tensor:
    """Multiply complex numbers `z` (..., 2·dim), real parts before imaginary ones, by e^{i·angles}."""
    real, imaginary = z.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
