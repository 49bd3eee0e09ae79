"""The gated recurrence in the straightforward published formulation: complex numbers and a loop over the time.

This is our own re-statement of the formula (HGRN, arXiv 2311.04823, section 3), as the public layers write it without a
kernel. It holds the weights of the unit that it is made from, and computes the same.
"""

import torch
from torch import Tensor, nn

from subquad.mixers import HGRU


class PublishedHGRU(nn.Module):
    """A causal complex HGRU as a loop over the time.

    Args:
        unit: The unit whose weights are used.
        unbind: Whether the time axis is taken apart once. Otherwise every step takes its slice, as published: the
            gradient of a slice is a tensor of full size, so the backward pass is quadratic in the length.
    """

    def __init__(self, unit: HGRU, unbind: bool = False):
        super().__init__()
        if unit.phase is None or not unit.causal:
            raise ValueError("the published formulation is restated for causal complex units")
        self.unit = unit
        self.unbind = unbind

    def forward(self, x: Tensor, lower_bound: Tensor | float = 0.0) -> Tensor:
        """Mix `x` (batch, length, dim)."""
        unit = self.unit
        real, imaginary = unit.activation(unit.input_proj(x)).chunk(2, dim=-1)
        decay = lower_bound + (1 - lower_bound) * torch.sigmoid(unit.forget_proj(x))
        gate = unit.activation(unit.gate_proj(x))
        inputs = (1 - decay) * torch.complex(real, imaginary)
        factors = decay * torch.exp(1j * unit.phase)
        h = torch.zeros_like(inputs[:, 0])
        states = []
        if self.unbind:
            for input_t, factor_t in zip(inputs.unbind(1), factors.unbind(1), strict=True):
                h = factor_t * h + input_t
                states.append(h)
        else:
            for t in range(x.shape[1]):
                h = factors[:, t] * h + inputs[:, t]
                states.append(h)
        states = torch.stack(states, dim=1)
        return unit.output_proj(unit.norm(torch.cat([states.real, states.imag], dim=-1)) * gate)
