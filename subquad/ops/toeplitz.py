"""Toeplitz product: every channel of a sequence times its own Toeplitz matrix.

    y[i] = Σ_j kernel[center + i − j] x[j]

Layout: x (batch, length, dim), kernel (lags, dim). In memory y is (batch, length, dim) with numba, (dim, batch, length)
with torch, and an x in the same order is the fastest. Precision: float64 in float64; everything else is computed in
float32, y has the dtype of x. Cost: n log n in the length (FFT), n for each output where there are only a few.

| backend   | what it is                                         | gradients |
| reference | the Toeplitz matrix, gathered and multiplied       | x, kernel (autograd, any order) |
| numba     | FFT of many channels side by side, compiled (CPU)  | x, kernel (hand-written, first order) |
| torch     | real FFT over a contiguous axis                    | x, kernel (hand-written, first order) |
"""

import functools

import torch
from torch import Tensor

from subquad.ops.backends import choose, refuse_second_order
from subquad.ops.fourier import channel_blocks, channels_first, from_spectrum, spectrum
from subquad.ops.precision import accumulator

FEW_OUTPUTS = 4
"""Up to so many outputs are computed one by one: measured faster than transforms from 4 to 4096 inputs."""


def toeplitz(
    x: Tensor, kernel: Tensor, *, center: int = 0, num_outputs: int | None = None, backend: str = "auto"
) -> Tensor:
    """Multiply each channel by its Toeplitz matrix, y[i] = Σ_j kernel[center + i − j] x[j].

    Args:
        x: (batch, length, dim).
        kernel: (lags, dim); row `center` belongs to lag 0, later rows to positive lags: a past input on a present
            output. Lags outside the kernel are zero.
        center: Row of lag 0: 0 for a causal kernel, length − 1 for one over all lags −(length − 1) … length − 1.
        num_outputs: Compute the outputs of the last so many positions only; default all.
        backend: "auto", "reference", "numba" or "torch".

    Returns:
        y (batch, num_outputs, dim), dtype of `x`.

    Raises:
        ValueError: If shapes or dtypes do not fit or the backend cannot run.
    """
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"`x` must be (batch, length, dim) with length > 0, got {tuple(x.shape)}")
    if kernel.ndim != 2 or kernel.shape[1] != x.shape[2] or kernel.shape[0] == 0:
        raise ValueError(f"`kernel` must be (lags, {x.shape[2]}) with lags > 0, got {tuple(kernel.shape)}")
    if not (x.is_floating_point() and kernel.is_floating_point()):
        raise ValueError(f"`x` and `kernel` must be real floating-point tensors, got {x.dtype} and {kernel.dtype}")
    if not 0 <= center < kernel.shape[0]:
        raise ValueError(f"`center` must be a row of the kernel, 0 … {kernel.shape[0] - 1}, got {center}")
    length = x.shape[1]
    if num_outputs is None:
        num_outputs = length
    if not 0 < num_outputs <= length:
        raise ValueError(f"`num_outputs` must be 1 … {length}, the length, got {num_outputs}")
    backend = choose("toeplitz", backend, x.device)
    # Lags beyond the sequence meet no input.
    first = max(center - length + 1, 0)
    kernel, center = kernel[first : center + length], center - first
    if backend == "reference" or x.numel() == 0:
        return _reference(x, kernel, center, num_outputs)
    if num_outputs == 1:
        # A decoding step: calling a registered operator would cost as much again.
        return _dot_products(x, kernel, center, 1)
    return _toeplitz(x, kernel, center, num_outputs, backend)


# --- reference -------------------------------------------------------------------------------------------------------


def _reference(x: Tensor, kernel: Tensor, center: int, num_outputs: int) -> Tensor:
    length = x.shape[1]
    i = torch.arange(length - num_outputs, length, device=x.device)
    rows = center + i.unsqueeze(1) - torch.arange(length, device=x.device)
    matrix = kernel.to(accumulator(x))[rows.clamp(0, len(kernel) - 1)]
    matrix = matrix * ((rows >= 0) & (rows < len(kernel))).unsqueeze(-1)
    with torch.autocast(x.device.type, enabled=False):
        return torch.einsum("ijd,bjd->bid", matrix, x.to(matrix.dtype)).to(x.dtype)


# --- fast paths ------------------------------------------------------------------------------------------------------


def _dot_products(x: Tensor, kernel: Tensor, center: int, num_outputs: int) -> Tensor:
    """Each output as one sum over its inputs."""
    length, lags = x.shape[1], kernel.shape[0]
    taps = kernel.flip(0).to(accumulator(x))
    outputs = []
    for i in range(length - num_outputs, length):
        start, stop = max(center + i - lags + 1, 0), min(center + i + 1, length)
        offset = lags - 1 - center - i
        outputs.append((x[:, start:stop].to(taps.dtype) * taps[offset + start : offset + stop]).sum(1))
    return torch.stack(outputs, dim=1).to(x.dtype)


