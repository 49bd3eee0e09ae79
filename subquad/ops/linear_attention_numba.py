"""Causal linear attention as compiled loops for the CPU: a task walks along one sequence of one head, chunk by chunk.

The equations of a chunk are those of `linear_attention`. Its rows and the state stay in the cache, of the triangle of
scores only what is not zero is computed, and nothing but inputs and outputs is as long as the sequence. The backward
pass walks twice: forwards for the gradient of the queries, backwards for those of keys and values.

Legend: q, k, v, g rows of a chunk in tiles (chunk, dim), filled up with zeros; g gradient of the output; t transposed.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from subquad.ops.blocks import heads_first
from subquad.ops.loops import FASTMATH, array, compiled, run

# What is called stands in this file: compiled loops are kept on disk until the file they are in changes.

ROWS, COLUMNS = 4, 16
"""The part of a product that is summed at once: in float32 8 registers of 256 bits, of 16."""

Span = tuple[int, int, int]

_INT = ir.IntType(64)


def _address(context, builder, kind, array, place):
    """The address of element `place` of a contiguous array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [place])


def _in_llvm(function: Callable) -> Callable[..., None]:
    """A function that writes LLVM code where it is called, with what its callers pass, but for the typing context."""
    return intrinsic(function)


# In LLVM's own language: loops over arrays leave the sums in memory, and reach half the speed.
@_in_llvm
def _add_block(typingctx, c, c_place, c_row, a, a_place, a_row, a_turn, b, b_place, b_row, turns):
    """Add a product to ROWS × COLUMNS numbers: c[r, j] += Σ_s a[r, s] b[s, j].

    Arrays are contiguous, of one dtype; element (i, j) is at place + i · row + j, of `a` at place + r · row + s · turn.
    """
    signature = types.void(c, c_place, c_row, a, a_place, a_row, a_turn, b, b_place, b_row, turns)

    def generate(context, builder, signature, arguments):
        c, c_place, c_row, a, a_place, a_row, a_turn, b, b_place, b_row, turns = arguments
        number = context.get_value_type(c_kind.dtype)
        vector = ir.VectorType(number, COLUMNS)
        name = f"llvm.fmuladd.v{COLUMNS}f{c_kind.dtype.bitwidth}"
        multiply_add = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        nothing = ir.Constant(vector, ir.Undefined)
        first = ir.Constant(ir.VectorType(ir.IntType(32), COLUMNS), [0] * COLUMNS)
        align = c_kind.dtype.bitwidth // 8

        def at(kind, array, place, row, index):
            return _address(context, builder, kind, array, builder.add(place, builder.mul(row, index)))

        def wide(address):
            return builder.bitcast(address, vector.as_pointer())

        rows = [ir.Constant(_INT, r) for r in range(ROWS)]
        targets = [wide(at(c_kind, c, c_place, c_row, r)) for r in rows]
        sources = [builder.add(a_place, builder.mul(a_row, r)) for r in rows]
        sums = [cgutils.alloca_once(builder, vector) for _ in rows]
        for target, total in zip(targets, sums, strict=True):
            builder.store(builder.load(target, align=align), total)
        with cgutils.for_range(builder, turns) as loop:
            b_s = builder.load(wide(at(b_kind, b, b_place, b_row, loop.index)), align=align)
            for source, total in zip(sources, sums, strict=True):
                a_rs = builder.load(at(a_kind, a, source, a_turn, loop.index))
                one = builder.insert_element(nothing, a_rs, ir.Constant(ir.IntType(32), 0))
                everywhere = builder.shuffle_vector(one, nothing, first)
                builder.store(builder.call(multiply_add, [everywhere, b_s, builder.load(total)]), total)
        for target, total in zip(targets, sums, strict=True):
            builder.store(builder.load(total), target, align=align)

    c_kind, a_kind, b_kind = c, a, b
    return signature, generate


