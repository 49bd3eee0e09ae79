"""Causal NormAttention in the straightforward published formulation: the whole matrix of scores, masked.

Our own re-statement of the layer of TransNormer (arXiv 2210.10340): time first, heads folded into the batch, rotation
by real arithmetic on interleaved pairs, scores (batch · heads, length, length), gradients left to autograd.
"""

import torch
from published.fd import norm
from torch import Tensor, nn

from subquad.mixers import NormAttention


class PublishedNormAttention(nn.Module):
    """The layer, holding the very parameters of one of ours.

    Args:
        mixer: A causal `NormAttention` with `positions` "lrpe" and the norm "simple_rmsnorm".
    """

    def __init__(self, mixer: NormAttention):
        super().__init__()
        self.num_heads, self.activation = mixer.num_heads, mixer.activation
        self.q_proj, self.k_proj, self.v_proj = mixer.q_proj, mixer.k_proj, mixer.v_proj
        self.output_proj, self.positions = mixer.output_proj, mixer.positions

    def encode(self, x: Tensor) -> Tensor:
        """Reflect and rotate `x` (batch · heads, length, head_dim)."""
        direction, theta = self.positions.reflection, self.positions.theta
        x = x - 2 * torch.matmul(x, direction).unsqueeze(-1) * direction
        angles = torch.arange(x.shape[1], dtype=x.dtype).reshape(-1, 1) * theta
        angles = torch.stack([angles, angles], dim=-1).flatten(-2)
        swapped = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).reshape(x.shape)
        return x * angles.cos() + swapped * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        """Mix `x` (batch, length, dim)."""
        batch, length, dim = x.shape
        query = x.transpose(0, 1)
        q, k, v = self.q_proj(query), self.k_proj(query), self.v_proj(query)
        q, k = self.activation(q), self.activation(k)
        q, k, v = (
            rows.contiguous().view(length, batch * self.num_heads, dim // self.num_heads).transpose(0, 1)
            for rows in (q, k, v)
        )
        q, k = self.encode(q), self.encode(k)
        future = torch.ones(length, length).triu(1).bool()
        scores = torch.bmm(q, k.transpose(1, 2)).masked_fill(future, 0)
        o = torch.bmm(scores, v).transpose(0, 1).contiguous().view(length, batch, dim)
        return self.output_proj(norm(o)).transpose(0, 1)
