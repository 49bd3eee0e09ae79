"""Toeplitz mixing (TNN, arXiv 2305.04749): the Toeplitz operator TNO, and the gated Toeplitz unit around it.

Every channel has its own Toeplitz matrix, independent of the data: y[i] = Σ_j t[i − j] x[j]. The coefficients come from
a relative position encoder evaluated at the lags, times an exponential decay:

    t[0] = RPE(0),     t[±k] = γ^k · RPE(±k),     A(t) elementwise at last

so a model of a few parameters has a kernel of any length, and extrapolates to lengths it was not trained on.
"""

import torch
from torch import Tensor, nn

from subquad.layers import RelativePositionEncoder, build_norm
from subquad.layers import activation as get_activation
from subquad.mixers.base import Mixer, State, register_mixer
from subquad.ops import toeplitz


class TNO(nn.Module):
    """Toeplitz operator over (batch, length, dim), one kernel for each channel.

    Args:
        dim: Channels.
        causal: Whether the coefficients of negative lags are zero.
        decay: γ in (0, 1], the fixed decay per step of lag, or the smallest one if `learn_decay`; None is no decay.
        learn_decay: Whether each channel learns its decay, γ + (1 − γ)·σ(logit).
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
        rpe_hidden_size: int | None = None,
        rpe_layers: int = 3,
        rpe_activation: str = "relu",
        rpe_norm: str = "simple_rmsnorm",
        rpe_residual: bool = False,
        rpe_bias: bool = True,
        kernel_activation: str = "identity",
    ):
        super().__init__()
        if decay is not None and not 0 < decay <= 1:
            raise ValueError(f"`decay` must be in (0, 1] or None, got {decay}")
        if decay is None and learn_decay:
            raise ValueError("`learn_decay` needs a smallest `decay`, got None")
        self.dim = dim
        self.causal = causal
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
        self._cached_kernel: tuple[tuple, Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the decays to their initial values."""
        if self.decay_logit is not None:
            nn.init.normal_(self.decay_logit)
        if self.decay is not None:
            nn.init.constant_(self.decay, self.min_decay)

    def lags(self, length: int) -> Tensor:
        """The lags 0 … length−1, after −(length−1) … −1 if bidirectional: one row of the kernel each."""
        first = 0 if self.causal else 1 - length
        return torch.arange(first, length, device=self.rpe.input_proj.weight.device)

    def positions(self, length: int) -> Tensor:
        """What the encoder sees for each lag (num_lags,): here the lag itself."""
        return self.lags(length)

    def coefficients(self, length: int) -> Tensor:
        """The kernel (num_lags, dim) of sequences of `length`, float32 (float64 if the parameters are)."""
        kernel = self.rpe(self.positions(length))
        decay = self.decay
        if self.decay_logit is not None:
            decay = self.min_decay + (1 - self.min_decay) * torch.sigmoid(self.decay_logit.to(kernel.dtype))
        if decay is not None:
            kernel = kernel * decay.to(kernel.dtype) ** self.lags(length).abs().unsqueeze(-1)
        return self.kernel_activation(kernel)

    def kernel(self, length: int) -> Tensor:
        """As `coefficients`, but evaluated once for many lengths while the parameters do not change.

        Decoding asks for one more lag at every token: outside training the kernel of the next power of two is kept, and
        a shorter one is a slice of it.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._cached_kernel = None
            return self.coefficients(length)
        key = tuple((p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype) for p in self.parameters())
        if self._cached_kernel is None or self._cached_kernel[0] != key or len(self._cached_kernel[1]) < length:
            self._cached_kernel = (key, self.coefficients(1 << (length - 1).bit_length()))
        longest = self._cached_kernel[1]
        first = 0 if self.causal else (len(longest) + 1) // 2 - length
        return longest[first : len(longest) - first] if first or not self.causal else longest[:length]

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the operator.

        Args:
            x: (batch, length, dim).
            past: (batch, stored, dim), the inputs before `x`.

        Returns:
            y (batch, length, dim), and all inputs (batch, stored + length, dim).
        """
        inputs = x if past is None else torch.cat([past, x], dim=1)
        length = inputs.shape[1]
        kernel = self.kernel(length)
        return toeplitz(inputs, kernel, center=0 if self.causal else length - 1, num_outputs=x.shape[1]), inputs


@register_mixer("tno")
class GTU(Mixer):
    """Gated Toeplitz unit: y = W_o norm(φ(W_u x) ⊙ TNO(φ(W_v x))) (TNN, arXiv 2305.04749, section 3.4).

    The state is the operator's inputs so far, which is exact at any length: a token costs one pass over them.

    Args:
        dim: Features in and out.
        causal: Whether a position sees only itself and earlier ones.
        expand_ratio: Width of the unit over `dim`.
        activation: φ, by name.
        norm: Norm before the output map, or None.
        bias: Whether all maps, the encoder's too, have biases.
        decay: As in `TNO`.
        learn_decay: As in `TNO`.
        rpe_hidden_size: As in `TNO`; default max(dim // 8, 32).
        rpe_layers: As in `TNO`.
        rpe_activation: As in `TNO`.
        rpe_norm: As in `TNO`.
        rpe_residual: As in `TNO`.
        kernel_activation: As in `TNO`.

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

    state_type = "growing"

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        expand_ratio: float = 3,
        activation: str = "silu",
        norm: str | None = None,
        bias: bool = True,
        decay: float | None = 0.99,
        learn_decay: bool = False,
        rpe_hidden_size: int | None = None,
        rpe_layers: int = 3,
        rpe_activation: str = "relu",
        rpe_norm: str = "simple_rmsnorm",
        rpe_residual: bool = False,
        kernel_activation: str = "identity",
    ):
        super().__init__(dim, causal)
        width = int(expand_ratio * dim)
        if width < 1:
            raise ValueError(f"`expand_ratio` {expand_ratio} leaves no channel of {dim}")
        self.gate_proj = nn.Linear(dim, width, bias=bias)
        self.input_proj = nn.Linear(dim, width, bias=bias)
        self.output_proj = nn.Linear(width, dim, bias=bias)
        self.activation = get_activation(activation)
        self.norm = build_norm(norm, width)
        self.tno = TNO(
            width,
            causal,
            decay=decay,
            learn_decay=learn_decay,
            rpe_hidden_size=rpe_hidden_size or max(dim // 8, 32),
            rpe_layers=rpe_layers,
            rpe_activation=rpe_activation,
            rpe_norm=rpe_norm,
            rpe_residual=rpe_residual,
            rpe_bias=bias,
            kernel_activation=kernel_activation,
        )

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gate u and the operator's input v, each (batch, length, width)."""
        return self.activation(self.gate_proj(x)), self.activation(self.input_proj(x))

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of rows; padding enters the operator as zeros."""
        u, v = self.branches(x)
        if mask is not None:
            v = v * mask[:, -x.shape[1] :, None]
        mixed, inputs = self.tno(v, None if state is None else state[0].squeeze(1))
        y = self.output_proj(self.norm(u * mixed))
        stored = inputs.unsqueeze(1)
        return y, (stored, stored[..., :0]) if self.causal else None
