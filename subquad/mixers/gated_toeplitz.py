"""What the Toeplitz mixers share: the operator over a sequence, and the gated units around it.

    y = W_o norm(φ(W_u x) ⊙ T φ(W_v x))

T is one Toeplitz matrix for each channel. `tno`, `fd_tno` and `ski_tno` differ in how its coefficients come about.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from subquad.layers import activation as get_activation
from subquad.layers import build_norm, gated
from subquad.mixers.base import Mixer, State, grid_of
from subquad.ops import toeplitz
from subquad.ops.backends import choose
from subquad.registry import unknown_name


class OperatorLinear(nn.Linear):
    """A linear map whose outputs are in memory (out_features, batch, length) where an operator wants them so.

    Args:
        in_features: Features in.
        out_features: Features out.
        bias: Whether it has a bias.
        channels_first: Tells for a device whether the operator does.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, channels_first: Callable[[torch.device], bool]):
        super().__init__(in_features, out_features, bias)
        self.channels_first = channels_first

    def forward(self, input: Tensor) -> Tensor:
        """Map `input` (batch, length, in_features) to (batch, length, out_features)."""
        if not self.channels_first(input.device):
            return super().forward(input)
        rows = input.flatten(0, 1).T
        channels = self.weight @ rows if self.bias is None else torch.addmm(self.bias.unsqueeze(1), self.weight, rows)
        return channels.unflatten(1, input.shape[:2]).permute(1, 2, 0)


