"""Softmax attention (Vaswani et al. 2017, arXiv 1706.03762): the baseline whose cost is the square of the length."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.layers import apply_rotary
from subquad.mixers.base import Mixer, State, register_mixer


@register_mixer("softmax")
class SoftmaxAttention(Mixer):
    """Multi-head softmax attention on `torch.nn.functional.scaled_dot_product_attention`.

    The state is the keys and values so far, so a token costs more the longer the text.

    Args:
        dim: Features in and out.
        causal: Whether a position sees only itself and earlier ones.
        num_heads: Heads.
        head_dim: Features of a head; None: `dim` divided by `num_heads`, which must divide it.
        rotary: Whether queries and keys get rotary positions; the head size must then be even.
        bias: Whether the four maps have biases.
        dropout: Probability of dropping attention weights in training.

    Example:
        >>> import torch
        >>> from subquad.mixers import SoftmaxAttention
        >>> attention = SoftmaxAttention(64, num_heads=4, rotary=True)
        >>> y, (keys, values) = attention(torch.randn(2, 10, 64))
        >>> keys.shape
        torch.Size([2, 4, 10, 16])
    """

    state_type = "growing"

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        num_heads: int = 8,
        head_dim: int | None = None,
        rotary: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__(dim, causal)
        if num_heads < 1 or (head_dim is None and dim % num_heads):
            raise ValueError(f"`num_heads` must divide the {dim} features, got {num_heads}")
        if head_dim is None:
            head_dim = dim // num_heads
        if head_dim < 1:
            raise ValueError(f"`head_dim` must be positive, got {head_dim}")
        if rotary and head_dim % 2:
            raise ValueError(f"rotary positions need an even head size, got {head_dim}")
        width = num_heads * head_dim
        self.num_heads = num_heads
        self.rotary = rotary
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, width, bias=bias)
        self.k_proj = nn.Linear(dim, width, bias=bias)
        self.v_proj = nn.Linear(dim, width, bias=bias)
        self.output_proj = nn.Linear(width, dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform maps; queries, keys and values as one matrix of three times the width."""
        for proj in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(proj.weight, gain=2**-0.5)
        nn.init.xavier_uniform_(self.output_proj.weight)
        if self.output_proj.bias is not None:
            nn.init.zeros_(self.output_proj.bias)

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of rows; padded keys are masked."""
        queries, keys, values = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        stored = 0 if state is None else state[0].shape[-2]
        if self.rotary:
            queries, keys = apply_rotary(queries, stored), apply_rotary(keys, stored)
        if state is not None:
            keys, values = torch.cat([state[0], keys], dim=-2), torch.cat([state[1], values], dim=-2)
        plain = mask is None and stored == 0
        y = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=None if plain else self._allowed(x, stored, mask),
            is_causal=plain and self.causal,
            dropout_p=self.dropout if self.training else 0.0,
        )
        y = self.output_proj(y.transpose(1, 2).flatten(2))
        return y, (keys, values) if self.causal else None

    def _allowed(self, x: Tensor, stored: int, mask: Tensor | None) -> Tensor:
        """Which keys each query sees: (batch or 1, 1, length, stored + length) bool."""
        length = x.shape[1]
        allowed = torch.ones(length, stored + length, dtype=torch.bool, device=x.device)
        if self.causal:
            allowed = allowed.tril(stored)
        allowed = allowed[None, None]
        if mask is None:
            return allowed
        mask = F.pad(mask, (stored + length - mask.shape[1], 0), value=True)
        allowed = allowed & mask[:, None, None]
        # A query without any key would be 0/0: padding at the start of a row sees itself.
        itself = torch.ones_like(allowed).tril(stored).triu(stored)
        return allowed | (itself & ~allowed.any(-1, keepdim=True))
