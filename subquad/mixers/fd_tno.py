"""Toeplitz mixing in the frequency domain (FD-TNN, arXiv 2305.09028, section 3.3).

The coefficients of a Toeplitz operator are given by their frequency response, R(ω) + iI(ω), sampled at ω_j = 2πj/N:

    bidirectional   t[k] = inverse real DFT of R + iI at k mod N;  I(0) = I(π) = 0
    causal          e = inverse real DFT of R;  t[0] = e[0],  t[k] = 2 e[k]: the one causal kernel whose response has
                    the real part R, for any R

The response is the output of a relative position encoder that sees frequencies instead of lags, or is interpolated
between free coefficients. Either is linear in its last map, R = Φ A, so the inverse transform is taken of the few
columns of Φ rather than of all channels.

Sampling on N points adds up coefficients N lags apart, so the kernel depends on N. It is the same for all lengths up to
`horizon`, where N = 2·horizon, and N doubles beyond.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from subquad.layers import RelativePositionEncoder
from subquad.mixers.base import register_mixer
from subquad.mixers.gated_toeplitz import GatedGridUnit, GatedToeplitzUnit, ToeplitzOperator
from subquad.ops import spectral_filter
from subquad.ops.ski import hat_functions

Response = tuple[Tensor, Tensor]
"""Basis functions (num_frequencies, rank) and coefficients (rank, dim); the response is their product."""


class FDTNO(ToeplitzOperator):
    """Toeplitz operator over (batch, length, dim), each channel's kernel given by its frequency response.

    Args:
        dim: Channels.
        causal: Whether the coefficients of negative lags are zero.
        horizon: The kernel is the same for all lengths up to this one, rounded up to a power of two; the length of
            training is a good choice, and a larger one costs next to nothing. With None the kernel depends on the
            length, and what is computed in pieces, padded or packed differs from the whole.
        num_frequencies: Number of free coefficients of each channel above frequency 0, at equal distances up to π, in
            place of the encoder; None is the encoder.
        smooth_spectrum: Whether the encoder sees cos ω instead of ω, and imaginary parts are multiplied by sin ω. The
            response is then smooth as a periodic function, and with a smooth `rpe_activation` ("silu", "gelu") the
            coefficients fall exponentially with the lag; otherwise like 1/k² (real part) and 1/k (imaginary part).
        rpe_hidden_size: Width of the relative position encoder; default max(dim // 8, 32).
        rpe_layers: Hidden maps of the encoder.
        rpe_activation: Activation of the encoder.
        rpe_norm: Norm of the encoder.
        rpe_residual: Whether the encoder's hidden maps are residual.
        rpe_bias: Whether the encoder's maps have biases.
    """

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        horizon: int | None = 4096,
        num_frequencies: int | None = None,
        smooth_spectrum: bool = False,
        rpe_hidden_size: int | None = None,
        rpe_layers: int = 3,
        rpe_activation: str = "relu",
        rpe_norm: str = "simple_rmsnorm",
        rpe_residual: bool = False,
        rpe_bias: bool = True,
    ):
        super().__init__(dim, causal)
        if horizon is not None and horizon < 1:
            raise ValueError(f"`horizon` must be positive or None, got {horizon}")
        self.horizon = horizon
        self.smooth_spectrum = smooth_spectrum
        if num_frequencies is None:
            self.rpe = RelativePositionEncoder(
                dim if causal else 2 * dim,
                hidden_size=rpe_hidden_size or max(dim // 8, 32),
                num_layers=rpe_layers,
                activation=rpe_activation,
                norm=rpe_norm,
                residual=rpe_residual,
                bias=rpe_bias,
            )
            return
        if num_frequencies < 2:
            raise ValueError(f"`num_frequencies` must be at least 2, got {num_frequencies}")
        if smooth_spectrum:
            raise ValueError("`smooth_spectrum` is about the encoder: it has no meaning with `num_frequencies`")
        self.rpe = None
        self.real = nn.Parameter(torch.empty(num_frequencies + 1, dim))
        self.imaginary = None if causal else nn.Parameter(torch.empty(num_frequencies - 1, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set free coefficients to their initial values: those of frequency 0 to one, the others normal."""
        if self.rpe is None:
            nn.init.normal_(self.real)
            nn.init.ones_(self.real[0])
            if self.imaginary is not None:
                nn.init.normal_(self.imaginary)

    @staticmethod
    def channels_first(causal: bool, device: torch.device) -> bool:
        """Whether inputs with the channels first in memory are the fastest: a spectral filter wants them so."""
        return not causal or ToeplitzOperator.channels_first(causal, device)

    def grid_size(self, length: int) -> int:
        """N, the smallest power of two that is at least twice `length` and twice `horizon`."""
        if self.horizon is not None and length <= self.horizon:
            length = self.horizon
        return 2 << (length - 1).bit_length()

    def response(self, size: int) -> tuple[Response, Response | None]:
        """The real and (unless causal) the imaginary part of the response on a grid of `size` points."""
        index = torch.arange(size // 2 + 1, device=next(self.parameters()).device)
        if self.rpe is None:
            dtype = torch.promote_types(self.real.dtype, torch.float32)
            knots = hat_functions(index.double() / (size // 2) * (len(self.real) - 1), len(self.real)).to(dtype)
            imaginary = None if self.imaginary is None else (knots[:, 1:-1], self.imaginary.to(dtype))
            return (knots, self.real.to(dtype)), imaginary
        omega = index.double() * (2 * math.pi / size)
        features = self.rpe.features(omega.cos() if self.smooth_spectrum else omega)
        maps = self.rpe.output_proj
        coefficients = maps.weight.to(features.dtype).T
        if maps.bias is not None:
            features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
            coefficients = torch.cat([coefficients, maps.bias.to(features.dtype).unsqueeze(0)])
        if self.causal:
            return (features, coefficients), None
        inner = (index > 0) & (index < size // 2)
        odd = features * (inner * omega.sin() if self.smooth_spectrum else inner).to(features.dtype).unsqueeze(1)
        return (features, coefficients[:, : self.dim]), (odd, coefficients[:, self.dim :])

    def coefficients(self, length: int) -> Tensor:
        """The kernel (num_lags, dim) of sequences of `length`, float32 (float64 if the parameters are)."""
        lags, size = self.lags(length), self.grid_size(length)
        with torch.autocast(lags.device.type, enabled=False):
            (basis, coefficients), imaginary = self.response(size)
            taps = torch.fft.irfft(basis, n=size, dim=0)[lags.abs()]
            if imaginary is None:
                return (taps * (1 + (lags > 0)).unsqueeze(1)) @ coefficients
            odd_basis, odd_coefficients = imaginary
            odd_taps = torch.fft.irfft(torch.complex(torch.zeros_like(odd_basis), odd_basis), n=size, dim=0)[lags]
            return taps @ coefficients + odd_taps @ odd_coefficients

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the operator, as in `ToeplitzOperator`."""
        size = self.grid_size(x.shape[1])
        # On a grid far larger than the sequence, transforms of that size cost more than a kernel of the right one.
        if self.causal or size >= 4 * x.shape[1]:
            return super().forward(x, past)
        with torch.autocast(x.device.type, enabled=False):
            # Channels first, as the transforms want them.
            parts = [(coefficients.T @ basis.T).T for basis, coefficients in filter(None, self.response(size))]
        return spectral_filter(x, *parts), x


@register_mixer("fd_tno")
class FDGTU(GatedToeplitzUnit):
    """Gated Toeplitz unit in the frequency domain: y = W_o norm(φ(W_u x) ⊙ FDTNO(φ(W_v x))) (arXiv 2305.09028).

    Options are those of `GatedToeplitzUnit` and `FDTNO`.

    Example:
        >>> import torch
        >>> from subquad.mixers import FDGTU
        >>> unit = FDGTU(64, horizon=128)
        >>> x = torch.randn(2, 100, 64)
        >>> y, state = unit(x[:, :60])
        >>> rest, state = unit(x[:, 60:], state)
        >>> rest.shape
        torch.Size([2, 40, 64])
    """

    operator_class = FDTNO
    operator: FDTNO


@register_mixer("fd_tno_2d")
class FDGTU2D(GatedGridUnit):
    """Gated Toeplitz unit over a grid, one operator of the frequency domain along the rows and one along the columns.

    Args:
        dim: Features in and out.
        causal: Must be False.
        height: Rows of the grid.
        width: Columns of the grid.
        horizon: As in `FDTNO`; by default the grid's own lengths, which never change.
        **options: Options of `GatedGridUnit` and of `FDTNO`.

    Example:
        >>> import torch
        >>> from subquad.mixers import FDGTU2D
        >>> y, _ = FDGTU2D(64, height=8, width=8)(torch.randn(2, 64, 64))
        >>> y.shape
        torch.Size([2, 64, 64])
    """

    operator_class = FDTNO

    def __init__(
        self,
        dim: int,
        causal: bool = False,
        *,
        height: int,
        width: int,
        horizon: int | None = None,
        **options: Any,
    ):
        super().__init__(dim, causal, height=height, width=width, horizon=horizon, **options)
