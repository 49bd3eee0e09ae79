"""Linear attention without a denominator: sums of outer products instead of a matrix of scores.

    causal:        o_s = q_s (S_0 + Σ_{t≤s} k_tᵀ v_t)
    bidirectional: o_s = q_s (S_0 + Σ_t k_tᵀ v_t)

Layout: q, k (batch, length, heads, key_dim), v (batch, length, heads, value_dim), states (batch, heads, key_dim,
value_dim). Precision: float64 in float64; everything else is computed, and states are kept, in float32; o has the dtype
of v. Cost: linear in the length, in time and memory; q, k and v are all that is kept for the backward pass.

| backend   | what it is                                           | gradients of every input and state |
| reference | the triangle of scores; loop over packed sequences   | autograd, any order |
| torch     | chunks: scores inside, a state from chunk to chunk   | hand-written, first order |
| numba     | the same, causal, as compiled loops (CPU)            | hand-written, first order |

With Q, K, V the rows of one chunk, S the state before it, M the lower triangle, G the gradient of its outputs O and D
the gradient of the state after it:

    O = Q S + (Q Kᵀ ⊙ M) V                S ← S + Kᵀ V
    ∂Q = G Sᵀ + (G Vᵀ ⊙ M) K;   ∂K = V Dᵀ + (G Vᵀ ⊙ M)ᵀ Q;   ∂V = K D + (Q Kᵀ ⊙ M)ᵀ G;   D ← D + Qᵀ G

Bidirectional: no scores, S and D are the sums over all chunks. In the backend of torch o and the gradients have the
heads before the length in memory, q, k and v of that order are cut into chunks without a copy, and packed sequences are
moved to begin with a chunk. Compiled loops read any order; their gradients of q and k have the heads first in memory, o
and the gradient of v are contiguous.
"""

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from subquad.ops.backends import choose, refuse_second_order
from subquad.ops.blocks import cut, heads_first, join
from subquad.ops.packing import block_rows, boundaries, validate_cu_seqlens
from subquad.ops.precision import accumulator

