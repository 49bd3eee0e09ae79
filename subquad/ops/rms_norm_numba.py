"""The root-mean-square norm as compiled loops for the CPU: a row is read again while it is in the cache.

Rows may be in pieces, as those of heads that come before the length in memory: x is (batch, heads, length, dim), y
(batch, length, heads, dim), and a row is that of all heads at one position.
"""

import math

import numba
import numpy as np
import torch
from numba import prange
from torch import Tensor

from subquad.ops.loops import FASTMATH, array, compiled, run


# Sums may be taken in any order, or they are no vector instructions.
@numba.njit(fastmath=FASTMATH | {"reassoc"})
def _dot(x, y):
    total = x.dtype.type(0)
    for c in range(len(x)):
        total += x[c] * y[c]
    return total


@compiled
def _forward(x, epsilon, y):
    batch, heads, length, dim = x.shape
    size = x.dtype.type(heads * dim)
    for row in prange(batch * length):
        b, t = row // length, row % length
        total = x.dtype.type(0)
        for h in range(heads):
            total += _dot(x[b, h, t], x[b, h, t])
        scale = np.sqrt(total / size) + epsilon
        for h in range(heads):
            x_t, y_t = x[b, h, t], y[b, t, h]
            for c in range(dim):
                y_t[c] = x_t[c] / scale


@compiled
def _backward(g, x, epsilon, grad_x):
    batch, heads, length, dim = x.shape
    size = x.dtype.type(heads * dim)
    for row in prange(batch * length):
        b, t = row // length, row % length
        total, along = x.dtype.type(0), x.dtype.type(0)
        for h in range(heads):
            total += _dot(x[b, h, t], x[b, h, t])
            along += _dot(g[b, t, h], x[b, h, t])
        root = np.sqrt(total / size)
        scale = root + epsilon
        along = along / (size * root * scale) if root > 0 else root
        for h in range(heads):
            g_t, x_t, grad_t = g[b, t, h], x[b, h, t], grad_x[b, h, t]
            for c in range(dim):
                grad_t[c] = (g_t[c] - x_t[c] * along) / scale


def _pieces(x: Tensor, num_axes: int) -> Tensor:
    """Rows as (batch, heads, length, dim): of heads that come first in memory, or whole ones as those of one head."""
    if num_axes == 2 and x.ndim == 4 and x.transpose(1, 2).is_contiguous():
        return x.transpose(1, 2)
    return x.reshape(1, 1, -1, math.prod(x.shape[-num_axes:]))


def forward(x: Tensor, num_axes: int, epsilon: float) -> Tensor:
    """The normalised `x`, contiguous."""
    rows = array(_pieces(x, num_axes))
    y = x.new_empty(x.shape)
    run(_forward, [rows, rows.dtype.type(epsilon), y.view(rows.swapaxes(1, 2).shape).numpy()])
    return y


def backward(gradient: Tensor, x: Tensor, num_axes: int, epsilon: float) -> Tensor:
    """The gradient of `x`, in its order in memory if that has no gaps."""
    rows = array(_pieces(x, num_axes))
    grad_x, incoming = torch.empty_like(x), gradient.reshape(rows.swapaxes(1, 2).shape)
    grads = _pieces(grad_x, num_axes)
    run(_backward, [array(incoming), rows, rows.dtype.type(epsilon), grads.numpy()])
    return grad_x if grads.data_ptr() == grad_x.data_ptr() else grad_x.copy_(grads.view(x.shape))
