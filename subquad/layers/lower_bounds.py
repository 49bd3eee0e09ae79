"""Forget gates with layer-wise lower bounds (HGRN, arXiv 2311.04823, section 3.2)."""

from typing import Any

import torch
from torch import Tensor, nn


class LowerBounds(nn.Module):
    """One matrix Γ for the whole network; layer k gets γ_k = Σ_{j=1..k} P_j with P = softmax(Γ) over layers.

    So γ_0 = 0, the bounds do not decrease from layer to layer and stay below 1: low layers may forget quickly, high
    layers must remember. Computed in float32 at least.

    Args:
        num_layers: Number of layers that share the matrix.
        dim: Features per layer.
    """

    def __init__(self, num_layers: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_layers, dim))
        self.weight._no_weight_decay = True  # type: ignore[attr-defined]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Equal shares: γ_k = k / num_layers."""
        nn.init.zeros_(self.weight)

    def forward(self) -> list[dict[str, Tensor]]:
        """The keyword arguments of each layer, `{"lower_bound": (dim,)}`."""
        wide = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        shares = wide.softmax(dim=0)
        bounds = shares.cumsum(dim=0) - shares[0]
        return [{"lower_bound": bound} for bound in bounds.unbind(0)]


def shared_lower_bounds(configs: list[dict[str, Any]], widths: list[int]) -> LowerBounds | None:
    """The lower bounds of layers with these options, each with gates of these widths; None if they are to have none.

    Raises:
        ValueError: If the layers differ in width, or in whether they have lower bounds.
    """
    wanted = {bool(config.get("lower_bounds", True)) for config in configs}
    if len(wanted) > 1 or len(set(widths)) > 1:
        raise ValueError(
            "layers of one kind share their lower bounds, so `lower_bounds` and their width must be the same: "
            f"got `lower_bounds` {sorted(wanted)} and widths {sorted(set(widths))}"
        )
    return LowerBounds(len(configs), widths[0]) if wanted == {True} else None
