"""Gates and rotations as compiled loops for the CPU: what is needed of a gate or feature is computed where it is used.

Legend: z logits of a gate, s = σ(z), n = σ(−z), g gradient of an output; prange runs over pieces of the rows.
"""

import math

import numba
import numpy as np
import torch
from numba import prange
from numba.extending import overload
from torch import Tensor

from subquad.ops.loops import FASTMATH, array, compiled, run

# What is inlined stands in this file: compiled loops are kept on disk until the file they are in changes.

# float32: e^x = 2^n e^r with |r| ≤ log(2)/2 and six terms of the series, which compilers turn into vector instructions;
# a call of the C library they leave alone. Smaller arguments than the lowest would leave the normal numbers.
_LOWEST = np.float32(-87)
_PER_LOG_2 = np.float32(1 / math.log(2))
_LOG_2_HIGH = np.float32(0.693359375)
_LOG_2_LOW = np.float32(math.log(2) - 0.693359375)
_HALF, _ONE = np.float32(0.5), np.float32(1)
_C3, _C4, _C5, _C6 = (np.float32(1 / math.factorial(k)) for k in range(3, 7))


def exp_of_negative(x: float) -> float:
    """The exponential of x ≤ 0, for compiled loops."""
    return math.exp(x)


@overload(exp_of_negative, jit_options={"fastmath": FASTMATH})
def _(x):
    if x != numba.float32:
        return lambda x: math.exp(x)

    def series(x):
        x = _LOWEST if x < _LOWEST else x
        n = np.int32(x * _PER_LOG_2 - _HALF)
        r = x - np.float32(n) * _LOG_2_HIGH - np.float32(n) * _LOG_2_LOW
        # The bits of 2^n: an exponent, and nothing else.
        return np.int32((n + 127) << 23).view(np.float32) * (
            _ONE + r * (_ONE + r * (_HALF + r * (_C3 + r * (_C4 + r * (_C5 + r * _C6)))))
        )

    return series


# Inlined, or the loop around it is not turned into vector instructions.
@numba.njit(inline="always")
def sigmoids(z, one):
    """σ(z) and σ(−z), each to its last digits; `one` is 1 in the dtype of z."""
    small = exp_of_negative(-abs(z))
    share = one / (one + small)
    return share * (one if z >= 0 else small), share * (small if z >= 0 else one)


@compiled
def _product(x, z, y):
    one = x.dtype.type(1)
    for i in prange(x.size):
        s, _ = sigmoids(z[i], one)
        y[i] = x[i] * (z[i] * s)


@compiled
def _product_backward(g, x, z, grad_x, grad_z):
    one = x.dtype.type(1)
    for i in prange(x.size):
        s, n = sigmoids(z[i], one)
        silu = z[i] * s
        grad_x[i] = g[i] * silu
        grad_z[i] = g[i] * x[i] * (s + silu * n)


@compiled
def _input(x, z, bound, starts, inputs, decay):
    one = x.dtype.type(1)
    d = z.shape[1]
    for piece in prange(len(starts) - 1):
        complement = np.empty(d, x.dtype)
        for t in range(starts[piece], starts[piece + 1]):
            for c in range(d):
                s, n = sigmoids(z[t, c], one)
                decay[t, c] = bound[c] + (one - bound[c]) * s
                complement[c] = (one - bound[c]) * n
            for first in range(0, x.shape[1], d):
                x_t, inputs_t = x[t, first : first + d], inputs[t, first : first + d]
                for c in range(d):
                    s, _ = sigmoids(x_t[c], one)
                    inputs_t[c] = x_t[c] * s * complement[c]


@compiled
def _input_backward(grad_inputs, grad_decay, x, z, bound, starts, grad_x, grad_z, grad_bound):
    one = x.dtype.type(1)
    d = z.shape[1]
    for piece in prange(len(starts) - 1):
        s_t, n_t, by_gate = np.empty(d, x.dtype), np.empty(d, x.dtype), np.empty(d, x.dtype)
        for t in range(starts[piece], starts[piece + 1]):
            for c in range(d):
                s_t[c], n_t[c] = sigmoids(z[t, c], one)
                by_gate[c] = grad_decay[t, c]
            for first in range(0, x.shape[1], d):
                g_t, x_t, grad_t = (
                    grad_inputs[t, first : first + d],
                    x[t, first : first + d],
                    grad_x[t, first : first + d],
                )
                for c in range(d):
                    s, n = sigmoids(x_t[c], one)
                    silu = x_t[c] * s
                    by_gate[c] -= g_t[c] * silu
                    grad_t[c] = g_t[c] * (one - bound[c]) * n_t[c] * (s + silu * n)
            for c in range(d):
                grad_z[t, c] = by_gate[c] * (one - bound[c]) * s_t[c] * n_t[c]
                grad_bound[piece, c] += by_gate[c] * n_t[c]