@functools.cache
def _smooth_length(minimum: int) -> int:
    """The smallest multiple of 8 from `minimum` on without prime factors over 5; odd lengths are far slower."""
    eighth = -(-minimum // 8)
    while True:
        rest = eighth
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return 8 * eighth
        eighth += 1


def _layout(length: int, lags: int, center: int, num_outputs: int) -> tuple[int, int]:
    """Where the outputs begin in the full convolution, and a length whose wrap-around does not reach them."""
    first = center + length - num_outputs
    return first, max(center + length, length + lags - 1 - first)


def _empty(x: Tensor, length: int, backend: str) -> Tensor:
    """An empty (batch, length, dim) for `x` (batch, any length, dim), in the order of the backend."""
    if backend == "numba":
        return x.new_empty(x.shape[0], length, x.shape[2])
    return channels_first(x, length)


@torch.library.custom_op("subquad::toeplitz", mutates_args=())
def _toeplitz(x: Tensor, kernel: Tensor, center: int, num_outputs: int, backend: str) -> Tensor:
    if num_outputs <= FEW_OUTPUTS:
        return _empty(x, num_outputs, backend).copy_(_dot_products(x, kernel, center, num_outputs))
    dtype = accumulator(x)
    first, size = _layout(x.shape[1], kernel.shape[0], center, num_outputs)
    if backend == "numba":
        from subquad.ops import toeplitz_numba

        return toeplitz_numba.product(x.to(dtype), kernel.to(dtype), first, num_outputs, size).to(x.dtype)
    size = _smooth_length(size)
    y = channels_first(x, num_outputs)
    for block in channel_blocks(x, size):
        product = spectrum(x[..., block], size, dtype).mul_(spectrum(kernel[None, :, block], size, dtype))
        y[..., block] = from_spectrum(product, size)[:, first : first + num_outputs]
    return y


@_toeplitz.register_fake
def _(x: Tensor, kernel: Tensor, center: int, num_outputs: int, backend: str) -> Tensor:
    return _empty(x, num_outputs, backend)


@torch.library.custom_op("subquad::toeplitz_backward", mutates_args=())
def _toeplitz_backward(gradient: Tensor, x: Tensor, kernel: Tensor, center: int, backend: str) -> tuple[Tensor, Tensor]:
    dtype, num_outputs = accumulator(x), gradient.shape[1]
    first, size = _layout(x.shape[1], kernel.shape[0], center, num_outputs)
    if backend == "numba":
        from subquad.ops import toeplitz_numba

        grad_x, grad_kernel = toeplitz_numba.product_backward(
            gradient.to(dtype), x.to(dtype), kernel.to(dtype), first, size
        )
        return grad_x.to(x.dtype), grad_kernel.to(kernel.dtype)
    size = _smooth_length(size)
    grad_x, grad_kernel = _empty(x, x.shape[1], backend), _empty(kernel.unsqueeze(0), kernel.shape[0], backend)
    for block in channel_blocks(x, size):
        incoming = spectrum(gradient[..., block], size, dtype, first)
        # Spectra are computed again rather than kept: they are twice the size of x.
        by_kernel = spectrum(x[..., block], size, dtype).conj_physical_().mul_(incoming).sum(1, keepdim=True)
        by_x = incoming.mul_(spectrum(kernel[None, :, block], size, dtype).conj_physical_())
        grad_x[..., block] = from_spectrum(by_x, size)[:, : x.shape[1]]
        grad_kernel[..., block] = from_spectrum(by_kernel, size)[:, : kernel.shape[0]]
    return grad_x, grad_kernel.squeeze(0)


@_toeplitz_backward.register_fake
def _(gradient: Tensor, x: Tensor, kernel: Tensor, center: int, backend: str) -> tuple[Tensor, Tensor]:
    grad_kernel = _empty(kernel.unsqueeze(0), kernel.shape[0], backend)
    return _empty(x, x.shape[1], backend), grad_kernel.squeeze(0)


def _save(ctx, inputs, output):
    x, kernel, ctx.center, _, ctx.backend = inputs
    ctx.save_for_backward(x, kernel)


def _differentiate(ctx, gradient):
    x, kernel = ctx.saved_tensors
    return *_toeplitz_backward(gradient, x, kernel, ctx.center, ctx.backend), None, None, None


_toeplitz.register_autograd(_differentiate, setup_context=_save)
_toeplitz_backward.register_autograd(refuse_second_order("toeplitz"))
