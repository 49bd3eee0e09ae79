"""Toeplitz mixing by structured kernel interpolation (SKI-TNN, arXiv 2305.09028, sections 3.1 and 3.2).

Learned Toeplitz kernels are spiky near lag 0 and smooth elsewhere. The operator is a sum of two,

    t[k] = c[k] + ρ(k),     c: a few taps, |k| ≤ (num_taps − 1)/2;     ρ: a smooth function

Bidirectional, ρ is seen through inducing positions h apart: W A Wᵀ with A[k, l] = ρ((k − l) h), W linear interpolation.
The cost is linear in the length. Causal, the sum of both is a Toeplitz kernel like any other.

ρ needs no network. Lags are warped into [−1, 1], t ↦ sign(t) λ^|t|, and ρ is piecewise linear there between free values
at equidistant knots, zero at lag ±∞: a ReLU network of one variable is a piecewise linear function anyway, and this one
never has to extrapolate.
"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from subquad.layers import RelativePositionEncoder
from subquad.layers import activation as get_activation
from subquad.mixers.base import State, register_mixer
from subquad.mixers.gated_toeplitz import GatedGridUnit, GatedToeplitzUnit, ToeplitzOperator
from subquad.ops import ski
from subquad.ops.ski import hat_functions
from subquad.registry import unknown_name

KERNELS = ("table", "rpe")


class SKITNO(ToeplitzOperator):
    """Sparse plus smooth Toeplitz operator over (batch, length, dim), one kernel for each channel.

    Args:
        dim: Channels.
        causal: Whether the coefficients of negative lags are zero.
        rank: Number of inducing positions over the horizon, and of knots on either side of the table.
        num_taps: Number of lags −(num_taps−1)/2 … (num_taps−1)/2 that have a free coefficient; odd.
        decay: λ in (0, 1]; default rank^(−1/horizon), which puts the table's last knot at the horizon.
        horizon: The inducing positions are (horizon−1)/(rank−1) apart, at every length; the length of training is a
            good choice. With None they spread over each sequence, so that padding or packing it changes the outputs; a
            sequence shorter than `rank` has an inducing position at each of its own.
        kernel: What ρ is: "table", or "rpe" for λ^|k| · A(RPE(k)), a relative position encoder with decay.
        rpe_hidden_size: Width of the relative position encoder; default max(dim // 8, 32).
        rpe_layers: Hidden maps of the encoder.
        rpe_activation: Activation of the encoder.
        rpe_norm: Norm of the encoder.
        rpe_residual: Whether the encoder's hidden maps are residual.
        rpe_bias: Whether the encoder's maps have biases.
        kernel_activation: A, applied to the encoder's outputs.
    """

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        rank: int = 64,
        num_taps: int = 33,
        decay: float | None = None,
        horizon: int | None = 2048,
        kernel: str = "table",
        rpe_hidden_size: int | None = None,
        rpe_layers: int = 3,
        rpe_activation: str = "relu",
        rpe_norm: str = "simple_rmsnorm",
        rpe_residual: bool = False,
        rpe_bias: bool = True,
        kernel_activation: str = "identity",
    ):
        super().__init__(dim, causal)
        if rank < 2:
            raise ValueError(f"`rank` must be at least 2, got {rank}")
        if horizon is not None and rank > horizon:
            raise ValueError(f"`rank` {rank} is larger than the sequence, `horizon` {horizon}: use at most {horizon}")
        if num_taps < 1 or num_taps % 2 == 0:
            raise ValueError(f"`num_taps` must be odd and positive, got {num_taps}")
        if decay is not None and not 0 < decay <= 1:
            raise ValueError(f"`decay` must be in (0, 1], got {decay}")
        if causal and decay is None and horizon is None:
            raise ValueError("a causal kernel must not depend on the length: give `horizon`, or `decay`")
        if decay == 1 and kernel == "table" and not causal:
            warnings.warn(
                "`decay` 1 makes the smooth part of the kernel one constant for each direction: use a number below 1",
                stacklevel=2,
            )
        if kernel not in KERNELS:
            raise ValueError(unknown_name("kernel", kernel, KERNELS))
        self.rank = rank
        self.decay = decay
        self.horizon = horizon
        self.taps = nn.Parameter(torch.empty((num_taps + 1) // 2 if causal else num_taps, dim))
        self.rpe: RelativePositionEncoder | None = None
        self.past: nn.Parameter | None = None
        self.future: nn.Parameter | None = None
        self.kernel_activation = get_activation(kernel_activation)
        if kernel == "rpe":
            self.rpe = RelativePositionEncoder(
                dim,
                hidden_size=rpe_hidden_size or max(dim // 8, 32),
                num_layers=rpe_layers,
                activation=rpe_activation,
                norm=rpe_norm,
                residual=rpe_residual,
                bias=rpe_bias,
            )
        else:
            # Row j belongs to the warped lag (j + 1)/rank: the last one to lag 0.
            self.past = nn.Parameter(torch.empty(rank, dim))
            self.future = None if causal else nn.Parameter(torch.empty(rank, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw taps and table so that both parts of the operator keep the scale of white noise.

        Taps have variance 1/num_taps, the table's values −ln λ, about one over the lags that the smooth part reaches.
        """
        num_taps = 2 * len(self.taps) - 1 if self.causal else len(self.taps)
        nn.init.normal_(self.taps, std=num_taps**-0.5)
        span = self.horizon or self.rank
        rate = -math.log(self.decay or 1) or math.log(self.rank) / span
        for side in (self.past, self.future):
            if side is not None:
                nn.init.normal_(side, std=rate**0.5)

    @staticmethod
    def channels_first(causal: bool, device: torch.device) -> bool:
        """Whether inputs with the channels first in memory are the fastest: taps and interpolation want them last."""
        return causal and ToeplitzOperator.channels_first(causal, device)

    def smooth_part(self, lags: Tensor, length: int) -> Tensor:
        """ρ (num_lags, dim) at `lags` (num_lags,), negative ones first, for sequences of `length`."""
        lags = lags.double()
        decay = self.decay or self.rank ** (-1 / (self.horizon or length))
        falloff = decay ** lags.abs()
        with torch.autocast(lags.device.type, enabled=False):
            if self.rpe is not None:
                values = self.rpe(lags)
                return self.kernel_activation(values) * falloff.to(values.dtype).unsqueeze(-1)
            assert self.past is not None
            dtype = torch.promote_types(self.past.dtype, torch.float32)
            # The value at lag ±∞, knot 0, is zero.
            knots = hat_functions(self.rank * falloff, self.rank + 1)[:, 1:].to(dtype)
            if self.future is None:
                return knots @ self.past.to(dtype)
            middle = len(lags) // 2
            return torch.cat([knots[:middle] @ self.future.to(dtype), knots[middle:] @ self.past.to(dtype)])

    def coefficients(self, length: int) -> Tensor:
        """The kernel (num_lags, dim) of sequences of `length`, float32 (float64 if the parameters are).

        That of a bidirectional operator is what W A Wᵀ approximates.
        """
        lags = self.lags(length)
        kernel = self.smooth_part(lags, length)
        farthest = len(self.taps) - 1 if self.causal else len(self.taps) // 2
        tap_lags = torch.arange(0 if self.causal else -farthest, farthest + 1, device=lags.device)
        return kernel + (lags.unsqueeze(1) == tap_lags).to(kernel.dtype) @ self.taps.to(kernel.dtype)

    def inducing_grid(self, length: int) -> tuple[float, int]:
        """Distance and number of the inducing positions of a sequence of `length`."""
        span, intervals = (self.horizon or length) - 1, self.rank - 1
        if span <= intervals:
            return 1.0, length
        return span / intervals, -(-(length - 1) * intervals // span) + 1

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the operator, as in `ToeplitzOperator`."""
        if self.causal:
            return super().forward(x, past)
        length = x.shape[1]
        spacing, num_inducing = self.inducing_grid(length)
        lags = torch.arange(1 - num_inducing, num_inducing, device=x.device).double() * spacing
        return ski(x, self.taps, self.smooth_part(lags, length), spacing), x


@register_mixer("ski_tno")
class SKIGTU(GatedToeplitzUnit):
    """Gated Toeplitz unit with structured kernel interpolation: y = W_o norm(φ(W_u x) ⊙ SKITNO(φ(W_v x))).

    Options are those of `GatedToeplitzUnit` and `SKITNO`.

    Example:
        >>> import torch
        >>> from subquad.mixers import SKIGTU
        >>> y, _ = SKIGTU(64, causal=False, horizon=512)(torch.randn(2, 100, 64))
        >>> y.shape
        torch.Size([2, 100, 64])
    """

    operator_class = SKITNO
    operator: SKITNO

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of rows; the inducing positions of each begin at its first real token."""
        if self.causal or mask is None:
            return super().mix(x, state, mask)
        index = torch.arange(x.shape[1], device=x.device)
        first = mask.int().argmax(dim=1, keepdim=True)
        there, back = (index + first) % x.shape[1], (index - first) % x.shape[1]
        y, _ = super().mix(torch.take_along_dim(x, there.unsqueeze(-1), 1), None, torch.take_along_dim(mask, there, 1))
        return torch.take_along_dim(y, back.unsqueeze(-1), 1), None


@register_mixer("ski_tno_2d")
class SKIGTU2D(GatedGridUnit):
    """Gated Toeplitz unit over a grid, with structured kernel interpolation along the rows and along the columns.

    Args:
        dim: Features in and out.
        causal: Must be False.
        height: Rows of the grid.
        width: Columns of the grid.
        rank: As in `SKITNO`.
        num_taps: As in `SKITNO`.
        horizon: As in `SKITNO`; by default the grid's own lengths, which never change.
        **options: Options of `GatedGridUnit` and of `SKITNO`.

    Example:
        >>> import torch
        >>> from subquad.mixers import SKIGTU2D
        >>> y, _ = SKIGTU2D(64, height=8, width=8)(torch.randn(2, 64, 64))
        >>> y.shape
        torch.Size([2, 64, 64])
    """

    operator_class = SKITNO

    def __init__(
        self,
        dim: int,
        causal: bool = False,
        *,
        height: int,
        width: int,
        rank: int = 32,
        num_taps: int = 17,
        horizon: int | None = None,
        **options: Any,
    ):
        super().__init__(
            dim, causal, height=height, width=width, rank=rank, num_taps=num_taps, horizon=horizon, **options
        )
