"""Toeplitz product: every channel of a sequence times its own Toeplitz matrix.

    y[i] = Σ_j kernel[center + i − j] x[j]

Layout: x (batch, length, dim), kernel (lags, dim). Precision: float64 in float64; everything else is computed in
float32, and y has the dtype of x. Cost: n log n in the length (FFT), n for one output.

| backend   | what it is                                      | gradients |
| reference | the Toeplitz matrix, gathered and multiplied    | x, kernel (autograd, any order) |
| torch     | real FFT over a contiguous axis                 | x, kernel (hand-written, first order) |
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.ops.backends import choose


def toeplitz(
    x: Tensor, kernel: Tensor, *, center: int = 0, num_outputs: int | None = None, backend: str = "auto"
) -> Tensor:
    """Multiply each channel by its Toeplitz matrix, y[i] = Σ_j kernel[center + i − j] x[j].

    Args:
        x: (batch, length, dim).
        kernel: (lags, dim); row `center` belongs to lag 0, later rows to positive lags (a past input, a present
            output). Lags outside the kernel are zero.
        center: Row of lag 0: 0 for a causal kernel, length − 1 for one over all lags −(length − 1) … length − 1.
        num_outputs: Compute the outputs of the last so many positions only; default all.
        backend: "auto", "reference" or "torch".

    Returns:
        y (batch, num_outputs, dim), dtype of `x`.

    Raises:
        ValueError: If shapes do not fit or the backend cannot run.
    """
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"`x` must be (batch, length, dim) with length > 0, got {tuple(x.shape)}")
    if kernel.ndim != 2 or kernel.shape[1] != x.shape[2] or kernel.shape[0] == 0:
        raise ValueError(f"`kernel` must be (lags, {x.shape[2]}) with lags > 0, got {tuple(kernel.shape)}")
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
    if backend == "reference":
        return _reference(x, kernel, center, num_outputs)
    if num_outputs == 1:
        return _last_output(x, kernel, center)
    return _toeplitz(x, kernel, center, num_outputs)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _reference(x: Tensor, kernel: Tensor, center: int, num_outputs: int) -> Tensor:
    length = x.shape[1]
    i = torch.arange(length - num_outputs, length, device=x.device)
    rows = center + i.unsqueeze(1) - torch.arange(length, device=x.device)
    matrix = kernel[rows.clamp(0, len(kernel) - 1)].to(_accumulator(x))
    matrix = matrix * ((rows >= 0) & (rows < len(kernel))).unsqueeze(-1)
    return torch.einsum("ijd,bjd->bid", matrix, x.to(matrix.dtype)).to(x.dtype)


def _last_output(x: Tensor, kernel: Tensor, center: int) -> Tensor:
    """One dot product per channel over the inputs, for a decoding step: no transform, no operator call."""
    taps = kernel[center:].flip(0).to(_accumulator(x))
    return (x[:, -len(taps) :].to(taps.dtype) * taps).sum(1, keepdim=True).to(x.dtype)


def _transform_length(length: int, lags: int, first: int, num_outputs: int) -> int:
    """Smallest convenient transform whose wrap-around does not reach the outputs `first` … of the full convolution."""
    needed = max(first + num_outputs, length + lags - 1 - first, lags)
    size = 1
    while size < needed:
        size *= 2
    # Half as many 5-smooth steps in between are worth their slower radices; more are not.
    return size * 3 // 4 if size >= 64 and size * 3 // 4 >= needed else size


def _spectrum(x: Tensor, size: int) -> Tensor:
    """Real FFT over time of (..., length, dim) as (..., dim, frequencies); a transposed view costs no copy."""
    return torch.fft.rfft(x.to(_accumulator(x)).transpose(-1, -2).contiguous(), n=size)


@torch.library.custom_op("subquad::toeplitz", mutates_args=())
def _toeplitz(x: Tensor, kernel: Tensor, center: int, num_outputs: int) -> Tensor:
    first = center + x.shape[1] - num_outputs
    size = _transform_length(x.shape[1], kernel.shape[0], first, num_outputs)
    product = _spectrum(x, size).mul_(_spectrum(kernel.to(_accumulator(x)), size))
    y = torch.fft.irfft(product, n=size)[..., first : first + num_outputs]
    return y.to(x.dtype, memory_format=torch.contiguous_format, copy=True).transpose(1, 2)


@_toeplitz.register_fake
def _(x: Tensor, kernel: Tensor, center: int, num_outputs: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2], num_outputs).transpose(1, 2)


@torch.library.custom_op("subquad::toeplitz_backward", mutates_args=())
def _toeplitz_backward(gradient: Tensor, x: Tensor, kernel: Tensor, center: int) -> tuple[Tensor, Tensor]:
    num_outputs = gradient.shape[1]
    first = center + x.shape[1] - num_outputs
    size = _transform_length(x.shape[1], kernel.shape[0], first, num_outputs)
    padded = gradient.to(_accumulator(x)).transpose(1, 2)
    incoming = torch.fft.rfft(F.pad(padded, (first, size - first - num_outputs)))
    # Spectra are computed again rather than kept: they are twice the size of x.
    by_kernel = (incoming * _spectrum(x, size).conj_physical_()).sum(0)
    by_x = incoming.mul_(_spectrum(kernel.to(_accumulator(x)), size).conj_physical_())
    grad_x = torch.fft.irfft(by_x, n=size)[..., : x.shape[1]]
    grad_kernel = torch.fft.irfft(by_kernel, n=size)[..., : kernel.shape[0]]
    return (
        grad_x.to(x.dtype, memory_format=torch.contiguous_format, copy=True).transpose(1, 2),
        grad_kernel.to(kernel.dtype, memory_format=torch.contiguous_format, copy=True).transpose(0, 1),
    )


@_toeplitz_backward.register_fake
def _(gradient: Tensor, x: Tensor, kernel: Tensor, center: int) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2),
        kernel.new_empty(kernel.shape[1], kernel.shape[0]).transpose(0, 1),
    )


def _save(ctx, inputs, output):
    x, kernel, ctx.center, _ = inputs
    ctx.save_for_backward(x, kernel)


def _differentiate(ctx, gradient):
    x, kernel = ctx.saved_tensors
    return *_toeplitz_backward(gradient, x, kernel, ctx.center), None, None


_toeplitz.register_autograd(_differentiate, setup_context=_save)
