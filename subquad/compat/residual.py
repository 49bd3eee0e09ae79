"""The residual block of the published Long Range Arena and image models."""

from typing import Any

from torch import Tensor, nn


class Residual(nn.Module):
    """One layer with a norm and a shortcut.

    Args:
        layer: f, called as f(x, **shared).
        norm: Norm of (batch, length, dim).
        norm_position: "pre": x + f(norm(x)); "post": norm(x + f(x)); "branch": x + norm(f(x)).
        dropout: Probability of dropping entries of what the layer returns.
    """

    def __init__(self, layer: nn.Module, norm: nn.Module, norm_position: str, dropout: float = 0.0):
        super().__init__()
        self.layer = layer
        self.norm = norm
        self.norm_position = norm_position
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, **shared: Any) -> Tensor:
        """Run the block on `x` (batch, length, dim)."""
        if self.norm_position == "pre":
            return x + self.dropout(self.layer(self.norm(x), **shared))
        y = self.dropout(self.layer(x, **shared))
        return self.norm(x + y) if self.norm_position == "post" else x + self.norm(y)