@_in_llvm
def _copy(typingctx, target, target_place, source, source_place, count):
    """Copy `count` numbers between contiguous arrays of one dtype."""
    signature = types.void(target, target_place, source, source_place, count)
    target_kind, source_kind = target, source

    def generate(context, builder, signature, arguments):
        target, target_place, source, source_place, count = arguments
        target = _address(context, builder, target_kind, target, target_place)
        source = _address(context, builder, source_kind, source, source_place)
        cgutils.raw_memcpy(builder, target, source, count, ir.Constant(_INT, target_kind.dtype.bitwidth // 8))

    return signature, generate


_helper = njit(fastmath=FASTMATH)

# Loops in place of slices that are assigned, which take seconds to compile.


@_helper
def _clear(tile, first):
    """Zeros in the rows from `first` on."""
    for r in range(first, len(tile)):
        for c in range(tile.shape[1]):
            tile[r, c] = 0


@_helper
def _take(target, source):
    """Copy the part that both matrices have."""
    for r in range(min(len(target), len(source))):
        for c in range(min(target.shape[1], source.shape[1])):
            target[r, c] = source[r, c]


# --- products of tiles: rows in fours, columns in sixteens -----------------------------------------------------------


@_helper
def _add_product(c, a, b, lower):
    """C += A B, of which A is a lower triangle or not."""
    width, inner = c.shape[1], a.shape[1]
    for j in range(0, width, COLUMNS):
        for i in range(0, len(c), ROWS):
            _add_block(c, i * width + j, width, a, i * inner, inner, 1, b, j, width, i + ROWS if lower else inner)


@_helper
def _add_transposed(c, a, b, lower):
    """C += Aᵀ B, of which A is a lower triangle or not."""
    width, inner = c.shape[1], a.shape[1]
    for j in range(0, width, COLUMNS):
        for i in range(0, len(c), ROWS):
            first = i if lower else 0
            _add_block(
                c, i * width + j, width, a, first * inner + i, 1, inner, b, first * width + j, width, len(a) - first
            )


@_helper
def _scores(c, a, b_t):
    """The lower triangle C of A B; beyond blocks of 4 × 4 on the diagonal, nothing above it is ever read."""
    size, inner = len(c), a.shape[1]
    _clear(c, 0)
    for i in range(0, size, ROWS):
        for j in range(0, i + ROWS, COLUMNS):
            _add_block(c, i * size + j, size, a, i * inner, inner, 1, b_t, j, size, inner)
        for r in range(ROWS):
            for j in range(r + 1, ROWS):
                c[i + r, i + j] = 0


@_helper
def _transpose(transposed, tile):
    for i in range(0, len(tile), 8):
        for j in range(tile.shape[1]):
            for r in range(8):
                transposed[j, i + r] = tile[i + r, j]


@_helper
def _whole(dim):
    """Columns of the tiles for `dim` features."""
    return -(-dim // COLUMNS) * COLUMNS


@_helper
def _read(tile, x, strides, at, rows, dim):
    """Copy rows of x, from `at` (row of the batch, position, head) on, to a tile that is zero beside them."""
    place = at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2]
    for r in range(rows):
        _copy(tile, r * tile.shape[1], x, place + r * strides[1], dim)
    _clear(tile, rows)


@_helper
def _write(x, tile, strides, at, rows, dim):
    place = at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2]
    for r in range(rows):
        _copy(x, place + r * strides[1], tile, r * tile.shape[1], dim)


# --- the walks along the chunks --------------------------------------------------------------------------------------


@_helper
def _outputs(q, k, v, state, o, span, head, strides, chunk):
    """Forwards in time, with the state before each chunk, which ends as that after the last."""
    row, first, last = span
    (key_dim, value_dim), inner = state.shape, _whole(state.shape[0])
    q_c, k_c = np.zeros((chunk, inner), k.dtype), np.zeros((chunk, inner), k.dtype)
    v_c, k_t = np.zeros((chunk, _whole(value_dim)), k.dtype), np.empty((inner, chunk), k.dtype)
    scores, o_c = np.empty((chunk, chunk), k.dtype), np.empty_like(v_c)
    sums = np.zeros((inner, v_c.shape[1]), k.dtype)
    _take(sums, state)
    for start in range(first, last, chunk):
        rows, at = min(chunk, last - start), (row, start, head)
        _read(q_c, q, strides[0], at, rows, key_dim)
        _read(k_c, k, strides[1], at, rows, key_dim)
        _read(v_c, v, strides[2], at, rows, value_dim)
        _clear(o_c, 0)
        _add_product(o_c, q_c, sums, False)
        _transpose(k_t, k_c)
        _scores(scores, q_c, k_t)
        _add_product(o_c, scores, v_c, True)
        _add_transposed(sums, k_c, v_c, False)
        _write(o, o_c, strides[3], at, rows, value_dim)
    _take(state, sums)


@_helper
def _queries_backward(k, v, g, state, grad_q, span, head, strides, chunk):
    """Forwards in time, with the transposed state before each chunk: the gradient of the queries."""
    row, first, last = span
    (key_dim, value_dim), inner = state.shape, _whole(state.shape[0])
    k_c, v_c = np.zeros((chunk, inner), k.dtype), np.zeros((chunk, _whole(value_dim)), k.dtype)
    g_c, v_t = np.zeros_like(v_c), np.empty(v_c.T.shape, k.dtype)
    scores, grad_c = np.empty((chunk, chunk), k.dtype), np.empty_like(k_c)
    sums_t = np.zeros((v_c.shape[1], inner), k.dtype)
    _take(sums_t, state.T)
    for start in range(first, last, chunk):
        rows, at = min(chunk, last - start), (row, start, head)
        _read(k_c, k, strides[1], at, rows, key_dim)
        _read(v_c, v, strides[2], at, rows, value_dim)
        _read(g_c, g, strides[3], at, rows, value_dim)
        _clear(grad_c, 0)
        _add_product(grad_c, g_c, sums_t, False)
        _transpose(v_t, v_c)
        _scores(scores, g_c, v_t)
        _add_product(grad_c, scores, k_c, True)
        _add_transposed(sums_t, v_c, k_c, False)
        _write(grad_q, grad_c, strides[4], at, rows, key_dim)


@_helper
def _keys_and_values_backward(q, k, v, g, grad_state, grad_k, grad_v, span, head, strides, chunk):
    """Backwards in time, with the gradient of the state behind each chunk, which ends as that of the first state."""
    row, first, last = span
    (key_dim, value_dim), inner = grad_state.shape, _whole(grad_state.shape[0])
    q_c, k_c = np.zeros((chunk, inner), k.dtype), np.zeros((chunk, inner), k.dtype)
    v_c, k_t = np.zeros((chunk, _whole(value_dim)), k.dtype), np.empty((inner, chunk), k.dtype)
    g_c, v_t = np.zeros_like(v_c), np.empty(v_c.T.shape, k.dtype)
    scores, grad_k_c, grad_v_c = np.empty((chunk, chunk), k.dtype), np.empty_like(k_c), np.empty_like(v_c)
    sums, sums_t = np.empty((inner, v_c.shape[1]), k.dtype), np.zeros((v_c.shape[1], inner), k.dtype)
    _take(sums_t, grad_state.T)
    for start in range(first + (last - first - 1) // chunk * chunk, first - 1, -chunk):
        rows, at = min(chunk, last - start), (row, start, head)
        _read(q_c, q, strides[0], at, rows, key_dim)
        _read(k_c, k, strides[1], at, rows, key_dim)
        _read(v_c, v, strides[2], at, rows, value_dim)
        _read(g_c, g, strides[3], at, rows, value_dim)
        _clear(grad_k_c, 0)
        _add_product(grad_k_c, v_c, sums_t, False)
        _transpose(v_t, v_c)
        _scores(scores, g_c, v_t)
        _add_transposed(grad_k_c, scores, q_c, True)
        _write(grad_k, grad_k_c, strides[5], at, rows, key_dim)
        _clear(grad_v_c, 0)
        _transpose(sums, sums_t)
        _add_product(grad_v_c, k_c, sums, False)
        _transpose(k_t, k_c)
        _scores(scores, q_c, k_t)
        _add_transposed(grad_v_c, scores, g_c, True)
        _write(grad_v, grad_v_c, strides[6], at, rows, value_dim)
        _add_transposed(sums_t, g_c, q_c, False)
    _take(grad_state, sums_t.T)


@compiled
def _forward(q, k, v, state, o, spans, strides, chunk):
    heads = state.shape[1]
    for task in prange(len(spans) * heads):
        # Heads last: threads take tasks that follow each other, and packed sequences may be of any length.
        index, head = task % len(spans), task // len(spans)
        span = (spans[index, 0], spans[index, 1], spans[index, 2])
        _outputs(q, k, v, state[index, head], o, span, head, strides, chunk)


@compiled
def _backward(q, k, v, g, state, grad_q, grad_k, grad_v, grad_state, spans, strides, chunk):
    heads = state.shape[1]
    for task in prange(2 * len(spans) * heads):
        index, head = task // 2 % len(spans), task // 2 // len(spans)
        span = (spans[index, 0], spans[index, 1], spans[index, 2])
        if task % 2:
            _queries_backward(k, v, g, state[index, head], grad_q, span, head, strides, chunk)
        else:
            _keys_and_values_backward(q, k, v, g, grad_state[index, head], grad_k, grad_v, span, head, strides, chunk)


def _flat(x: Tensor) -> np.ndarray:
    """The memory of a tensor, from its first number to its last."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.detach().as_strided((extent if x.numel() else 0,), (1,)).numpy()


def _layout(tensors: Sequence[Tensor], spans: Sequence[Span], chunk_size: int) -> list:
    """What both loops take last: spans, strides of batch, length and heads, and the rows of a chunk."""
    longest = max((stop - start for _, start, stop in spans), default=0)
    chunk = -(-min(chunk_size, max(longest, 1)) // COLUMNS) * COLUMNS
    strides = np.array([x.stride()[:3] for x in tensors], dtype=np.int64)
    return [np.array(spans, dtype=np.int64).reshape(-1, 3), strides, chunk]


def forward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, spans: Sequence[Span], chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Attend within spans of rows, from a state on.

    Args:
        q: (batch, length, heads, key_dim), dtype of `state`.
        k: Likewise.
        v: (batch, length, heads, value_dim), dtype of `state`.
        state: (spans, heads, key_dim, value_dim).
        spans: Row of the batch, first position, and the position behind the last one.
        chunk_size: Rows of a chunk; rounded up to a multiple of 16.

    Returns:
        o (batch, length, heads, value_dim), and the state after the last position of each span.
    """
    inputs = [x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v)]
    o, final = v.new_empty(v.shape), state.clone(memory_format=torch.contiguous_format)
    run(_forward, [*map(_flat, inputs), final.numpy(), _flat(o)], _layout([*inputs, o], spans, chunk_size))
    return o, final


def backward(
    grad_o: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    spans: Sequence[Span],
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q and k (heads first in memory), v and the state, from those of o and the last state."""
    inputs = [x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, grad_o)]
    grad_q, grad_k, grad_v = heads_first(q, q.shape), heads_first(k, k.shape), v.new_empty(v.shape)
    grad_state = grad_final.clone(memory_format=torch.contiguous_format)
    arrays = [*map(_flat, inputs), array(state), *map(_flat, (grad_q, grad_k, grad_v)), grad_state.numpy()]
    run(_backward, arrays, _layout([*inputs, grad_q, grad_k, grad_v], spans, chunk_size))
    return grad_q, grad_k, grad_v, grad_state
