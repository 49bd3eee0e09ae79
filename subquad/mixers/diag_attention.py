"""DiagAttention (TransNormer, arXiv 2210.10340): attention inside blocks that do not overlap.

    T1: y = W_o norm(ReLU(Q Kᵀ / √e) V)        T2: y = W_o softmax(Q Kᵀ / √e) V        for each block of w positions

Causal: over the triangle. Blocks begin at the first real token of each sequence, positions begin in each block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.layers import activation as get_activation
from subquad.mixers.base import State, register_mixer
from subquad.mixers.transnormer import TransNormerMixer
from subquad.ops.packing import block_rows


@register_mixer("diag_attention")
class DiagAttention(TransNormerMixer):
    """Attention inside blocks (arXiv 2210.10340, section 4.3).

    The state is the current block: its keys and its values (batch, heads, block_size, head_dim), zeros where none are
    yet, and the number of them (batch,).

    Args:
        dim: Features in and out, a multiple of `num_heads`.
        causal: Whether a position sees only itself and earlier ones.
        num_heads: Heads.
        block_size: Positions w of a block.
        kernel: What weighs the values: "softmax" of the scores, or an activation of each by name; "relu" in TransNormer
            T1, "softmax" in T2.
        norm: Norm of the concatenated heads, by name; None: "simple_rmsnorm", but none after a softmax.
        positions: Relative positions of queries and keys: "lrpe", "rotary" or None.
        bias: Whether the four maps have biases.
        dropout: Probability of dropping weights in training.

    Example:
        >>> import torch
        >>> from subquad.mixers import DiagAttention
        >>> attention = DiagAttention(64, num_heads=4, block_size=32)
        >>> y, (keys, values, count) = attention(torch.randn(2, 100, 64))
        >>> keys.shape, count.tolist()
        (torch.Size([2, 4, 32, 16]), [4.0, 4.0])
    """

    gain = 1.0

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        num_heads: int = 8,
        block_size: int = 64,
        kernel: str = "relu",
        norm: str | None = None,
        positions: str | None = "lrpe",
        bias: bool = True,
        dropout: float = 0.0,
    ):
        if norm is None and kernel != "softmax":
            norm = "simple_rmsnorm"
        super().__init__(dim, causal, num_heads=num_heads, positions=positions, norm=norm, bias=bias)
        if block_size < 1:
            raise ValueError(f"`block_size` must be positive, got {block_size}")
        self.block_size = block_size
        self.activation = None if kernel == "softmax" else get_activation(kernel)
        self.dropout = dropout

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of rows; padding is no key, and takes no place in a block."""
        batch, length, _ = x.shape
        real = None if mask is None else mask[:, -length:]
        if state is not None and length == 1:
            return self._step(x, state, real)
        capacity = self._whole_blocks(length if state is None else length + self.block_size - 1)
        count = x.new_zeros(batch, 1, dtype=torch.long) if state is None else state[2].long().unsqueeze(1)
        if state is None and real is None:
            places, count = None, count + length
        else:
            real = torch.ones_like(x[..., 0], dtype=torch.bool) if real is None else real
            order, count = count + real.cumsum(1) - 1, count + real.sum(1, keepdim=True)
            places = order.where(real, capacity)
        filled = torch.arange(capacity, device=x.device) < count
        o, keys, values = self._attend_in_blocks(x, places, filled, state)
        return self.output(o, x, real), self._current_block(keys, values, count) if self.causal else None

    def mix_packed(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Mix sequences packed into one row: each begins with a block."""
        length = x.shape[1]
        places = block_rows(cu_seqlens, length, self.block_size).unsqueeze(0)
        most = length + (cu_seqlens.shape[0] - 1) * (self.block_size - 1)
        filled = x.new_zeros(1, most // self.block_size * self.block_size, dtype=torch.bool).scatter(1, places, True)
        return self.output(self._attend_in_blocks(x, places, filled, None)[0], x)

    def weights(self, scores: Tensor, visible: Tensor) -> Tensor:
        """What each key counts for each query.

        Args:
            scores: (..., queries, keys).
            visible: Which keys each query sees; bool, broadcasts against `scores`.
        """
        if self.activation is not None:
            return self.activation(scores) * visible
        wide = scores if scores.dtype == torch.float64 else scores.float()
        # Not −∞: a query without any key would be 0/0.
        return wide.masked_fill(~visible, torch.finfo(wide.dtype).min).softmax(-1).to(scores.dtype)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, divided by √e, keys and values (batch, length, heads, head_dim) of `x` (batch, length, dim)."""
        q, k, v = super().project(x)
        return q * q.shape[-1] ** -0.5, k, v

    def _whole_blocks(self, length: int) -> int:
        return -(-length // self.block_size) * self.block_size

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        weights = self.weights(q @ k.mT, visible)
        return F.dropout(weights, self.dropout, self.training) @ v

    def _attend_in_blocks(
        self, x: Tensor, places: Tensor | None, filled: Tensor, past: State | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend inside blocks.

        Args:
            x: (batch, length, dim).
            places: (batch, length), where each position goes in the row of blocks; beyond its end: nowhere. Default: to
                the same place.
            filled: (batch, capacity) bool, the places of the row of blocks that are taken.
            past: State, whose keys and values are the first of the row.

        Returns:
            o (batch, length, heads, head_dim), and the keys and values of the row (batch, heads, capacity, head_dim).
        """
        length, capacity = x.shape[1], filled.shape[1]
        q, k, v = self.project(x)
        positions = torch.arange(length, device=x.device) if places is None else places
        q, k = self.encode(q, k, positions % self.block_size)
        q, k, v = _place(q, places, capacity), _place(k, places, capacity), _place(v, places, capacity)
        if past is not None:
            k, v = (
                row + F.pad(stored.to(row.dtype), (0, 0, 0, capacity - self.block_size))
                for row, stored in zip((k, v), past, strict=False)
            )
        blocks = [row.unflatten(2, (-1, self.block_size)) for row in (q, k, v)]
        # A causal query sees no place after its own, and those before are taken.
        visible = filled.unflatten(1, (-1, self.block_size))[:, None, :, None]
        if self.causal:
            visible = torch.ones(self.block_size, self.block_size, dtype=torch.bool, device=x.device).tril()
        o = self._attend(*blocks, visible).flatten(2, 3)
        return _take(o, places, length), k, v

    def _current_block(self, keys: Tensor, values: Tensor, count: Tensor) -> State:
        """The state after rows of `count` (batch, 1) keys and values (batch, heads, capacity, head_dim)."""
        slots = torch.arange(self.block_size, device=keys.device)
        stored = count % self.block_size
        places = (count - stored + slots).clamp_max(keys.shape[2] - 1)
        wide = torch.float64 if keys.dtype == torch.float64 else torch.float32
        taken = (slots < stored)[:, None, :, None]
        block = [_take(row, places, self.block_size).transpose(1, 2).to(wide) * taken for row in (keys, values)]
        return *block, stored.squeeze(1).to(wide)

    def _step(self, x: Tensor, state: State, real: Tensor | None) -> tuple[Tensor, State]:
        """One more position: its key and value are written into the current block, which is dropped once it is full."""
        keys, values, count = state
        q, k, v = self.project(x)
        q, k = self.encode(q, k, count.unsqueeze(1))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        slots, slot = torch.arange(self.block_size, device=x.device), count.unsqueeze(1)
        here = slots == slot if real is None else (slots == slot) & real
        here = here[:, None, :, None]
        keys, values = k.to(keys.dtype).where(here, keys), v.to(values.dtype).where(here, values)
        o = self._attend(q, keys.to(q.dtype), values.to(q.dtype), (slots <= slot)[:, None, None])
        count = count + (1 if real is None else real.squeeze(1))
        open_ = (count < self.block_size)[:, None, None, None]
        state = (keys * open_, values * open_, count % self.block_size)
        return self.output(o.transpose(1, 2), x, real), state


def _place(x: Tensor, places: Tensor | None, capacity: int) -> Tensor:
    """Put `x` (batch, length, heads, dim) at `places` of rows of zeros (batch, heads, capacity, dim)."""
    x = x.transpose(1, 2)
    if places is None:
        return F.pad(x, (0, 0, 0, capacity - x.shape[2]))
    index = places[:, None, :, None].expand_as(x)
    rows = x.new_zeros(*x.shape[:2], capacity + 1, x.shape[3])
    return rows.scatter(2, index, x)[:, :, :capacity]


def _take(rows: Tensor, places: Tensor | None, length: int) -> Tensor:
    """What stands at `places` of `rows` (batch, heads, capacity, dim): (batch, length, heads, dim)."""
    if places is None:
        return rows[:, :, :length].transpose(1, 2)
    batch, heads, capacity, dim = rows.shape
    index = places.clamp_max(capacity - 1)[:, None, :, None].expand(batch, heads, -1, dim)
    return rows.gather(2, index).transpose(1, 2)
