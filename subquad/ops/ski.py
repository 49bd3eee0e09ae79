"""Structured kernel interpolation: a banded Toeplitz matrix, plus a smooth one seen through inducing positions.

    y = T x + W A Wᵀ x        (SKI-TNN, arXiv 2305.09028, section 3.2)

T holds a few taps around lag 0. The inducing positions are k·spacing, k = 0 … K−1; A is Toeplitz over them, and row i
of W interpolates linearly between the two around position i: W[i, k] = max(0, 1 − |i/spacing − k|). Every channel has
its own T and A.

Layout: x (batch, length, dim), taps (num_taps, dim), kernel (2K − 1, dim). Precision: float64 in float64; everything
else is computed in float32, y has the dtype of x. Cost: linear in the length, K log K in the inducing positions.

| backend   | what it is                                                     | gradients |
| reference | W as a matrix, both Toeplitz products by their matrices        | autograd, any order |
| numba     | compiled loops: W and taps in one pass (CPU)                   | hand-written, first order |
| torch     | W and Wᵀ block by block as small matrix products, tap by tap   | hand-written, first order |

W A Wᵀ is its own adjoint but for Aᵀ, so with g the gradient of y and z = Wᵀ x, the gradient of x is Tᵀ g + W Aᵀ Wᵀ g,
that of A's lag m is Σ_k (Wᵀ g)[k] z[k − m], that of tap m is Σ_i g[i] x[i − m].
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from subquad.ops.backends import choose, refuse_second_order
from subquad.ops.precision import accumulator
from subquad.ops.toeplitz import _toeplitz_backward as toeplitz_gradients
from subquad.ops.toeplitz import toeplitz

INTERVALS = 16
"""W is taken in blocks of so many intervals between inducing positions, each a small dense matrix."""

BLOCK_ELEMENTS = 2**16
"""Taps are applied to so many numbers at a time, which stay in the cache from tap to tap."""


def ski(x: Tensor, taps: Tensor, kernel: Tensor, spacing: float, *, backend: str = "auto") -> Tensor:
    """Apply y = T x + W A Wᵀ x, a banded and a smooth Toeplitz operator on each channel.

    Args:
        x: (batch, length, dim).
        taps: (num_taps, dim), num_taps odd; the middle row belongs to lag 0, later rows to positive lags: a past input
            on a present output.
        kernel: (2K − 1, dim), the entries of A for lags −(K−1) … K−1 in units of `spacing`.
        spacing: Distance of the K inducing positions, at least 1; the last one must not lie before the last input.
        backend: "auto", "reference", "numba" or "torch".

    Returns:
        y (batch, length, dim), dtype of `x`.

    Raises:
        ValueError: If shapes do not fit or the backend cannot run.
    """
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"`x` must be (batch, length, dim) with length > 0, got {tuple(x.shape)}")
    for name, rows in (("taps", taps), ("kernel", kernel)):
        if rows.ndim != 2 or rows.shape[1] != x.shape[2] or rows.shape[0] % 2 == 0:
            raise ValueError(f"`{name}` must be (odd number of lags, {x.shape[2]}), got {tuple(rows.shape)}")
    num_inducing = (kernel.shape[0] + 1) // 2
    if not 1 <= spacing < math.inf:
        raise ValueError(f"`spacing` must be finite and at least 1, got {spacing}")
    if not torch.compiler.is_compiling() and (x.shape[1] - 1) / spacing > num_inducing - 1 + 1e-6:
        raise ValueError(f"{num_inducing} inducing positions {spacing} apart end before the {x.shape[1]} inputs")
    backend = choose("ski", backend, x.device)
    if backend == "reference" or x.numel() == 0:
        return _reference(x, taps, kernel, spacing)
    return _ski(x, taps, kernel, spacing, backend)


def hat_functions(positions: Tensor, num_knots: int) -> Tensor:
    """Weights of linear interpolation, max(0, 1 − |position − k|) for the knots k = 0 … num_knots − 1.

    Args:
        positions: (num_positions,), in units of the distance of the knots.
        num_knots: Number of knots.

    Returns:
        (num_positions, num_knots), dtype of `positions`.
    """
    knots = torch.arange(num_knots, device=positions.device, dtype=positions.dtype)
    return (1 - (positions.unsqueeze(-1) - knots).abs()).clamp_min(0)


# --- reference -------------------------------------------------------------------------------------------------------


def _reference(x: Tensor, taps: Tensor, kernel: Tensor, spacing: float) -> Tensor:
    dtype, num_inducing = accumulator(x), (kernel.shape[0] + 1) // 2
    positions = torch.arange(x.shape[1], device=x.device, dtype=torch.float64) / spacing
    weights = hat_functions(positions, num_inducing).to(dtype)
    wide = x.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        sparse = toeplitz(wide, taps, center=taps.shape[0] // 2, backend="reference")
        smooth = weights @ toeplitz(weights.T @ wide, kernel, center=num_inducing - 1, backend="reference")
    return (sparse + smooth).to(x.dtype)


# --- torch -----------------------------------------------------------------------------------------------------------


def _blocks(x: Tensor, spacing: float, num_inducing: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """W (length, K) in blocks: positions, inducing positions, and the entries where they meet."""
    length = x.shape[1]
    positions = torch.arange(length, device=x.device, dtype=torch.float64) / spacing
    start = 0
    for first in range(0, num_inducing, INTERVALS):
        last = min(first + INTERVALS, num_inducing - 1)
        stop = length if last == num_inducing - 1 else int(torch.searchsorted(positions, float(last)))
        if start < stop:
            weights = hat_functions(positions[start:stop] - first, last - first + 1)
            yield slice(start, stop), slice(first, last + 1), weights.to(x.dtype)
        start = stop


def _gather(x: Tensor, spacing: float, num_inducing: int) -> Tensor:
    """Wᵀ x: what every inducing position (batch, K, dim) has of `x` (batch, length, dim)."""
    z = x.new_zeros(x.shape[0], num_inducing, x.shape[2])
    for rows, inducing, weights in _blocks(x, spacing, num_inducing):
        z[:, inducing] += weights.T @ x[:, rows]
    return z


def _combine(x: Tensor, taps: Tensor, z: Tensor, spacing: float) -> Tensor:
    """T x + W z (batch, length, dim)."""
    y = x.new_empty(x.shape)
    for rows, inducing, weights in _blocks(x, spacing, z.shape[1]):
        y[:, rows] = weights @ z[:, inducing]
    for sequences, tap, outputs, inputs in _tap_by_tap(x, len(taps)):
        y[sequences, outputs].addcmul_(x[sequences, inputs], taps[tap])
    return y


def _tap_by_tap(x: Tensor, num_taps: int) -> Iterator[tuple[slice, int, slice, slice]]:
    """Sequences, tap, outputs, and the inputs that the tap brings there, in an order that is kind to the cache."""
    batch, length, dim = x.shape
    num_rows = min(length, max(1, BLOCK_ELEMENTS // dim))
    num_sequences = max(1, BLOCK_ELEMENTS // (dim * num_rows))
    for sequence in range(0, batch, num_sequences):
        for row in range(0, length, num_rows):
            for tap in range(num_taps):
                lag = tap - num_taps // 2
                start, stop = max(row, lag), min(row + num_rows, length + min(lag, 0))
                if start < stop:
                    inputs = slice(start - lag, stop - lag)
                    yield slice(sequence, sequence + num_sequences), tap, slice(start, stop), inputs


def _tap_gradients(gradient: Tensor, x: Tensor, num_taps: int) -> Tensor:
    """The gradients of the taps (num_taps, dim) from that of y."""
    grad_taps = x.new_zeros(num_taps, x.shape[2])
    for sequences, tap, outputs, inputs in _tap_by_tap(x, num_taps):
        grad_taps[tap] += (gradient[sequences, outputs] * x[sequences, inputs]).sum((0, 1))
    return grad_taps


def _passes(backend: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]:
    """Wᵀ x, T x + W z and the gradients of the taps."""
    if backend == "numba":
        from subquad.ops import ski_numba

        return ski_numba.gather, ski_numba.combine, ski_numba.tap_gradients
    return _gather, _combine, _tap_gradients


# --- operator --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("subquad::ski", mutates_args=())
def _ski(x: Tensor, taps: Tensor, kernel: Tensor, spacing: float, backend: str) -> Tensor:
    dtype, num_inducing = accumulator(x), (kernel.shape[0] + 1) // 2
    gather, combine, _ = _passes(backend)
    wide = x.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        z = toeplitz(gather(wide, spacing, num_inducing), kernel.to(dtype), center=num_inducing - 1)
        return combine(wide, taps.to(dtype), z, spacing).to(x.dtype)


@_ski.register_fake
def _(x: Tensor, taps: Tensor, kernel: Tensor, spacing: float, backend: str) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("subquad::ski_backward", mutates_args=())
def _ski_backward(
    gradient: Tensor, x: Tensor, taps: Tensor, kernel: Tensor, spacing: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, num_inducing = accumulator(x), (kernel.shape[0] + 1) // 2
    gather, combine, tap_gradients = _passes(backend)
    wide, gradient = x.to(dtype), gradient.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        incoming, z = (gather(tensor, spacing, num_inducing) for tensor in (gradient, wide))
        inner = choose("toeplitz", "auto", x.device)
        grad_z, grad_kernel = toeplitz_gradients(incoming, z, kernel.to(dtype), num_inducing - 1, inner)
        grad_x = combine(gradient, taps.to(dtype).flip(0), grad_z, spacing)
        grad_taps = tap_gradients(gradient, wide, len(taps))
    return grad_x.to(x.dtype), grad_taps.to(taps.dtype), grad_kernel.to(kernel.dtype).contiguous()


@_ski_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, taps: Tensor, kernel: Tensor, spacing: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), taps.new_empty(taps.shape), kernel.new_empty(kernel.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.spacing, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, gradient):
    return *_ski_backward(gradient, *ctx.saved_tensors, ctx.spacing, ctx.backend), None, None


_ski.register_autograd(_differentiate, setup_context=_save)
_ski_backward.register_autograd(refuse_second_order("ski"))
