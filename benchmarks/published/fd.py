"""The frequency-domain Toeplitz operator in the straightforward published formulation.

This is our own re-statement of the formula (FD-TNN, arXiv 2305.09028, section 3.3), as the public layers write it: the
encoder at every frequency and for every channel, the causal kernel completed by a transform there and back, all
transforms along the strided time axis, and gradients left to autograd. It holds the weights of the operator that it is
made from, and computes the same where that one's grid follows the length.
"""

import math

import torch
from torch import Tensor, nn

from subquad.mixers import FDTNO


def norm(x: Tensor) -> Tensor:
    """The root-mean-square norm as published."""
    return x / (x.norm(2, dim=-1, keepdim=True) * x.shape[-1] ** -0.5 + 1e-8)


class PublishedFDTNO(nn.Module):
    """An `FDTNO` with its default encoder, called as that.

    Args:
        operator: The operator whose weights are used.
    """

    def __init__(self, operator: FDTNO):
        super().__init__()
        if operator.rpe is None or operator.smooth_spectrum:
            raise ValueError("the published formulation is restated for the encoder on frequencies")
        self.operator = operator

    def response(self, size: int) -> Tensor:
        """What the encoder says at each frequency (1, size / 2 + 1, width)."""
        rpe = self.operator.rpe
        z = rpe.input_proj(torch.linspace(0, math.pi, size // 2 + 1).reshape(-1, 1))
        for layer in rpe.layers:
            z = layer(torch.relu(norm(z)))
        return rpe.output_proj(torch.relu(norm(z))).unsqueeze(0)

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the operator to `x` (batch, length, dim)."""
        heads = x.unsqueeze(1)
        n = x.shape[1]
        size = 2 ** math.ceil(math.log2(2 * n))
        response = self.response(size)
        if self.operator.causal:
            kernel = torch.fft.irfft(response, n=size, dim=-2)
            first, middle = kernel[:, :1] / 2, kernel[:, 1 : size // 2 + 1]
            kernel = torch.cat([first, middle, torch.zeros_like(kernel[:, size // 2 + 1 :])], dim=-2)
            response = 2 * torch.fft.rfft(kernel, n=size, dim=-2)
        else:
            real, imaginary = response.chunk(2, dim=-1)
            imaginary = imaginary.clone()
            imaginary[:, [0, -1]] = 0
            response = torch.complex(real.contiguous(), imaginary)
        spectrum = torch.fft.rfft(heads, n=size, dim=-2) * response
        return torch.fft.irfft(spectrum, n=size, dim=-2)[:, :, :n].squeeze(1), x
