"""The Toeplitz product as compiled loops for the CPU, by Fourier transforms without padding.

Real numbers x[0 … 2m) become m complex ones, z[t] = (x[t] + i x[t + m]) ω^t with ω = e^{iπ/2m}: the polynomial x(u)
modulo u^m − i. In that ring products are those of sequences of 2m numbers, with a minus where they wrap around
(right-angle convolution; Crandall & Fagin 1994, Mathematics of Computation 62): no zeros are transformed.

Channels stand side by side, where vector instructions want them: z is (m, 2·LANES), the real parts of the channels of a
task before their imaginary parts. Transforms leave the frequencies in another order, which products do not mind.
"""

import functools

import numba
import numpy as np
import torch
from numba import prange
from torch import Tensor

from subquad.ops.loops import FASTMATH, compiled, run, widened

LANES = 32
"""Channels of a task, and the number of turns of all innermost loops: fixed, or they are several times as slow."""

ROWS = 1024
"""Rows of a transform that a core's own cache holds."""

_helper = numba.njit(fastmath=FASTMATH)


@functools.lru_cache(maxsize=16)
def _tables(m: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The roots e^{−2πij/m} and the powers ω^t, each (2, m), real parts before imaginary ones."""
    turns = np.pi * np.arange(m) / m
    roots, twist = (np.stack([np.cos(angles), np.sin(angles)]).astype(dtype) for angles in (-2 * turns, turns / 2))
    return roots, twist


@_helper
def _read(z, x, first, twist):
    """Put x (length, LANES) at the positions from `first` on, and zeros elsewhere."""
    m = len(z)
    for p in range(m):
        row, t, re, im = z[p], p - first, twist[0, p], twist[1, p]
        if 0 <= t < len(x):
            x_t = x[t]
            for k in range(LANES):
                row[k] = x_t[k] * re
                row[k + LANES] = x_t[k] * im
        else:
            row[:] = 0
        if 0 <= t + m < len(x):
            x_t = x[t + m]
            for k in range(LANES):
                row[k] -= x_t[k] * im
                row[k + LANES] += x_t[k] * re


@_helper
def _write(z, y, first, twist):
    """Take y (length, LANES) from the positions from `first` on."""
    m = len(z)
    scale = z.dtype.type(1 / m)
    for t in range(len(y)):
        p = (first + t) % m
        y_t, row = y[t], z[p]
        re, im = twist[0, p] * scale, twist[1, p] * scale
        if first + t >= m:
            re, im = -im, re
        for k in range(LANES):
            y_t[k] = row[k] * re + row[k + LANES] * im


@_helper
def _butterflies(z, start, size, roots):
    """One step of a transform: four rows at a time, a quarter of `size` apart, become their sums and differences."""
    quarter, step = size // 4, roots.shape[1] // size
    for j in range(quarter):
        re1, im1 = roots[0, j * step], roots[1, j * step]
        re2, im2 = roots[0, 2 * j * step], roots[1, 2 * j * step]
        re3, im3 = roots[0, 3 * j * step], roots[1, 3 * j * step]
        p = start + j
        a, b, c, d = z[p], z[p + quarter], z[p + 2 * quarter], z[p + 3 * quarter]
        for k in range(LANES):
            even_re, even_im = a[k] + c[k], a[k + LANES] + c[k + LANES]
            ac_re, ac_im = a[k] - c[k], a[k + LANES] - c[k + LANES]
            odd_re, odd_im = b[k] + d[k], b[k + LANES] + d[k + LANES]
            # −i (b − d)
            bd_re, bd_im = b[k + LANES] - d[k + LANES], d[k] - b[k]
            a[k] = even_re + odd_re
            a[k + LANES] = even_im + odd_im
            re, im = ac_re + bd_re, ac_im + bd_im
            b[k] = re * re1 - im * im1
            b[k + LANES] = re * im1 + im * re1
            re, im = even_re - odd_re, even_im - odd_im
            c[k] = re * re2 - im * im2
            c[k + LANES] = re * im2 + im * re2
            re, im = ac_re - bd_re, ac_im - bd_im
            d[k] = re * re3 - im * im3
            d[k + LANES] = re * im3 + im * re3


@_helper
def _butterflies_back(z, start, size, roots):
    """The inverse of `_butterflies`, times 4."""
    quarter, step = size // 4, roots.shape[1] // size
    for j in range(quarter):
        re1, im1 = roots[0, j * step], roots[1, j * step]
        re2, im2 = roots[0, 2 * j * step], roots[1, 2 * j * step]
        re3, im3 = roots[0, 3 * j * step], roots[1, 3 * j * step]
        p = start + j
        a, b, c, d = z[p], z[p + quarter], z[p + 2 * quarter], z[p + 3 * quarter]
        for k in range(LANES):
            b_re, b_im = b[k] * re1 + b[k + LANES] * im1, b[k + LANES] * re1 - b[k] * im1
            c_re, c_im = c[k] * re2 + c[k + LANES] * im2, c[k + LANES] * re2 - c[k] * im2
            d_re, d_im = d[k] * re3 + d[k + LANES] * im3, d[k + LANES] * re3 - d[k] * im3
            even_re, even_im = a[k] + c_re, a[k + LANES] + c_im
            ac_re, ac_im = a[k] - c_re, a[k + LANES] - c_im
            odd_re, odd_im = b_re + d_re, b_im + d_im
            # i (b − d)
            bd_re, bd_im = d_im - b_im, b_re - d_re
            a[k] = even_re + odd_re
            a[k + LANES] = even_im + odd_im
            b[k] = ac_re + bd_re
            b[k + LANES] = ac_im + bd_im
            c[k] = even_re - odd_re
            c[k + LANES] = even_im - odd_im
            d[k] = ac_re - bd_re
            d[k + LANES] = ac_im - bd_im


@_helper
def _pairs(z):
    """The last step of transforms whose size is no power of four, and its inverse, times 2."""
    for p in range(0, len(z), 2):
        a, b = z[p], z[p + 1]
        for k in range(2 * LANES):
            difference = a[k] - b[k]
            a[k] = a[k] + b[k]
            b[k] = difference


@_helper
def _transform(z, roots):
    """The discrete Fourier transform over the rows, with the frequencies in the order in which they come about.

    The rows that one step leaves together are all that the next ones need: from `ROWS` on, one such part is finished
    before the next one is begun.
    """
    size = len(z)
    while size > ROWS:
        for start in range(0, len(z), size):
            _butterflies(z, start, size, roots)
        size //= 4
    for first in range(0, len(z), size):
        part = z[first : first + size]
        within = size
        while within >= 4:
            for start in range(0, size, within):
                _butterflies(part, start, within, roots)
            within //= 4
        if within == 2:
            _pairs(part)


@_helper
def _transform_back(z, roots):
    """The inverse of `_transform`, times the number of rows: its steps from the last to the first."""
    size = len(z)
    while size > ROWS:
        size //= 4
    for first in range(0, len(z), size):
        part = z[first : first + size]
        within = size
        while within >= 4:
            within //= 4
        if within == 2:
            _pairs(part)
        while within < size:
            within *= 4
            for start in range(0, size, within):
                _butterflies_back(part, start, within, roots)
    while size < len(z):
        size *= 4
        for start in range(0, len(z), size):
            _butterflies_back(z, start, size, roots)


@_helper
def _multiply(z, factor, sign):
    """Multiply z by `factor`, or by its complex conjugate if `sign` is −1."""
    for p in range(len(z)):
        a, b = z[p], factor[p]
        for k in range(LANES):
            re, im = b[k], sign * b[k + LANES]
            product = a[k] * re - a[k + LANES] * im
            a[k + LANES] = a[k] * im + a[k + LANES] * re
            a[k] = product


@_helper
def _add_product(total, x, g):
    """Add the products of g and the complex conjugate of x."""
    for p in range(len(total)):
        sums, a, b = total[p], x[p], g[p]
        for k in range(LANES):
            sums[k] += a[k] * b[k] + a[k + LANES] * b[k + LANES]
            sums[k + LANES] += a[k] * b[k + LANES] - a[k + LANES] * b[k]


@compiled
def _forward(x, kernel, first, roots, twist, y):
    m, one = roots.shape[1], x.dtype.type(1)
    for task in prange(-(-x.shape[2] // LANES)):
        # The last task may share channels with the one before, and writes the same to them.
        low = min(task * LANES, x.shape[2] - LANES)
        high = low + LANES
        k, z = np.empty((m, 2 * LANES), x.dtype), np.empty((m, 2 * LANES), x.dtype)
        _read(k, kernel[:, low:high], 0, twist)
        _transform(k, roots)
        for row in range(len(x)):
            _read(z, x[row, :, low:high], 0, twist)
            _transform(z, roots)
            _multiply(z, k, one)
            _transform_back(z, roots)
            _write(z, y[row, :, low:high], first, twist)


@compiled
def _backward(g, x, kernel, first, roots, twist, grad_x, grad_kernel):
    m, one = roots.shape[1], x.dtype.type(1)
    for task in prange(-(-x.shape[2] // LANES)):
        # The last task may share channels with the one before, and writes the same to them.
        low = min(task * LANES, x.shape[2] - LANES)
        high = low + LANES
        k, z = np.empty((m, 2 * LANES), x.dtype), np.empty((m, 2 * LANES), x.dtype)
        incoming, total = np.empty((m, 2 * LANES), x.dtype), np.zeros((m, 2 * LANES), x.dtype)
        _read(k, kernel[:, low:high], 0, twist)
        _transform(k, roots)
        for row in range(len(x)):
            _read(z, x[row, :, low:high], 0, twist)
            _transform(z, roots)
            _read(incoming, g[row, :, low:high], first, twist)
            _transform(incoming, roots)
            _add_product(total, z, incoming)
            _multiply(incoming, k, -one)
            _transform_back(incoming, roots)
            _write(incoming, grad_x[row, :, low:high], 0, twist)
        _transform_back(total, roots)
        _write(total, grad_kernel[:, low:high], 0, twist)


def _tables_of(size: int, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The tables of products without wrap-around up to `size` numbers."""
    return _tables(1 << ((size + 1) // 2 - 1).bit_length(), torch.empty(0, dtype=dtype).numpy().dtype)


def product(x: Tensor, kernel: Tensor, first: int, num_outputs: int, size: int) -> Tensor:
    """The entries from `first` on of the convolution along the length, which wraps around at `size` or later.

    Args:
        x: (batch, length, dim), float32 or float64.
        kernel: (lags, dim), dtype of `x`.
        first: The first entry that is wanted.
        num_outputs: How many are wanted.
        size: At least the last wanted entry + 1; wrap-around may only reach what is not wanted.

    Returns:
        (batch, num_outputs, dim).
    """
    dim = x.shape[2]
    y = x.new_empty(x.shape[0], num_outputs, max(dim, LANES))
    run(_forward, [widened(x, LANES), widened(kernel, LANES), first, *_tables_of(size, x.dtype), y.numpy()])
    return y[..., :dim].contiguous()


def product_backward(gradient: Tensor, x: Tensor, kernel: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """The gradients of x and kernel, contiguous; arguments as in `product`."""
    dim = x.shape[2]
    grad_x, grad_kernel = (tensor.new_empty(*tensor.shape[:-1], max(dim, LANES)) for tensor in (x, kernel))
    inputs = [widened(tensor, LANES) for tensor in (gradient, x, kernel)]
    run(_backward, inputs, [first, *_tables_of(size, x.dtype), grad_x.numpy(), grad_kernel.numpy()])
    return grad_x[..., :dim].contiguous(), grad_kernel[..., :dim].contiguous()
