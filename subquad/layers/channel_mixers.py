"""Channel mixers: what mixes the features of one position. Registered by name, built from a plain dictionary."""

from typing import Any

from torch import Tensor, nn

from subquad.layers.activations import activation as get_activation
from subquad.layers.activations import gated
from subquad.registry import build_from


class GLU(nn.Module):
    """Gated linear unit: W₃(φ(W₁x + b₁) ⊙ (W₂x + b₂)) + b₃ (Shazeer 2020, arXiv 2002.05202).

    Args:
        dim: Features in and out.
        hidden_size: Width of the two branches.
        activation: φ, by name.
        bias: Whether the three maps have biases.
        dropout: Probability of dropping entries of the activated branch.
    """

    def __init__(self, dim: int, hidden_size: int, activation: str = "silu", bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_size, bias=bias)
        self.up_proj = nn.Linear(dim, hidden_size, bias=bias)
        self.down_proj = nn.Linear(hidden_size, dim, bias=bias)
        self.activation = get_activation(activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., dim) to (..., dim)."""
        return self.down_proj(self.dropout(gated(self.up_proj(x), self.gate_proj(x), self.activation)))


class FFN(nn.Module):
    """Feed-forward network W₂ φ(W₁x + b₁) + b₂ (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        dim: Features in and out.
        hidden_size: Width between the two maps.
        activation: φ, by name.
        bias: Whether the two maps have biases.
        dropout: Probability of dropping entries after the activation.
    """

    def __init__(self, dim: int, hidden_size: int, activation: str = "relu", bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.up_proj = nn.Linear(dim, hidden_size, bias=bias)
        self.down_proj = nn.Linear(hidden_size, dim, bias=bias)
        self.activation = get_activation(activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., dim) to (..., dim)."""
        return self.down_proj(self.dropout(self.activation(self.up_proj(x))))


CHANNEL_MIXERS: dict[str, type[nn.Module]] = {"glu": GLU, "ffn": FFN}


def build_channel_mixer(config: dict[str, Any], dim: int) -> nn.Module:
    """Build a channel mixer from `{"type": "glu" | "ffn", "hidden_size": ..., ...}` for `dim` features.

    Raises:
        ValueError: If the type or an option is unknown or missing.
    """
    return build_from("channel mixer", CHANNEL_MIXERS, config, dim)
