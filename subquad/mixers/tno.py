"""Toeplitz mixing (TNN, arXiv 2305.04749): the Toeplitz operator TNO, and the gated Toeplitz unit around it.

Every channel has its own Toeplitz matrix, independent of the data: y[i] = Σ_j t[i − j] x[j]. The coefficients come from
a relative position encoder evaluated at the lags, times an exponential decay:

    t[0] = RPE(0),     t[±k] = γ^k · RPE(±k),     A(t) elementwise at last

so a model of a few parameters has a kernel of any length, and extrapolates to lengths it was not trained on.
"""

import math

import torch
from torch import Tensor, nn

from subquad.layers import RelativePositionEncoder
from subquad.layers import activation as get_activation
from subquad.mixers.base import register_mixer
from subquad.mixers.gated_toeplitz import GatedGridUnit, GatedToeplitzUnit, ToeplitzOperator


class TNO(ToeplitzOperator):
    """Toeplitz operator over (batch, length, dim), one kernel for each channel.

    Args:
        dim: Channels.
        causal: Whether the coefficients of negative lags are zero.
        decay: γ in (0, 1], the fixed decay per step of lag, or the smallest one if `learn_decay`; None is no decay.
        learn_decay: Whether each channel learns its decay, γ + (1 − γ)·σ(logit).
        window: Coefficients of lags from ±window on are zero; None is no window.
        rpe_hidden_size: Width of the relative position encoder; default max(dim // 8, 32).
        rpe_layers: Hidden maps of the encoder.
        rpe_activation: Activation of the encoder.
        rpe_norm: Norm of the encoder.
        rpe_residual: Whether the encoder's hidden maps are residual.
        rpe_bias: Whether the encoder's maps have biases.
        kernel_activation: A, applied to the decayed coefficients.
    """

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        decay: float | None = 0.99,
        learn_decay: bool = False,
        window: int | None = None,
        rpe_hidden_size: int | None = None,
        rpe_layers: int = 3,
        rpe_activation: str = "relu",
        rpe_norm: str = "simple_rmsnorm",
        rpe_residual: bool = False,
        rpe_bias: bool = True,
        kernel_activation: str = "identity",
    ):
        super().__init__(dim, causal)
        if decay is not None and not 0 < decay <= 1:
            raise ValueError(f"`decay` must be in (0, 1] or None, got {decay}")
        if decay is None and learn_decay:
            raise ValueError("`learn_decay` needs a smallest `decay`, got None")
        if window is not None and window < 1:
            raise ValueError(f"`window` must be positive or None, got {window}")
        self.window = window
        self.min_decay = decay or 0.0
        self.kernel_activation = get_activation(kernel_activation)
        self.rpe = RelativePositionEncoder(
            dim,
            hidden_size=rpe_hidden_size or max(dim // 8, 32),
            num_layers=rpe_layers,
            activation=rpe_activation,
            norm=rpe_norm,
            residual=rpe_residual,
            bias=rpe_bias,
        )
        self.decay: nn.Parameter | None = None
        self.decay_logit: nn.Parameter | None = None
        if learn_decay:
            self.decay_logit = nn.Parameter(torch.empty(dim))
            self.decay_logit._no_weight_decay = True  # type: ignore[attr-defined]
        elif decay is not None:
            self.decay = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the decays to their initial values."""
        if self.decay_logit is not None:
            nn.init.normal_(self.decay_logit)
        if self.decay is not None:
            nn.init.constant_(self.decay, self.min_decay)

    def positions(self, length: int) -> Tensor:
        """What the encoder sees for each lag (num_lags,): here the lag itself."""
        return self.lags(length)

    def coefficients(self, length: int) -> Tensor:
        """The kernel (num_lags, dim) of sequences of `length`, float32 (float64 if the parameters are)."""
        kernel = self.rpe(self.positions(length))
        distance = self.lags(length).abs().unsqueeze(-1)
        decay = self.decays(kernel.dtype)
        if decay is not None:
            # γ^k as an exponential: powers of numbers take four times as long. Results too small for a normal number,
            # beyond some 8,700 lags of γ = 0.99, would take ten times as long again.
            smallest = math.log(2 * torch.finfo(kernel.dtype).tiny)
            kernel = kernel * torch.exp((distance * decay.log()).clamp(min=smallest))
        kernel = self.kernel_activation(kernel)
        return kernel if self.window is None else kernel.where(distance < self.window, 0.0)

    def decays(self, dtype: torch.dtype) -> Tensor | None:
        """The decay of each channel (dim,), in `dtype`, or None."""
        if self.decay_logit is not None:
            return self.min_decay + (1 - self.min_decay) * torch.sigmoid(self.decay_logit.to(dtype))
        return None if self.decay is None else self.decay.to(dtype)


@register_mixer("tno")
class GTU(GatedToeplitzUnit):
    """Gated Toeplitz unit: y = W_o norm(φ(W_u x) ⊙ TNO(φ(W_v x))) (TNN, arXiv 2305.04749, section 3.4).

    Options are those of `GatedToeplitzUnit` and `TNO`.

    Example:
        >>> import torch
        >>> from subquad.mixers import GTU
        >>> unit = GTU(64)
        >>> x = torch.randn(2, 100, 64)
        >>> y, state = unit(x[:, :60])
        >>> rest, state = unit(x[:, 60:], state)
        >>> rest.shape
        torch.Size([2, 40, 64])
    """

    operator_class = TNO
    operator: TNO


@register_mixer("tno_2d")
class GTU2D(GatedGridUnit):
    """Gated Toeplitz unit over a grid, with one Toeplitz operator along the rows and one along the columns.

    Options are those of `GatedGridUnit` and `TNO`.

    Example:
        >>> import torch
        >>> from subquad.mixers import GTU2D
        >>> y, _ = GTU2D(64, height=8, width=8)(torch.randn(2, 64, 64))
        >>> y.shape
        torch.Size([2, 64, 64])
    """

    operator_class = TNO
