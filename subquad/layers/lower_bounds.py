"""Layer-wise lower bounds of forget gates (HGRN, arXiv 2311.04823, section 3.2)."""

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