class ToeplitzOperator(nn.Module):
    """Base of Toeplitz operators over (batch, length, dim), one kernel for each channel.

    A subclass implements `coefficients`, or `forward` where it has no need of them.

    Args:
        dim: Channels.
        causal: Whether the coefficients of negative lags are zero.
    """

    def __init__(self, dim: int, causal: bool = True):
        super().__init__()
        self.dim = dim
        self.causal = causal
        self._cached_kernel: tuple[tuple, int, Tensor] | None = None

    @classmethod
    def unit_defaults(cls, dim: int, bias: bool) -> dict[str, Any]:
        """Default options inside a gated unit: the encoder's width follows the model's, its biases the unit's.

        Args:
            dim: Features of the model.
            bias: Whether the maps of the unit have biases.
        """
        return {"rpe_hidden_size": max(dim // 8, 32), "rpe_bias": bias}

    @staticmethod
    def channels_first(causal: bool, device: torch.device) -> bool:
        """Whether inputs on `device` with the channels first in memory are the fastest."""
        return choose("toeplitz", "auto", device) != "numba"

    def lags(self, length: int) -> Tensor:
        """The lags 0 … length−1, after −(length−1) … −1 if bidirectional: one row of the kernel each."""
        first = 0 if self.causal else 1 - length
        return torch.arange(first, length, device=next(self.parameters()).device)

    def coefficients(self, length: int) -> Tensor:
        """The kernel (num_lags, dim) of sequences of `length`, float32 (float64 if the parameters are)."""
        raise NotImplementedError

    def grid_size(self, length: int) -> int | None:
        """Points that the coefficients are sampled on, where they depend on that; as many for 2^⌈log₂ length⌉."""
        return None

    def kernel(self, length: int) -> Tensor:
        """As `coefficients`, but evaluated once for many lengths while the parameters do not change.

        Decoding asks for one more lag at every token: outside training the kernel of the next power of two is kept, and
        a shorter one is a slice of it.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._cached_kernel = None
            return self.coefficients(length)
        versions = ((p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype) for p in self.parameters())
        key = (self.grid_size(length), *versions)
        if self._cached_kernel is None or self._cached_kernel[0] != key or self._cached_kernel[1] < length:
            longest = 1 << (length - 1).bit_length()
            self._cached_kernel = (key, longest, self.coefficients(longest))
        _, longest, kernel = self._cached_kernel
        return kernel[:length] if self.causal else kernel[longest - length : longest + length - 1]

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


class GatedToeplitzUnit(Mixer):
    """Gated unit around a Toeplitz operator (TNN, arXiv 2305.04749, section 3.4).

    The state is the operator's inputs so far, which is exact at any length: a token costs one pass over them.

    Args:
        dim: Features in and out.
        causal: Whether a position sees only itself and earlier ones.
        expand_ratio: Width of the unit over `dim`.
        activation: φ, by name.
        norm: Norm before the output map, or None.
        bias: Whether all maps have biases.
        initializer_range: Standard deviation of the initial weights and biases of the three maps (0.02 in the published
            models of the Long Range Arena); None: those of `nn.Linear`.
        **operator: Options of the operator.
    """

    state_type = "growing"
    operator_class: ClassVar[type[ToeplitzOperator]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # The options of unit and operator are one list: for `help`, and for configurations that are checked against it.
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "operator_class"):
            return
        parameters = {}
        for source in [base for base in cls.__mro__ if issubclass(base, GatedToeplitzUnit)] + [cls.operator_class]:
            for name, parameter in list(inspect.signature(source.__init__).parameters.items())[1:]:
                if parameter.kind is not parameter.VAR_KEYWORD:
                    parameters.setdefault(name, parameter)
        ordered = sorted(parameters.values(), key=lambda parameter: parameter.kind)
        cls.__signature__ = inspect.Signature(ordered)

    def __init__(
        self,
        dim: int,
        causal: bool = True,
        *,
        expand_ratio: float = 3,
        activation: str = "silu",
        norm: str | None = None,
        bias: bool = True,
        initializer_range: float | None = None,
        **operator: Any,
    ):
        super().__init__(dim, causal)
        width = int(expand_ratio * dim)
        if width < 1:
            raise ValueError(f"`expand_ratio` {expand_ratio} leaves no channel of {dim}")
        channels_first = functools.partial(self.operator_class.channels_first, causal)
        self.gate_proj = OperatorLinear(dim, width, bias, channels_first)
        self.input_proj = OperatorLinear(dim, width, bias, channels_first)
        self.output_proj = nn.Linear(width, dim, bias=bias)
        self.activation = get_activation(activation)
        self.norm = build_norm(norm, width)
        self.operator = self.operator_class(width, causal, **self.operator_class.unit_defaults(dim, bias) | operator)
        if initializer_range is not None and initializer_range <= 0:
            raise ValueError(f"`initializer_range` must be positive or None, got {initializer_range}")
        self.initializer_range = initializer_range
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases of the three maps, where they have initial values of their own."""
        if self.initializer_range is not None:
            for proj in (self.gate_proj, self.input_proj, self.output_proj):
                for parameter in proj.parameters():
                    nn.init.normal_(parameter, std=self.initializer_range)

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gate W_u x, not activated, and the operator's input φ(W_v x), each (batch, length, width)."""
        return self.gate_proj(x), self.activation(self.input_proj(x))

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of rows; padding enters the operator as zeros."""
        gate, v = self.branches(x)
        if mask is not None:
            v = v * mask[:, -x.shape[1] :, None]
        mixed, inputs = self.operator(v, None if state is None else state[0].squeeze(1))
        y = self.output_proj(self.norm(gated(mixed, gate, self.activation)))
        stored = inputs.unsqueeze(1)
        return y, (stored, stored[..., :0]) if self.causal else None


COMBINATIONS = ("product", "sum")


class GatedGridUnit(GatedToeplitzUnit):
    """Gated unit over a grid: one operator along the rows, T_W, and another along the columns, T_H.

    The operators act on different axes and commute, so the sum of both orders is 2·T_H T_W, computed once.

    Args:
        dim: Features in and out.
        causal: Must be False.
        height: Rows of the grid.
        width: Columns of the grid.
        combine: "product" for T_H T_W v + T_W T_H v (as the Long Range Arena models of TNN), or "sum" for
            T_H v + T_W v (as its image models).
        dropout: Probability of dropping entries of what the operators return, before the gate.
        **options: Options of `GatedToeplitzUnit` and of the operators.
    """

    directions = (False,)

    def __init__(
        self,
        dim: int,
        causal: bool = False,
        *,
        height: int,
        width: int,
        combine: str = "product",
        dropout: float = 0.0,
        **options: Any,
    ):
        super().__init__(dim, causal, **options)
        if combine not in COMBINATIONS:
            raise ValueError(unknown_name("combination", combine, COMBINATIONS))
        self.grid: tuple[int, int] = grid_of(height, width)
        self.combine = combine
        self.dropout = nn.Dropout(dropout)
        units = inspect.signature(GatedToeplitzUnit.__init__).parameters
        operator = {name: option for name, option in options.items() if name not in units}
        defaults = self.operator_class.unit_defaults(dim, options.get("bias", True))
        self.column_operator = self.operator_class(self.operator.dim, causal, **defaults | operator)

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of grids (batch, height · width, dim)."""
        assert self.grid is not None
        gate, v = self.branches(x)
        v = v.unflatten(1, self.grid)
        along_rows = self.operator(v.flatten(0, 1))[0].view_as(v)
        columns = (2 * along_rows if self.combine == "product" else v).transpose(1, 2)
        along_columns = self.column_operator(columns.flatten(0, 1))[0].view_as(columns).transpose(1, 2)
        mixed = along_columns if self.combine == "product" else along_rows + along_columns
        mixed = gated(self.dropout(mixed.flatten(1, 2)), gate, self.activation)
        return self.output_proj(self.norm(mixed)), None
