"""Primal-Attention (Chen et al. 2023, arXiv 2305.19798): attention as a kernel SVD, in its primal form.

The attention matrix is an asymmetric kernel φ_q(x_i)·φ_k(x_j) with φ(x) = norm(W x + b) in each head. Its singular
vectors are linear in the features, so two small projections give the scores of a position, and nothing is n × n:

    e_t = W_eᵀ norm(W_q z_t + b_q),   r_t = W_rᵀ norm(W_k z_t + b_k)       `rank` numbers each, in each head
    y_t = W_o concat(C [e_t; r_t] + c) + b_o                               concat over the heads, which share C and c

    causal:          z_t is the mean of x_1 … x_t
    bidirectional:   z_t = x_t, and W_e, W_r act on the channels through positions sampled from the sequence itself:
                     X_sᵀ W_e, X_sᵀ W_r with the samples X_s (num_samples, head_dim)

What makes W_e and W_r singular vectors is the objective J of the kernel SVD, which is 0 at every solution. J² is the
auxiliary loss "ksvd":

    J = ½ mean ‖Λ e_t‖² + ½ mean ‖Λ r_t‖² − mean Tr(W_eᵀ W_r)              means over heads and positions

Sums, norms and J are computed in float32 at least.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.mixers.base import Mixer, State, register_mixer


@register_mixer("primal")
class PrimalAttention(Mixer):
    """Primal-Attention (arXiv 2305.19798). The state is the sum of the inputs so far and their number.

    In training it adds the auxiliary loss "ksvd"; `spectrum` has no other gradient.

    Args:
        dim: Features in and out, a multiple of `num_heads`.
        causal: Whether a position sees only itself and earlier ones.
        num_heads: Heads.
        rank: Number of singular vectors of each head.
        num_samples: Bidirectional: how many positions are sampled, evenly; where a sequence is shorter, some are taken
            more than once. They are the only way from one position to another. Default: 10 · `rank`.
        bias: Whether the maps of queries, keys and output have biases.

    Example:
        >>> import torch
        >>> from subquad.mixers import PrimalAttention
        >>> attention = PrimalAttention(64, num_heads=4, rank=20)
        >>> y, (total, count) = attention(torch.randn(2, 10, 64))
        >>> total.shape, count.tolist()
        (torch.Size([2, 64]), [[10.0], [10.0]])
    """

    state_type = "recurrent"
    auxiliary_losses = ("ksvd",)

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        num_heads: int = 8,
        rank: int = 30,
        num_samples: int | None = None,
        bias: bool = True,
    ):
        super().__init__(dim, causal)
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"`num_heads` must divide the {dim} features, got {num_heads}")
        if rank < 1:
            raise ValueError(f"`rank` must be positive, got {rank}")
        if causal and num_samples is not None:
            raise ValueError("`num_samples` is an option of the bidirectional form: a causal one samples no positions")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"`num_samples` must be positive, got {num_samples}")
        head_dim = dim // num_heads
        rows = head_dim if causal else num_samples or 10 * rank
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.e_weight = nn.Parameter(torch.empty(num_heads, rows, rank))
        self.r_weight = nn.Parameter(torch.empty(num_heads, rows, rank))
        self.spectrum = nn.Parameter(torch.empty(num_heads, rank))
        self.score_proj = nn.Linear(2 * rank, head_dim)
        self.output_proj = nn.Linear(dim, dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The published initial values: `e_weight` and `r_weight` are orthonormal across heads, not inside one."""
        for proj in (self.q_proj, self.k_proj):
            nn.init.xavier_uniform_(proj.weight, gain=2**-0.5)
        nn.init.xavier_uniform_(self.output_proj.weight)
        if self.output_proj.bias is not None:
            nn.init.zeros_(self.output_proj.bias)
        nn.init.orthogonal_(self.e_weight)
        nn.init.orthogonal_(self.r_weight)
        nn.init.uniform_(self.spectrum)

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of rows; padding is left out of the mean, of the samples and of the objective."""
        if mask is not None:
            mask = mask[:, -x.shape[1] :]
        e, r, state = self.scores(x, state, mask)
        if self.training:
            self.add_auxiliary_loss("ksvd", self.objective(e, r, mask).square().mean())
        return self.output_proj(self.combine(e, r)), state

    def scores(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, Tensor, State | None]:
        """The scores e and r, each (batch, heads, length, rank), and the state; `mask` is (batch, length)."""
        e_weight, r_weight = self.e_weight, self.r_weight
        if self.causal:
            x, state = running_mean(x, state, mask)
        else:
            e_weight, r_weight = self.sampled_weights(x, mask)
        e = self._features(self.q_proj(x)) @ e_weight
        r = self._features(self.k_proj(x)) @ r_weight
        return e, r, state

    def sampled_weights(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """X_sᵀ W_e and X_sᵀ W_r, each (batch, heads, head_dim, rank)."""
        positions = evenly_spaced(x, mask, self.e_weight.shape[1])
        samples = self._heads(x.take_along_dim(positions.unsqueeze(-1), dim=1)).mT
        return samples @ self.e_weight, samples @ self.r_weight

    def combine(self, e: Tensor, r: Tensor) -> Tensor:
        """C [e; r] + c of all heads, (batch, length, dim)."""
        return self.score_proj(torch.cat([e, r], dim=-1)).transpose(1, 2).flatten(2)

    def objective(self, e: Tensor, r: Tensor, mask: Tensor | None) -> Tensor:
        """The objective J of the kernel SVD for each row, (batch,) float32 at least."""
        return self._variance(e, mask) + self._variance(r, mask) - mean_trace(self.e_weight, self.r_weight)

    def _variance(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """½ mean ‖Λ scores‖² over the heads and the real positions of each row, (batch,)."""
        squares = (_wide(scores) * _wide(self.spectrum).unsqueeze(-2)).square().sum(-1).mean(1)
        if mask is None:
            return squares.mean(1) / 2
        return (squares * mask).sum(1) / mask.sum(1).clamp_min(1) / 2

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, length, dim) to (batch, heads, length, head_dim)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _features(self, projected: Tensor) -> Tensor:
        """φ: each head's part of the queries or keys, scaled to length 1."""
        return F.normalize(_wide(self._heads(projected)), dim=-1).to(projected.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def mean_trace(e_weight: Tensor, r_weight: Tensor) -> Tensor:
    """Tr(W_eᵀ W_r), the mean over heads: weights (..., heads, rows, rank) to (...)."""
    return (_wide(e_weight) * _wide(r_weight)).sum((-2, -1)).mean(-1)


def running_mean(x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State]:
    """Mean of each row's real positions so far, and the state (sum, number) after them."""
    real = _wide(torch.ones_like(x[..., :1]))
    if mask is not None:
        real = real * mask.unsqueeze(-1)
    totals, counts = (_wide(x) * real).cumsum(1), real.cumsum(1)
    if state is not None:
        totals, counts = totals + state[0].unsqueeze(1), counts + state[1].unsqueeze(1)
    # A copy: a view would keep the sums of all positions alive.
    final = totals[:, -1].clone(), counts[:, -1].clone()
    return (totals / counts.clamp_min(1)).to(x.dtype), final


def evenly_spaced(x: Tensor, mask: Tensor | None, num_samples: int) -> Tensor:
    """Evenly spaced positions among the real ones of each row, first and last included, (batch, num_samples) int64.

    Rounded as `torch.linspace` of integers rounds: towards zero, counted from the nearer end.
    """
    if mask is None:
        mask = x.new_ones(x.shape[:2], dtype=torch.bool)
    seen = mask.cumsum(1)
    last = (seen[:, -1:] - 1).clamp_min(0).double()
    step = last / max(num_samples - 1, 1)
    k = torch.arange(num_samples, device=x.device)
    from_start, from_end = (step * k).long(), (last - step * (num_samples - 1 - k)).long()
    chosen = from_start.where(k < max(num_samples // 2, 1), from_end)
    return torch.searchsorted(seen, chosen + 1).clamp_max(x.shape[1] - 1)
