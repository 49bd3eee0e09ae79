"""Gated linear recurrence with an outer-product state (HGRN2, arXiv 2404.07904).

    f_t = γ + (1 − γ) σ(W_f x_t)                        forget gate, bounded from below by γ, as in HGRN
    S_t = Diag(f_t) S_{t−1} + (1 − f_t) v_tᵀ            for each head; v_t = φ_v(W_v x_t)
    o_t = S_tᵀ q_t / √head_dim                          q_t = φ_q(W_q x_t)
    y_t = W_o norm(o_t)

It is gated linear attention whose key is 1 − f: the state is head_dim times larger than HGRN's, with no parameters for
it. Bidirectional: the sum of a forward and a reverse pass.
"""

from typing import Any

import torch
from torch import Tensor, nn

from subquad.layers import LowerBounds, build_norm, shared_lower_bounds
from subquad.layers import activation as get_activation
from subquad.mixers.base import Mixer, State, register_mixer
from subquad.ops import forget_gate, gated_linear_attention


@register_mixer("hgrn2")
class HGRN2(Mixer):
    """Gated linear recurrence with state expansion (HGRN2, arXiv 2404.07904). The state is one matrix for each head.

    Args:
        dim: Features in and out, a multiple of `head_dim`.
        causal: Whether a position sees only itself and earlier ones.
        head_dim: Features of a head, and so the size of the state over `dim`: the paper's expand ratio. Default: the
            paper's 128, or `dim` where that is smaller.
        lower_bounds: Whether the forget gates of a model's layers have lower bounds.
        query_activation: φ_q, by name ("sigmoid" in the paper's image and Long Range Arena models).
        value_activation: φ_v, by name ("silu" in those models).
        norm: Norm of the heads' outputs, over all of them, by name, or None.
        bias: Whether the maps have biases.

    Example:
        >>> import torch
        >>> from subquad.mixers import HGRN2
        >>> mixer = HGRN2(64, head_dim=16)
        >>> y, state = mixer(torch.randn(2, 100, 64), lower_bound=torch.full((64,), 0.9))
        >>> y.shape, state[0].shape
        (torch.Size([2, 100, 64]), torch.Size([2, 4, 16, 16]))
    """

    state_type = "recurrent"

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        head_dim: int | None = None,
        lower_bounds: bool = True,
        query_activation: str = "silu",
        value_activation: str = "identity",
        norm: str | None = "layernorm",
        bias: bool = True,
    ):
        super().__init__(dim, causal)
        self.head_dim = min(128, dim) if head_dim is None else head_dim
        if self.head_dim < 1 or dim % self.head_dim:
            raise ValueError(f"`head_dim` must divide the {dim} features, got {self.head_dim}")
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.forget_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, dim, bias=bias)
        self.output_proj = nn.Linear(dim, dim, bias=bias)
        self.query_activation = get_activation(query_activation)
        self.value_activation = get_activation(value_activation)
        self.norm = build_norm(norm, dim)

    @classmethod
    def shared_module(cls, configs: list[dict[str, Any]], dim: int) -> LowerBounds | None:
        """The lower bounds of all layers of this kind."""
        return shared_lower_bounds(configs, [dim] * len(configs))

    def mix(
        self, x: Tensor, state: State | None, mask: Tensor | None, lower_bound: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Mix a batch of rows; `lower_bound` (dim,) is γ. A padded step neither adds to the state nor changes it."""
        q, k, v, log_decay = self.project(x, lower_bound)
        if mask is not None:
            mask = mask[:, -x.shape[1] :, None, None]
            k, log_decay = k * mask, log_decay * mask
        o, final = gated_linear_attention(q, k, v, log_decay, None if state is None else state[0])
        if not self.causal:
            o = o + gated_linear_attention(q, k, v, log_decay, reverse=True)[0]
        return self.readout(o), (final,) if self.causal else None

    def mix_packed(self, x: Tensor, cu_seqlens: Tensor, lower_bound: Tensor | None = None) -> Tensor:
        """Mix sequences packed into one row: where one begins, the gates forget all that was before."""
        q, k, v, log_decay = self.project(x, lower_bound)
        # An empty sequence at the end begins with the first one, one at the start ends with the last: both boundaries.
        starts, stops = cu_seqlens[:-1].long() % x.shape[1], (cu_seqlens[1:].long() - 1) % x.shape[1]
        o, _ = gated_linear_attention(q, k, v, log_decay.index_fill(1, starts, -torch.inf))
        if not self.causal:
            o = o + gated_linear_attention(q, k, v, log_decay.index_fill(1, stops, -torch.inf), reverse=True)[0]
        return self.readout(o)

    def project(self, x: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys 1 − f, values and log f of all heads, each (batch, length, heads, head_dim)."""
        f, k = forget_gate(self.forget_proj(x), lower_bound)
        q = self.query_activation(self.q_proj(x)) * self.head_dim**-0.5
        v = self.value_activation(self.v_proj(x))
        q, k, v, log_decay = (part.unflatten(-1, (-1, self.head_dim)) for part in (q, k, v, _log(f, k)))
        return q, k, v, log_decay

    def readout(self, o: Tensor) -> Tensor:
        """The output (batch, length, dim) from those of all heads (batch, length, heads, head_dim)."""
        return self.output_proj(self.norm(o.flatten(-2)))


def _log(gate: Tensor, complement: Tensor) -> Tensor:
    """The logarithm of a gate, from whichever of the two is precise; at least −80, so that gradients are finite."""
    return torch.where(complement < 0.5, (-complement.clamp_max(0.5)).log1p(), gate.clamp_min(1e-35).log())
