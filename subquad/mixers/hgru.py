"""Gated linear recurrence with layer-wise lower bounds (HGRN, arXiv 2311.04823).

    u_t = φ(W_in x_t)                   input; complex: 2·dim numbers, all real parts before all imaginary ones
    λ_t = γ + (1 − γ) σ(W_f x_t)        forget gate, bounded from below by γ, which grows from layer to layer
    h_t = λ_t e^{iθ} ⊙ h_{t−1} + (1 − λ_t) ⊙ u_t
    y_t = W_o (norm(h_t) ⊙ φ(W_g x_t))

θ is a learned constant of each channel; the real form has none. Bidirectional: the sum of a forward and a reverse scan
of the same inputs and gates.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from subquad.layers import LowerBounds, build_norm
from subquad.layers import activation as get_activation
from subquad.mixers.base import Mixer, State, register_mixer
from subquad.ops import linear_recurrence


@register_mixer("hgru")
class HGRU(Mixer):
    """Hierarchically gated recurrent unit (HGRN, arXiv 2311.04823, section 3). The state is one vector, of any length.

    Args:
        dim: Features in and out.
        causal: Whether a position sees only itself and earlier ones.
        complex: Whether the recurrence is complex.
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
        activation: str = "silu",
        norm: str = "layernorm",
        bias: bool = True,
    ):
        super().__init__(dim, causal)
        width = 2 * dim if complex else dim
        self.input_proj = nn.Linear(dim, width, bias=bias)
        self.forget_proj = nn.Linear(dim, dim, bias=bias)
        self.gate_proj = nn.Linear(dim, width, bias=bias)
        self.output_proj = nn.Linear(width, dim, bias=bias)
        self.activation = get_activation(activation)
        self.norm = build_norm(norm, width)
        self.phase: nn.Parameter | None = None
        if complex:
            self.phase = nn.Parameter(torch.empty(dim))
            self.phase._no_weight_decay = True  # type: ignore[attr-defined]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the phases to their initial values, 10000^(−2j/dim): from one radian per step to next to none."""
        if self.phase is not None:
            exponents = torch.arange(self.dim, device=self.phase.device) * (-2.0 / self.dim)
            with torch.no_grad():
                self.phase.copy_(10000.0**exponents)

    @classmethod
    def shared_module(cls, configs: list[dict[str, Any]], dim: int) -> nn.Module:
        """The lower bounds of all layers of this kind."""
        return LowerBounds(len(configs), dim)

    def mix(
        self, x: Tensor, state: State | None, mask: Tensor | None, lower_bound: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Mix a batch of rows; `lower_bound` (dim,) is γ. A padded step neither adds to the state nor changes it."""
        inputs, decay = self._gates(x, lower_bound)
        if mask is not None:
            mask = mask[:, -x.shape[1] :]
            inputs = inputs * mask.unsqueeze(-1)
            decay = decay.where(mask.unsqueeze(-1), 1.0)
        h, final = self._scan(inputs, decay, None if state is None else state[0], mask)
        if not self.causal:
            h = h + self._scan(inputs, decay, None, mask, reverse=True)[0]
        return self._output(x, h), (final,) if self.causal else None

    def mix_packed(self, x: Tensor, cu_seqlens: Tensor, lower_bound: Tensor | None = None) -> Tensor:
        """Mix sequences packed into one row: the recurrence restarts at each boundary."""
        inputs, decay = self._gates(x, lower_bound)
        h, _ = linear_recurrence(inputs, decay, phase=self.phase, cu_seqlens=cu_seqlens)
        if not self.causal:
            h = h + linear_recurrence(inputs, decay, phase=self.phase, reverse=True, cu_seqlens=cu_seqlens)[0]
        return self._output(x, h)

    def _gates(self, x: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
        """The gated input (1 − λ) ⊙ u and the forget gate λ, float32 at least.

        1 − λ is computed as (1 − γ)·σ(−z): half precision knows no number between 0.996 and 1, where upper layers live.
        """
        logits = self.forget_proj(x)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        bound = logits.new_zeros(()) if lower_bound is None else lower_bound.to(logits.dtype)
        input_gate = (1 - bound) * torch.sigmoid(-logits)
        decay = bound + (1 - bound) * torch.sigmoid(logits)
        inputs = self.activation(self.input_proj(x))
        if self.phase is not None:
            inputs = inputs.unflatten(-1, (2, self.dim))
            return (inputs * input_gate.unsqueeze(-2)).flatten(-2), decay
        return inputs * input_gate, decay

    def _scan(
        self, inputs: Tensor, decay: Tensor, initial: Tensor | None, mask: Tensor | None, reverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        if self.phase is None or mask is None:
            return linear_recurrence(inputs, decay, initial, phase=self.phase, reverse=reverse)
        # A padded step must not rotate the state: the frame of each position is turned by the number of real steps
        # so far, and the recurrence in turned frames is real. Angles are reduced in float64, or late steps lose theirs.
        steps = mask.flip(1).cumsum(1).flip(1) if reverse else mask.cumsum(1)
        angles = (steps.double().unsqueeze(-1) * self.phase.double()).remainder(2 * math.pi).to(decay.dtype)
        h, final = linear_recurrence(
            _rotate(inputs, -angles), torch.cat([decay, decay], dim=-1), initial, reverse=reverse
        )
        return _rotate(h, angles), _rotate(final, angles[:, 0 if reverse else -1])

    def _output(self, x: Tensor, h: Tensor) -> Tensor:
        return self.output_proj(self.norm(h.to(x.dtype)) * self.activation(self.gate_proj(x)))


def _rotate(z: Tensor, angles: Tensor) -> Tensor:
    """Multiply the complex numbers `z` (..., 2·dim), real parts before imaginary ones, by e^{i·angles}."""
    real, imaginary = z.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
