"""Spectral filter: every channel of a sequence through its own frequency response.

    y = first n entries of IDFT_N(DFT_N(x) ⊙ (real + i·imaginary))        (FD-TNN, arXiv 2305.09028, section 3.3)

This is a Toeplitz product with the taps IDFT_N(real + i·imaginary), N = 2·(num_frequencies − 1), negative lags at the
end, without ever forming them: one transform less than `toeplitz`.

Layout: x (batch, length, dim), responses (num_frequencies, dim). y is a view of a contiguous (dim, batch, length)
tensor, the order that transforms want, and x and responses with the channels first are the fastest. Precision: float64
in float64; everything else is computed in float32, y has the dtype of x. Cost: N log N.

| backend   | what it is                                | gradients |
| reference | the taps, gathered into a Toeplitz matrix | autograd, any order |
| torch     | real FFT over a contiguous axis           | hand-written, first order |

With X and G the transforms of x and of y's gradient g, the gradient of x is IDFT(G ⊙ conj(response)), that of the
response w·conj(X) ⊙ G / N, where w counts a frequency and its mirror image: 1 at both ends, 2 between.
"""

import torch
from torch import Tensor

from subquad.ops.backends import choose, refuse_second_order
from subquad.ops.fourier import channel_blocks, channels_first, from_spectrum, spectrum
from subquad.ops.precision import accumulator


def spectral_filter(x: Tensor, real: Tensor, imaginary: Tensor, *, backend: str = "auto") -> Tensor:
    """Filter each channel by its frequency response.

    Args:
        x: (batch, length, dim).
        real: (num_frequencies, dim), the real part of the response at the angular frequencies πj/(num_frequencies − 1).
        imaginary: (num_frequencies, dim), its imaginary part, zero at the first and the last frequency.
        backend: "auto", "reference" or "torch".

    Returns:
        y (batch, length, dim), dtype of `x`.

    Raises:
        ValueError: If shapes do not fit, the frequencies are too few for the length, or the backend cannot run.
    """
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"`x` must be (batch, length, dim) with length > 0, got {tuple(x.shape)}")
    if real.shape != imaginary.shape or real.ndim != 2 or real.shape[1] != x.shape[2]:
        raise ValueError(
            f"`real` and `imaginary` must be (num_frequencies, {x.shape[2]}), got {tuple(real.shape)} and "
            f"{tuple(imaginary.shape)}"
        )
    if real.shape[0] <= x.shape[1]:
        raise ValueError(f"{x.shape[1]} inputs need at least {x.shape[1] + 1} frequencies, got {real.shape[0]}")
    backend = choose("spectral_filter", backend, x.device)
    if backend == "reference" or x.numel() == 0:
        return _reference(x, real, imaginary)
    return _spectral_filter(x, real, imaginary)


# --- reference -------------------------------------------------------------------------------------------------------


def _reference(x: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
    dtype = accumulator(x)
    taps = torch.fft.irfft(torch.complex(real.to(dtype), imaginary.to(dtype)), dim=0)
    i = torch.arange(x.shape[1], device=x.device)
    matrix = taps[i.unsqueeze(1) - i]
    with torch.autocast(x.device.type, enabled=False):
        return torch.einsum("ijd,bjd->bid", matrix, x.to(dtype)).to(x.dtype)


# --- torch -----------------------------------------------------------------------------------------------------------


def _response(real: Tensor, imaginary: Tensor, dtype: torch.dtype) -> Tensor:
    """The response as (dim, 1, num_frequencies), complex."""
    return torch.complex(real.to(dtype).T.contiguous(), imaginary.to(dtype).T.contiguous()).unsqueeze(1)


@torch.library.custom_op("subquad::spectral_filter", mutates_args=())
def _spectral_filter(x: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
    dtype, size = accumulator(x), 2 * (real.shape[0] - 1)
    y = channels_first(x, x.shape[1])
    for block in channel_blocks(x, size):
        response = _response(real[:, block], imaginary[:, block], dtype)
        product = spectrum(x[..., block], size, dtype).mul_(response)
        y[..., block] = from_spectrum(product, size)[:, : x.shape[1]]
    return y


@_spectral_filter.register_fake
def _(x: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
    return channels_first(x, x.shape[1])


@torch.library.custom_op("subquad::spectral_filter_backward", mutates_args=())
def _spectral_filter_backward(
    gradient: Tensor, x: Tensor, real: Tensor, imaginary: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, size = accumulator(x), 2 * (real.shape[0] - 1)
    grad_x = channels_first(x, x.shape[1])
    grad_real, grad_imaginary = (part.T.new_empty(part.T.shape).T for part in (real, imaginary))
    weights = torch.full((real.shape[0], 1), 2 / size, dtype=dtype, device=x.device)
    weights[[0, -1]] /= 2
    for block in channel_blocks(x, size):
        incoming = spectrum(gradient[..., block], size, dtype)
        # The spectrum of x is computed again rather than kept: it is four times the size of x.
        products = spectrum(x[..., block], size, dtype).conj_physical_().mul_(incoming)
        by_response = (products.squeeze(1) if x.shape[0] == 1 else products.sum(1)).T
        grad_real[:, block] = by_response.real * weights
        grad_imaginary[:, block] = by_response.imag * weights
        incoming.mul_(_response(real[:, block], imaginary[:, block], dtype).conj_physical_())
        grad_x[..., block] = from_spectrum(incoming, size)[:, : x.shape[1]]
    return grad_x, grad_real, grad_imaginary


@_spectral_filter_backward.register_fake
def _(gradient: Tensor, x: Tensor, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    by_real, by_imaginary = (part.T.new_empty(part.T.shape).T for part in (real, imaginary))
    return channels_first(x, x.shape[1]), by_real, by_imaginary


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, gradient):
    return _spectral_filter_backward(gradient, *ctx.saved_tensors)


_spectral_filter.register_autograd(_differentiate, setup_context=_save)
_spectral_filter_backward.register_autograd(refuse_second_order("spectral_filter"))
