"""Relative position encoder: from a lag to the coefficients of a Toeplitz operator (TNN, arXiv 2305.04749)."""

from typing import Any

import torch
from torch import Tensor, nn

from subquad.layers.activations import activation as get_activation
from subquad.layers.norms import build_norm


class RelativePositionEncoder(nn.Module):
    """A small network from a scalar position to `dim` coefficients.

        z_0 = W_0 p + b_0;   z_i = W_i φ(norm(z_{i−1})) + b_i for i = 1 … num_layers;   RPE(p) = W_o φ(norm(z)) + b_o

    Positions are raw numbers (0, ±1, ±2, …), not exact in half precision above 256: the whole network runs in float32
    at least, also under autocast.

    Args:
        dim: Number of coefficients.
        hidden_size: Width of the network.
        num_layers: Number of hidden maps.
        activation: φ, by name.
        norm: Norm before each activation, by name.
        residual: Whether hidden maps add their input.
        bias: Whether the maps have biases.
    """

    def __init__(
        self,
        dim: int,
        hidden_size: int,
        num_layers: int = 3,
        activation: str = "relu",
        norm: str = "simple_rmsnorm",
        residual: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        self.residual = residual
        self.activation = get_activation(activation)
        self.input_proj = nn.Linear(1, hidden_size, bias=bias)
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size, bias=bias) for _ in range(num_layers))
        self.norms = nn.ModuleList(build_norm(norm, hidden_size) for _ in range(num_layers + 1))
        self.output_proj = nn.Linear(hidden_size, dim, bias=bias)

    def forward(self, positions: Tensor) -> Tensor:
        """Coefficients (num_positions, dim) of `positions` (num_positions,), float32 or float64 as the parameters."""
        with torch.autocast(positions.device.type, enabled=False):
            return _linear(self.output_proj, self.features(positions))

    def features(self, positions: Tensor) -> Tensor:
        """What the output map is applied to, (num_positions, hidden_size) of `positions` (num_positions,)."""
        with torch.autocast(positions.device.type, enabled=False):
            weight = self.input_proj.weight
            wide = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
            z = _linear(self.input_proj, positions.to(wide).unsqueeze(-1))
            for layer, norm in zip(self.layers, self.norms[:-1], strict=True):
                mapped = _linear(layer, self.activation(norm(z)))
                z = mapped + z if self.residual else mapped
            return self.activation(self.norms[-1](z))


def _linear(layer: Any, x: Tensor) -> Tensor:
    """The map in the dtype of `x`, whatever the parameters are stored in."""
    return nn.functional.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))
