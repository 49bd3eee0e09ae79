"""Structured kernel interpolation in the straightforward published formulation.

This is our own re-statement of W A Wᵀ x plus a few taps (SKI-TNN, arXiv 2305.09028, section 3.2), as the public layers
write it: a dense W, one matrix-vector product for each channel, a depth-wise convolution of transposed inputs, and
gradients left to autograd. W is that of the paper, not of the released code, so it computes what the operator does that
it is made from.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.mixers import SKITNO
from subquad.ops.ski import hat_functions


class PublishedSKITNO(nn.Module):
    """A bidirectional `SKITNO`, called as that.

    Args:
        operator: The operator whose weights are used.
    """

    def __init__(self, operator: SKITNO):
        super().__init__()
        if operator.causal:
            raise ValueError("the published formulation is restated for bidirectional operators")
        self.operator = operator

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the operator to `x` (batch, length, dim)."""
        operator = self.operator
        length = x.shape[1]
        spacing, rank = operator.inducing_grid(length)
        weights = hat_functions(torch.arange(length) / spacing, rank)
        kernel = operator.smooth_part(torch.arange(1 - rank, rank) * spacing, length).T.unsqueeze(0)
        index = torch.arange(rank)
        matrices = kernel[..., index.unsqueeze(1) - index + rank - 1]
        columns = x.transpose(1, 2)
        smooth = weights @ (matrices @ (weights.T @ columns.unsqueeze(-1)))
        taps = operator.taps.flip(0).T.unsqueeze(1)
        sparse = F.conv1d(columns, taps, padding=taps.shape[-1] // 2, groups=x.shape[2])
        return (smooth.squeeze(-1) + sparse).transpose(1, 2), x
