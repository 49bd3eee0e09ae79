"""NormAttention (TransNormer, arXiv 2210.10340): linear attention with a norm in place of the denominator.

    y = W_o norm(o),   o_s = P_s φ(q_s) Σ_{t≤s} (P_t φ(k_t))ᵀ v_t      (bidirectional: the sum over all t)

P encodes the position. The denominator of linear attention has unbounded gradients; the norm over all heads bounds both
values and gradients.
"""

import torch
from torch import Tensor

from subquad.layers import activation as get_activation
from subquad.mixers.base import State, register_mixer
from subquad.mixers.transnormer import TransNormerMixer, packed_positions
from subquad.ops import linear_attention


@register_mixer("norm_attention")
class NormAttention(TransNormerMixer):
    """Linear attention with a norm (arXiv 2210.10340, section 4.2).

    The state is the sum of outer products (batch, heads, head_dim, head_dim) and the number of tokens so far (batch,),
    which float32 counts to 2²⁴.

    Args:
        dim: Features in and out, a multiple of `num_heads`.
        causal: Whether a position sees only itself and earlier ones.
        num_heads: Heads.
        activation: Feature map φ of queries and keys, by name: "elu" in TransNormer T1, "1+elu" in T2.
        norm: Norm of the concatenated heads, by name, or None.
        positions: Relative positions of queries and keys: "lrpe", "rotary" or None.
        bias: Whether the four maps have biases.

    Example:
        >>> import torch
        >>> from subquad.mixers import NormAttention
        >>> attention = NormAttention(64, num_heads=4)
        >>> y, (total, count) = attention(torch.randn(2, 100, 64))
        >>> total.shape, count.tolist()
        (torch.Size([2, 4, 16, 16]), [100.0, 100.0])
    """

    gain = 2**-0.5

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        num_heads: int = 8,
        activation: str = "elu",
        norm: str | None = "simple_rmsnorm",
        positions: str | None = "lrpe",
        bias: bool = True,
    ):
        super().__init__(dim, causal, num_heads=num_heads, positions=positions, norm=norm, bias=bias)
        self.activation = get_activation(activation)

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of rows; padding adds nothing to the sums and is not counted."""
        length = x.shape[1]
        past, count = (None, x.new_zeros(1, dtype=torch.float64)) if state is None else state
        if mask is None:
            steps, seen = torch.arange(length, device=x.device), length
        else:
            mask = mask[:, -length:]
            steps, seen = mask.cumsum(1) - 1, mask.sum(1)
        q, k, v = self.features(x, count.double().unsqueeze(1) + steps)
        if mask is not None:
            k = k * mask[..., None, None]
        o, total = linear_attention(q, k, v, past, causal=self.causal)
        y = self.output(o, x, mask)
        count = (count + seen).to(total.dtype).expand(x.shape[0]).contiguous()
        return y, (total, count) if self.causal else None

    def mix_packed(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Mix sequences packed into one row: sums and positions start anew at each boundary."""
        q, k, v = self.features(x, packed_positions(cu_seqlens, x.shape[1]))
        o, _ = linear_attention(q, k, v, causal=self.causal, cu_seqlens=cu_seqlens)
        return self.output(o, x)

    def features(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encoded queries and keys, and values (batch, length, heads, head_dim)."""
        q, k, v = self.project(x)
        q, k = self.encode(q, k, positions, self.activation)
        # Sums over many tokens exceed the largest number of float16, 65504, before the norm.
        return q, k, v.float() if v.dtype == torch.float16 else v
