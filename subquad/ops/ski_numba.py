"""Structured kernel interpolation as compiled loops for the CPU: each is one pass, a block of channels at a time.

What a loop needs of x is copied to a block of neighbouring rows first, with zeros where there is no input: rows of x
lie far apart in memory, and taps read each of them many times.
"""

import numba
import numpy as np
from numba import prange
from torch import Tensor

from subquad.ops.loops import FASTMATH, compiled, run, widened

LANES = 32
"""Channels of a task, and the number of turns of all innermost loops: fixed, or they are several times as slow."""

ROWS = 64
"""Rows of a block."""

_helper = numba.njit(fastmath=FASTMATH)

# Blocks are flat: with two indices innermost loops were not turned into vector instructions, and four times as slow.


@_helper
def _read(block, x, first, low):
    """Copy the rows of x (length, dim) from `first` on, and of them LANES channels from `low` on."""
    for r in range(len(block) // LANES):
        i = first + r
        if 0 <= i < len(x):
            for c in range(LANES):
                block[r * LANES + c] = x[i, low + c]
        else:
            for c in range(LANES):
                block[r * LANES + c] = 0


@compiled
def _gather(x, knots, shares, z):
    blocks = -(-x.shape[2] // LANES)
    for task in prange(len(x) * blocks):
        # The last block may share channels with the one before, and writes the same to them.
        row, low = task // blocks, min(task % blocks * LANES, x.shape[2] - LANES)
        total = np.zeros((z.shape[1], LANES), x.dtype)
        for i in range(x.shape[1]):
            k, here, there = knots[i], shares[0, i], shares[1, i]
            for c in range(LANES):
                total[k, c] += here * x[row, i, low + c]
                total[k + 1, c] += there * x[row, i, low + c]
        z[row, :, low : low + LANES] = total


@compiled
def _combine(x, taps, z, knots, shares, y):
    length, num_taps = x.shape[1], len(taps)
    blocks, pieces = -(-x.shape[2] // LANES), -(-length // ROWS)
    for task in prange(len(x) * blocks * pieces):
        row, low = task // pieces // blocks, min(task // pieces % blocks * LANES, x.shape[2] - LANES)
        first = task % pieces * ROWS
        num_rows = min(ROWS, length - first)
        inputs, outputs = np.empty((ROWS + num_taps - 1) * LANES, x.dtype), np.empty(ROWS * LANES, x.dtype)
        weights = np.empty(LANES, x.dtype)
        _read(inputs, x[row], first - num_taps // 2, low)
        for r in range(num_rows):
            k, here, there = knots[first + r], shares[0, first + r], shares[1, first + r]
            for c in range(LANES):
                outputs[r * LANES + c] = here * z[row, k, low + c] + there * z[row, k + 1, low + c]
        for tap in range(num_taps):
            for c in range(LANES):
                weights[c] = taps[tap, low + c]
            start = (num_taps - 1 - tap) * LANES
            for r in range(num_rows):
                for c in range(LANES):
                    outputs[r * LANES + c] += inputs[start + r * LANES + c] * weights[c]
        for r in range(num_rows):
            for c in range(LANES):
                y[row, first + r, low + c] = outputs[r * LANES + c]


@compiled
def _tap_gradients(g, x, grad_taps):
    length, num_taps = x.shape[1], len(grad_taps)
    for task in prange(-(-x.shape[2] // LANES)):
        low = min(task * LANES, x.shape[2] - LANES)
        inputs, outputs = np.empty((ROWS + num_taps - 1) * LANES, x.dtype), np.empty(ROWS * LANES, x.dtype)
        total, part = np.zeros((num_taps, LANES), x.dtype), np.empty(LANES, x.dtype)
        for row in range(len(x)):
            for first in range(0, length, ROWS):
                _read(inputs, x[row], first - num_taps // 2, low)
                _read(outputs, g[row], first, low)
                for tap in range(num_taps):
                    # Sums of sums: rounding grows with the number of blocks, not of rows.
                    part[:] = 0
                    start = (num_taps - 1 - tap) * LANES
                    for r in range(ROWS):
                        for c in range(LANES):
                            part[c] += outputs[r * LANES + c] * inputs[start + r * LANES + c]
                    for c in range(LANES):
                        total[tap, c] += part[c]
        grad_taps[:, low : low + LANES] = total


def _weights(length: int, spacing: float, num_inducing: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Of each position the inducing position before it, and the weights (2, length) of that and of the next one."""
    positions = np.arange(length) / spacing
    knots = np.minimum(positions.astype(np.int64), num_inducing - 1)
    shares = np.minimum(positions - knots, 1)  # behind the last inducing position there is no weight
    return knots, np.stack([1 - shares, shares]).astype(dtype)


def gather(x: Tensor, spacing: float, num_inducing: int) -> Tensor:
    """Wᵀ x: what every inducing position (batch, num_inducing, dim) has of `x` (batch, length, dim)."""
    wide = widened(x, LANES)
    # One row more: the last inducing position has no next one, and no weight goes there.
    z = x.new_empty(x.shape[0], num_inducing + 1, wide.shape[2])
    run(_gather, [wide, *_weights(x.shape[1], spacing, num_inducing, wide.dtype), z.numpy()])
    return z[:, :-1, : x.shape[2]].contiguous()


def combine(x: Tensor, taps: Tensor, z: Tensor, spacing: float) -> Tensor:
    """T x + W z, (batch, length, dim), of `x` (batch, length, dim), `taps` (num_taps, dim), `z` (batch, K, dim)."""
    wide, knots = widened(x, LANES), z.new_zeros(z.shape[0], z.shape[1] + 1, z.shape[2])
    knots[:, :-1] = z
    y = x.new_empty(x.shape[0], x.shape[1], wide.shape[2])
    weights = _weights(x.shape[1], spacing, z.shape[1], wide.dtype)
    run(_combine, [wide, widened(taps, LANES), widened(knots, LANES), *weights, y.numpy()])
    return y[..., : x.shape[2]].contiguous()


def tap_gradients(gradient: Tensor, x: Tensor, num_taps: int) -> Tensor:
    """The gradients of the taps (num_taps, dim) from that of y; `x` and `gradient` are (batch, length, dim)."""
    wide = widened(x, LANES)
    grad_taps = x.new_empty(num_taps, wide.shape[2])
    run(_tap_gradients, [widened(gradient, LANES), wide, grad_taps.numpy()])
    return grad_taps[:, : x.shape[2]].contiguous()