# Sums may be taken in any order, or they are no vector instructions; what is inlined would be held to the order again.
@numba.njit(fastmath=FASTMATH | {"reassoc"})
def _component(x, direction):
    total = x.dtype.type(0)
    for k in range(len(x)):
        total += x[k] * direction[k]
    return total


@numba.njit(inline="always")
def _feature(x, offset, slope, f):
    """The feature c + elu(x) and its derivative, which are x and 1 where the constant is NaN."""
    one = x.dtype.type(1)
    if np.isnan(offset):
        for k in range(len(x)):
            f[k], slope[k] = x[k], one
    else:
        for k in range(len(x)):
            small = exp_of_negative(-abs(x[k]))
            f[k] = offset + (x[k] if x[k] > 0 else small - one)
            slope[k] = one if x[k] > 0 else small


@compiled
def _rotate(x, cos, sin, direction, offset, starts, y):
    dim, pairs = x.shape[3], x.shape[3] // 2
    for piece in prange(len(starts) - 1):
        f, slope = np.empty(dim, x.dtype), np.empty(dim, x.dtype)
        for t in range(starts[piece], starts[piece + 1]):
            for b in range(len(x)):
                row = b % len(cos)
                re, im = cos[row, t], sin[row, t]
                for h in range(x.shape[2]):
                    _feature(x[b, t, h], offset, slope, f)
                    twice = 2 * _component(f, direction)
                    for k in range(dim):
                        f[k] -= twice * direction[k]
                    y_t = y[b, h, t]
                    for m in range(pairs):
                        y_t[2 * m] = f[2 * m] * re[m] - f[2 * m + 1] * im[m]
                        y_t[2 * m + 1] = f[2 * m] * im[m] + f[2 * m + 1] * re[m]
                    for k in range(2 * pairs, dim):
                        y_t[k] = f[k]


@compiled
def _rotate_backward(g, x, cos, sin, direction, offset, starts, grad_x, grad_angles):
    dim, pairs = x.shape[3], x.shape[3] // 2
    for piece in prange(len(starts) - 1):
        f, slope, back = np.empty(dim, x.dtype), np.empty(dim, x.dtype), np.empty(dim, x.dtype)
        for t in range(starts[piece], starts[piece + 1]):
            for b in range(len(x)):
                row = b % len(cos)
                re, im, by_angle = cos[row, t], sin[row, t], grad_angles[row, t]
                for h in range(x.shape[2]):
                    g_t, grad_t = g[b, h, t], grad_x[b, t, h]
                    _feature(x[b, t, h], offset, slope, f)
                    twice = 2 * _component(f, direction)
                    for k in range(dim):
                        f[k] -= twice * direction[k]
                    for m in range(pairs):
                        back[2 * m] = g_t[2 * m] * re[m] + g_t[2 * m + 1] * im[m]
                        back[2 * m + 1] = g_t[2 * m + 1] * re[m] - g_t[2 * m] * im[m]
                        by_angle[m] += f[2 * m] * back[2 * m + 1] - f[2 * m + 1] * back[2 * m]
                    for k in range(2 * pairs, dim):
                        back[k] = g_t[k]
                    twice = 2 * _component(back, direction)
                    for k in range(dim):
                        grad_t[k] = (back[k] - twice * direction[k]) * slope[k]


def _starts(rows: int) -> np.ndarray:
    """Where the pieces of rows start, one for each thread, and where the last one ends."""
    pieces = min(rows, torch.get_num_threads())
    return np.arange(pieces + 1) * rows // max(pieces, 1)


