"""Real Fourier transforms over time of sequences whose channels come first in memory.

A transform wants its axis contiguous. With the order (dim, batch, length) it is, a kernel of each channel is shared by
the batch without a copy, and a linear map reads and writes all sequences as one matrix (dim, batch · length).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def spectrum(x: Tensor, size: int, dtype: torch.dtype, first: int = 0) -> Tensor:
    """Real FFT over time of `x` (batch, length, dim), moved by `first` and filled up with zeros to `size`.

    Returns:
        (dim, batch, size // 2 + 1), the complex dtype of `dtype`.
    """
    rows = x.to(dtype).permute(2, 0, 1)
    return torch.fft.rfft(F.pad(rows, (first, size - first - rows.shape[-1])))


def from_spectrum(transform: Tensor, size: int, positions: slice, dtype: torch.dtype) -> Tensor:
    """Some positions of the inverse of `spectrum`: (batch, positions, dim) in `dtype`, channels first in memory."""
    rows = torch.fft.irfft(transform, n=size)[..., positions]
    return rows.to(dtype, memory_format=torch.contiguous_format, copy=True).permute(1, 2, 0)


def channels_first(x: Tensor, length: int) -> Tensor:
    """An empty (batch, length, dim) for `x` (batch, any length, dim), channels first in memory."""
    return x.new_empty(x.shape[2], x.shape[0], length).permute(1, 2, 0)