SEGMENT_NUMBERS = 2**21
"""Numbers in a piece of q or v that is computed at once; 2**23 all at once were measured twice as slow (CPU)."""


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial_state: Tensor | None = None,
    *,
    causal: bool = True,
    chunk_size: int = 64,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attend without a denominator, o_s = q_s Σ_t k_tᵀ v_t (Katharopoulos et al. 2020, arXiv 2006.16236, equation 9).

    Args:
        q: (batch, length, heads, key_dim); feature maps and scales are the caller's.
        k: (batch, length, heads, key_dim).
        v: (batch, length, heads, value_dim).
        initial_state: Sum of outer products from before the first position, (batch, heads, key_dim, value_dim);
            default zeros.
        causal: Whether the sum ends at the position itself.
        chunk_size: Rows that are multiplied at once. Compiled loops round it up to a multiple of 16; for torch a causal
            sequence of up to twice as many is one chunk.
        cu_seqlens: (num_sequences + 1,) int, boundaries of sequences packed into one row: the batch must be 1, sums
            start anew at each, and states are (num_sequences, heads, key_dim, value_dim). Empty sequences are allowed.
        backend: "auto", "numba", "torch" or "reference"; compiled loops are for causal sums.

    Returns:
        o (batch, length, heads, value_dim), dtype of `v`, and the sum after the last position (of each sequence),
        float32 or float64.

    Raises:
        ValueError: If shapes or dtypes do not fit or the backend cannot run.
    """
    _validate(q, k, v, initial_state, chunk_size, cu_seqlens)
    chosen = choose("linear_attention", backend, q.device)
    if initial_state is not None:
        initial_state = initial_state.to(accumulator(v))
    if chosen == "reference":
        return _reference(q, k, v, initial_state, causal, cu_seqlens)
    if chosen == "numba" and backend == "auto" and (not causal or _too_few(q, cu_seqlens)):
        chosen = "torch"
    if chosen == "numba" and not causal:
        raise ValueError(
            "backend 'numba' of linear_attention is causal: use backend='torch' for sums over all positions"
        )
    if q.shape[1] == 1 and cu_seqlens is None:
        # A decoding step: a few expressions cost less than one call of a registered operator.
        return _step(q, k, v, initial_state)
    return _linear_attention(q, k, v, initial_state, causal, chunk_size, cu_seqlens, chosen)


def _too_few(q: Tensor, cu_seqlens: Tensor | None) -> bool:
    """Whether compiled loops, twice as fast, would leave more than half of the threads without a sequence of a head.

    While compiling the answer is no: it would fix the size of the batch.
    """
    if torch.compiler.is_compiling():
        return False
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return 2 * sequences * q.shape[2] < torch.get_num_threads()


def _validate(
    q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor | None, chunk_size: int, cu_seqlens: Tensor | None
) -> None:
    if q.ndim != 4 or q.shape[1] == 0:
        raise ValueError(f"`q` must be (batch, length, heads, key_dim) with length > 0, got {tuple(q.shape)}")
    if k.shape != q.shape:
        raise ValueError(f"`k` must be {tuple(q.shape)}, as `q`, got {tuple(k.shape)}")
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(f"`v` must be {tuple(q.shape[:3])} and value_dim, got {tuple(v.shape)}")
    if not (q.is_floating_point() and k.is_floating_point() and v.is_floating_point()):
        raise ValueError(f"`q`, `k` and `v` must be real floating-point tensors, got {q.dtype}, {k.dtype}, {v.dtype}")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be positive, got {chunk_size}")
    sequences = q.shape[0]
    if cu_seqlens is not None:
        validate_cu_seqlens(cu_seqlens, q.shape[0])
        sequences = cu_seqlens.shape[0] - 1
    expected = (sequences, q.shape[2], q.shape[3], v.shape[3])
    if initial_state is not None and tuple(initial_state.shape) != expected:
        raise ValueError(f"`initial_state` must be {expected}, got {tuple(initial_state.shape)}")


def _step(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """One position: the state with the outer product, and the product with it."""
    wide = accumulator(v)
    q, k = q.to(wide).squeeze(1), k.to(wide).squeeze(1)
    update = k.unsqueeze(-1) * v.to(wide).squeeze(1).unsqueeze(-2)
    state = update if state is None else state + update
    return (q.unsqueeze(-1) * state).sum(-2).unsqueeze(1).to(v.dtype), state


# --- reference -------------------------------------------------------------------------------------------------------


def _reference(
    q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor | None, causal: bool, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    if cu_seqlens is not None:
        lengths = [stop - start for start, stop in pairwise(boundaries(cu_seqlens, q.shape[1]))]
        states = [None] * len(lengths) if initial_state is None else initial_state.split(1)
        parts = [
            _reference(*sequence, causal, None)
            for sequence in zip(q.split(lengths, 1), k.split(lengths, 1), v.split(lengths, 1), states, strict=True)
        ]
        return torch.cat([o for o, _ in parts], dim=1), torch.cat([final for _, final in parts])
    wide = accumulator(v)
    q, k, values = q.to(wide), k.to(wide), v.to(wide)
    with torch.autocast(q.device.type, enabled=False):
        scores = torch.einsum("bshd,bthd->bhst", q, k)
        o = torch.einsum("bhst,bthe->bshe", scores.tril() if causal else scores, values)
        final = torch.einsum("bthd,bthe->bhde", k, values)
        if initial_state is not None:
            o = o + torch.einsum("bshd,bhde->bshe", q, initial_state)
            final = final + initial_state
    return o.to(v.dtype), final


# --- torch: chunks ---------------------------------------------------------------------------------------------------


class _Chunks:
    """How rows are cut: (batch, length, heads, dim) as (batch · heads · chunks, chunk_size, dim), zeros at the end.

    Args:
        x: A tensor of the shape that is cut.
        causal: Whether chunks need scores inside.
        chunk_size: Rows of a chunk, if there are several.
        cu_seqlens: Boundaries of packed sequences, each of which begins with a chunk.
    """

    def __init__(self, x: Tensor, causal: bool, chunk_size: int, cu_seqlens: Tensor | None):
        self.batch, self.length, self.heads = x.shape[:3]
        self.dtype = accumulator(x)
        self.causal = causal
        self.size = chunk_size
        self.places: Tensor | None = None
        if cu_seqlens is None:
            if not causal or self.length <= 2 * chunk_size:
                self.size = self.length
            self.bounds = [0, -(-self.length // self.size)]
        else:
            lengths = [stop - start for start, stop in pairwise(boundaries(cu_seqlens, self.length))]
            self.bounds = [0, *accumulate(-(-length // self.size) for length in lengths)]
            self.places = block_rows(cu_seqlens, self.length, self.size).unsqueeze(0)
        self.count = self.bounds[-1]

    def cut(self, x: Tensor) -> Tensor:
        """Rows in chunks: a view where heads come before the length in memory."""
        return cut(x.to(self.dtype), self.places, self.count, self.size)

    def join(self, chunks: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows of chunks."""
        return join(chunks, self.places, self.batch, self.length, self.heads).to(dtype)

    def memory(self, keys: Tensor, values: Tensor) -> Tensor:
        """For `running_sums`: a state for each chunk, and one more."""
        return keys.new_empty(len(keys) + 1, keys.shape[-1], values.shape[-1])

    def running_sums(
        self, keys: Tensor, values: Tensor, start: Tensor | None, memory: Tensor, reverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Sums of outer products over the chunks of each sequence, for every head.

        Args:
            keys: (batch · heads · chunks, size, key_dim).
            values: (batch · heads · chunks, size, value_dim).
            start: (sequences, heads, key_dim, value_dim), what the sums start from; default zeros.
            memory: From `memory`; overwritten.
            reverse: Sum from the last chunk to the first.

        Returns:
            The sum before each chunk (bidirectional: over all chunks of its sequence), (batch · heads · chunks,
            key_dim, value_dim), part of `memory`, and that after the last one, (sequences, heads, key_dim, value_dim).
        """
        # The sum behind a chunk is that before the next: it is read one place from where it is made.
        after, before = (memory[:-1], memory[1:]) if reverse else (memory[1:], memory[:-1])
        sums = before if self.causal else after
        torch.bmm(keys.mT, values, out=after)
        shape = (self.batch * self.heads, self.count, *after.shape[1:])
        after, before = after.view(shape), before.view(shape)
        spans = list(pairwise(self.bounds))
        if start is None:
            start = after.new_zeros(len(spans) * self.batch, self.heads, *shape[2:])
        starts, totals = start.reshape(len(spans), shape[0], *shape[2:]), []
        for first, (begin, stop) in zip(starts, spans, strict=True):
            total = first
            for chunk in reversed(after[:, begin:stop].unbind(1)) if reverse else after[:, begin:stop].unbind(1):
                total = chunk.add_(total)
            totals.append(total)
        final = torch.stack(totals).view_as(start)
        for first, total, (begin, stop) in zip(starts, final.view_as(starts), spans, strict=True):
            if not self.causal:
                after[:, begin:stop] = total.unsqueeze(1)
            elif begin < stop:
                before[:, stop - 1 if reverse else begin] = first
        return sums, final


def _forward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, causal: bool, chunk_size: int, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    chunks = _Chunks(v, causal, chunk_size, cu_seqlens)
    queries, keys, values = chunks.cut(q), chunks.cut(k), chunks.cut(v)
    states, final = chunks.running_sums(keys, values, state, chunks.memory(keys, values))
    o = queries @ states
    if causal:
        o.baddbmm_((queries @ keys.mT).tril_(), values)
    return chunks.join(o, v.dtype), final


def _backward(
    grad_o: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    causal: bool,
    chunk_size: int,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chunks = _Chunks(v, causal, chunk_size, cu_seqlens)
    queries, keys, values, incoming = chunks.cut(q), chunks.cut(k), chunks.cut(v), chunks.cut(grad_o)
    # Memory is used again where it can be: fresh memory costs as much as a product.
    memory = chunks.memory(keys, values)
    states, _ = chunks.running_sums(keys, values, state, memory)
    grad_q = incoming @ states.mT
    grad_states, grad_state = chunks.running_sums(queries, incoming, grad_final, memory, reverse=True)
    grad_k, grad_v = values @ grad_states.mT, keys @ grad_states
    if causal:
        scores = incoming @ values.mT
        grad_q.baddbmm_(scores.tril_(), keys)
        grad_k.baddbmm_(scores.mT, queries)
        torch.bmm(queries, keys.mT, out=scores)
        grad_v.baddbmm_(scores.tril_().mT, incoming)
    return chunks.join(grad_q, q.dtype), chunks.join(grad_k, k.dtype), chunks.join(grad_v, v.dtype), grad_state


def _segments(q: Tensor, v: Tensor, causal: bool, chunk_size: int, cu_seqlens: Tensor | None) -> list[slice]:
    """The pieces in which a long causal sequence is computed, one after another.

    What a piece needs beside inputs and outputs then fits memory that is used again: fresh memory costs more than the
    arithmetic.
    """
    length = q.shape[1]
    chunk_numbers = max(chunk_size * q.shape[0] * q.shape[2] * max(q.shape[3], v.shape[3]), 1)
    rows = max(SEGMENT_NUMBERS // chunk_numbers, 2) * chunk_size
    if not causal or cu_seqlens is not None or length <= rows:
        return [slice(0, length)]
    return [slice(start, start + rows) for start in range(0, length, rows)]


# --- the operator ----------------------------------------------------------------------------------------------------


def _for_loops(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[tuple[int, int, int]]]:
    """What compiled loops take: everything in the dtype of states, and for each state its row, begin and end."""
    wide, (batch, length) = accumulator(v), q.shape[:2]
    if cu_seqlens is None:
        spans = [(row, 0, length) for row in range(batch)]
    else:
        spans = [(0, start, stop) for start, stop in pairwise(boundaries(cu_seqlens, length))]
    if state is None:
        state = v.new_zeros(len(spans), *q.shape[2:], v.shape[3], dtype=wide)
    return q.to(wide), k.to(wide), v.to(wide), state, spans


@torch.library.custom_op("subquad::linear_attention", mutates_args=())
def _linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial_state: Tensor | None,
    causal: bool,
    chunk_size: int,
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend == "numba":
        from subquad.ops import linear_attention_numba

        o, final = linear_attention_numba.forward(*_for_loops(q, k, v, initial_state, cu_seqlens), chunk_size)
        return o.to(v.dtype), final
    segments = _segments(q, v, causal, chunk_size, cu_seqlens)
    with torch.autocast(v.device.type, enabled=False):
        if len(segments) == 1:
            return _forward(q, k, v, initial_state, causal, chunk_size, cu_seqlens)
        o, state = heads_first(v, v.shape), initial_state
        for rows in segments:
            o[:, rows], state = _forward(q[:, rows], k[:, rows], v[:, rows], state, causal, chunk_size, None)
    assert state is not None
    return o, state


@_linear_attention.register_fake
def _(q, k, v, initial_state, causal, chunk_size, cu_seqlens, backend):
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    o = v.new_empty(v.shape) if backend == "numba" else heads_first(v, v.shape)
    return o, v.new_empty(sequences, *q.shape[2:], v.shape[3], dtype=accumulator(v))


@torch.library.custom_op("subquad::linear_attention_backward", mutates_args=())
def _linear_attention_backward(
    grad_o: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial_state: Tensor | None,
    causal: bool,
    chunk_size: int,
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if backend == "numba":
        from subquad.ops import linear_attention_numba

        wide = grad_o.to(grad_final.dtype)
        *gradients, grad_state = linear_attention_numba.backward(
            wide, grad_final, *_for_loops(q, k, v, initial_state, cu_seqlens), chunk_size
        )
        grad_q, grad_k, grad_v = (gradient.to(x.dtype) for gradient, x in zip(gradients, (q, k, v), strict=True))
        return grad_q, grad_k, grad_v, grad_state
    segments = _segments(q, v, causal, chunk_size, cu_seqlens)
    with torch.autocast(v.device.type, enabled=False):
        if len(segments) == 1:
            return _backward(grad_o, grad_final, q, k, v, initial_state, causal, chunk_size, cu_seqlens)
        states = [initial_state]
        for rows in segments[:-1]:
            keys, values = (x[:, rows].transpose(1, 2).to(grad_final.dtype) for x in (k, v))
            states.append(keys.mT @ values if states[-1] is None else states[-1] + keys.mT @ values)
        grad_q, grad_k, grad_v = (heads_first(x, x.shape) for x in (q, k, v))
        grad_state = grad_final
        for rows, state in zip(reversed(segments), reversed(states), strict=True):
            grad_q[:, rows], grad_k[:, rows], grad_v[:, rows], grad_state = _backward(
                grad_o[:, rows], grad_state, q[:, rows], k[:, rows], v[:, rows], state, causal, chunk_size, None
            )
    return grad_q, grad_k, grad_v, grad_state


@_linear_attention_backward.register_fake
def _(grad_o, grad_final, q, k, v, initial_state, causal, chunk_size, cu_seqlens, backend):
    grad_v = v.new_empty(v.shape) if backend == "numba" else heads_first(v, v.shape)
    return heads_first(q, q.shape), heads_first(k, k.shape), grad_v, grad_final.new_empty(grad_final.shape)


def _save(ctx, inputs, output):
    q, k, v, initial_state, ctx.causal, ctx.chunk_size, cu_seqlens, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, initial_state, cu_seqlens)


def _differentiate(ctx, grad_o, grad_final):
    q, k, v, initial_state, cu_seqlens = ctx.saved_tensors
    grad_q, grad_k, grad_v, grad_initial = _linear_attention_backward(
        grad_o, grad_final, q, k, v, initial_state, ctx.causal, ctx.chunk_size, cu_seqlens, ctx.backend
    )
    return grad_q, grad_k, grad_v, None if initial_state is None else grad_initial, None, None, None, None


_linear_attention.register_autograd(_differentiate, setup_context=_save)
_linear_attention_backward.register_autograd(refuse_second_order("linear_attention"))