def _flat(*tensors: Tensor) -> list[np.ndarray]:
    """The numbers of tensors of one shape and one order in memory, without gaps."""
    return [tensor.detach().as_strided((tensor.numel(),), (1,)).numpy() for tensor in tensors]


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    """`tensor` in the order in memory and the dtype of `other`, which has no gaps."""
    if tensor.stride() == other.stride() and tensor.dtype == other.dtype:
        return tensor
    return torch.empty_like(other).copy_(tensor)


def product(x: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    """The product x ⊙ silu(gate) in `dtype`, in the order in memory of `gate`."""
    y = torch.empty_like(gate, dtype=dtype)
    run(_product, _flat(_like(x, y), _like(gate, y), y))
    return y


def product_backward(gradient: Tensor, x: Tensor, gate: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The gradients of x and gate, in `dtype`."""
    grad_x, grad_gate = torch.empty_like(gate, dtype=dtype), torch.empty_like(gate, dtype=dtype)
    run(_product_backward, _flat(*(_like(tensor, grad_x) for tensor in (gradient, x, gate)), grad_x, grad_gate))
    return grad_x, grad_gate


def gated_input(x: Tensor, logits: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """The gated inputs and the forget gate, in the dtype of `bound`."""
    inputs, decay = bound.new_empty(x.shape), bound.new_empty(logits.shape)
    x, logits = x.to(bound.dtype).flatten(0, -2), logits.to(bound.dtype).flatten(0, -2)
    outputs = [tensor.flatten(0, -2).numpy() for tensor in (inputs, decay)]
    run(_input, [array(x), array(logits), array(bound), _starts(len(x))], outputs)
    return inputs, decay


def gated_input_backward(
    grad_inputs: Tensor, grad_decay: Tensor, x: Tensor, logits: Tensor, bound: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, logits and bound, in the dtype of `bound`."""
    grad_x, grad_logits = bound.new_empty(x.shape), bound.new_empty(logits.shape)
    rows = [array(tensor.to(bound.dtype).flatten(0, -2)) for tensor in (grad_inputs, grad_decay, x, logits)]
    starts = _starts(len(rows[0]))
    # One row for each piece, added up at the end: no two threads write to the same place.
    grad_bound = bound.new_zeros(max(len(starts) - 1, 1), len(bound))
    outputs = [grad_x.flatten(0, -2).numpy(), grad_logits.flatten(0, -2).numpy(), grad_bound.numpy()]
    run(_input_backward, rows, [array(bound), starts], outputs)
    return grad_x, grad_logits, grad_bound.sum(0)


def _turns(x: Tensor, angles: Tensor, direction: Tensor | None, elu: float | None) -> tuple[list, np.ndarray]:
    """What the loops over rotations take beside features: cosines, sines, direction and offset; and the pieces."""
    normal = angles.new_zeros(x.shape[3]) if direction is None else direction.to(angles.dtype)
    cos, sin = array(angles.cos().squeeze(2)), array(angles.sin().squeeze(2))
    return [cos, sin, array(normal), cos.dtype.type(np.nan if elu is None else elu)], _starts(x.shape[1])


def rotate(x: Tensor, angles: Tensor, direction: Tensor | None, elu: float | None) -> Tensor:
    """Turned features in the dtype of `angles` (batch or 1, length, 1, dim // 2), the heads first in memory."""
    batch, length, heads, dim = x.shape
    y = angles.new_empty(batch, heads, length, dim)
    turns, starts = _turns(x, angles, direction, elu)
    run(_rotate, [array(x.to(angles.dtype)), *turns, starts, y.numpy()])
    return y.transpose(1, 2)


def rotate_backward(
    gradient: Tensor, x: Tensor, angles: Tensor, direction: Tensor | None, elu: float | None
) -> tuple[Tensor, Tensor]:
    """The gradients of x and angles, in the dtype of `angles`."""
    gradient, wide = gradient.to(angles.dtype).transpose(1, 2), x.to(angles.dtype)
    grad_x, grad_angles = angles.new_empty(x.shape), torch.zeros_like(angles)
    turns, starts = _turns(x, angles, direction, elu)
    run(
        _rotate_backward, [array(gradient), array(wide), *turns, starts, grad_x.numpy(), grad_angles.squeeze(2).numpy()]
    )
    return grad_x, grad_angles
