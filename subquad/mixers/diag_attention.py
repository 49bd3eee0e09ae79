"""DiagAttention (TransNormer, arXiv 2210.10340): attention inside blocks that do not overlap.

    T1: y = W_o norm(ReLU(Q Kᵀ / √e) V)        T2: y = W_o softmax(Q Kᵀ / √e) V        for each block of w positions

Causal: over the triangle. Blocks begin at the first real token of each sequence, positions begin in each block. On a
grid, blocks are square tiles.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.layers import activation as get_activation
from subquad.mixers.base import Mixer, State, grid_of, register_mixer
from subquad.mixers.transnormer import TransNormerMixer
from subquad.ops.blocks import from_blocks, to_blocks
from subquad.ops.packing import block_rows

_NOWHERE = 2**62


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
        length = x.shape[1]
        real = None if mask is None else mask[:, -length:]
        if state is not None and length == 1:
            return self._step(x, state, real)
        if state is None and real is None:
            places, count = None, torch.full_like(x[:, :1, 0], length, dtype=torch.long)
        else:
            real = torch.ones_like(x[..., 0], dtype=torch.bool) if real is None else real
            stored = torch.zeros_like(real[:, 0], dtype=torch.long) if state is None else state[2].long()
            order = stored.unsqueeze(1) + real.cumsum(1)
            places, count = (order - 1).where(real, _NOWHERE), order[:, -1:]
        blocks = -(-(length if state is None else length + self.block_size - 1) // self.block_size)
        o, keys, values = self._attend_in_blocks(x, places, blocks, state)
        return self.output(o, x, real), self._current_block(keys, values, count) if self.causal else None

    def mix_packed(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Mix sequences packed into one row: each begins with a block."""
        places = block_rows(cu_seqlens, x.shape[1], self.block_size).unsqueeze(0)
        # So many whole blocks are enough for any lengths.
        blocks = (x.shape[1] + (cu_seqlens.shape[0] - 1) * (self.block_size - 1)) // self.block_size
        return self.output(self._attend_in_blocks(x, places, blocks, None)[0], x)

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

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        weights = self.weights(q @ k.mT, visible)
        return F.dropout(weights, self.dropout, self.training) @ v

    def _attend_in_blocks(
        self, x: Tensor, places: Tensor | None, blocks: int, past: State | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend inside blocks.

        Args:
            x: (batch, length, dim).
            places: (batch, length), where each position goes in a row of blocks, as in `to_blocks`.
            blocks: Blocks of a row.
            past: State, whose keys and values are in the first block.

        Returns:
            o (batch, length, heads, head_dim), and keys and values (batch · heads · blocks, block_size, head_dim).
        """
        batch, length, _ = x.shape
        w = self.block_size
        q, k, v = self.project(x)
        positions = torch.arange(length, device=x.device) if places is None else places
        q, k = self.encode(q, k, positions % w)
        if self.causal:
            # A query sees no place after its own, and those before are taken.
            visible = torch.ones(w, w, dtype=torch.bool, device=x.device).tril()
        else:
            visible = to_blocks(torch.ones_like(k[..., :1]), places, blocks, w).mT > 0
        q, k, v = (to_blocks(rows, places, blocks, w) for rows in (q, k, v))
        if past is not None:
            first = torch.arange(w, device=x.device).expand(batch, w)
            k, v = (
                rows + to_blocks(stored.transpose(1, 2).to(rows.dtype), first, blocks, w)
                for rows, stored in zip((k, v), past, strict=False)
            )
        return from_blocks(self._attend(q, k, v, visible), places, batch, length, self.num_heads), k, v

    def _current_block(self, keys: Tensor, values: Tensor, count: Tensor) -> State:
        """The state after `count` (batch, 1) keys and values, in (batch · heads · blocks, block_size, head_dim)."""
        batch, w = len(count), self.block_size
        stored = count % w
        slots = torch.arange(w, device=keys.device)
        places = (count - stored + slots).where(slots < stored, _NOWHERE)
        wide = torch.float64 if keys.dtype == torch.float64 else torch.float32
        keys, values = (
            from_blocks(rows, places, batch, w, self.num_heads).transpose(1, 2).to(wide) for rows in (keys, values)
        )
        return keys, values, stored.squeeze(1).to(wide)

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
        unfinished = (count < self.block_size)[:, None, None, None]
        state = (keys * unfinished, values * unfinished, count % self.block_size)
        return self.output(o.transpose(1, 2), x, real), state


@register_mixer("diag_attention_2d")
class DiagAttention2D(DiagAttention):
    """Attention inside square tiles of a grid, as in the image models of TransNormer (arXiv 2210.10340).

    Tiles begin in the first row and column; where `tile` does not divide the grid, the last ones end with it. Positions
    begin in each tile and run row after row.

    Args:
        dim: Features in and out, a multiple of `num_heads`.
        causal: Must be False.
        height: Rows of the grid.
        width: Columns of the grid.
        tile: Rows and columns of a tile; the larger side of the grid makes one tile of all.
        num_heads: Heads.
        kernel: As in `DiagAttention`.
        norm: As in `DiagAttention`.
        positions: Relative positions of queries and keys: "lrpe", "rotary" or None.
        bias: Whether the four maps have biases.
        dropout: Probability of dropping weights in training.

    Example:
        >>> import torch
        >>> from subquad.mixers import DiagAttention2D
        >>> y, _ = DiagAttention2D(64, height=14, width=14)(torch.randn(2, 196, 64))
        >>> y.shape
        torch.Size([2, 196, 64])
    """

    directions = (False,)

    def __init__(
        self,
        dim: int,
        causal: bool = False,
        *,
        height: int,
        width: int,
        tile: int = 4,
        num_heads: int = 8,
        kernel: str = "relu",
        norm: str | None = None,
        positions: str | None = "lrpe",
        bias: bool = True,
        dropout: float = 0.0,
    ):
        grid = grid_of(height, width)
        if tile < 1:
            raise ValueError(f"`tile` must be positive, got {tile}")
        super().__init__(
            dim,
            causal,
            num_heads=num_heads,
            block_size=tile * tile,
            kernel=kernel,
            norm=norm,
            positions=positions,
            bias=bias,
            dropout=dropout,
        )
        self.grid: tuple[int, int] = grid
        self.tile = tile

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of grids (batch, height · width, dim)."""
        places, tiles = self._tiles(x.device)
        o, _, _ = self._attend_in_blocks(x, places.expand(x.shape[0], -1), tiles, None)
        return self.output(o, x), None

    def mix_packed(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Mix grids packed into one row."""
        return Mixer.mix_packed(self, x, cu_seqlens)

    def _tiles(self, device: torch.device) -> tuple[Tensor, int]:
        """Where each position (height · width,) goes in the row of all tiles, and the number of tiles."""
        assert self.grid is not None
        height, width = self.grid
        down, across = -(-height // self.tile), -(-width // self.tile)
        row, column = torch.arange(height, device=device).unsqueeze(1), torch.arange(width, device=device)
        tile = row // self.tile * across + column // self.tile
        places = tile * self.block_size + row % self.tile * self.tile + column % self.tile
        return places.flatten(), down * across
