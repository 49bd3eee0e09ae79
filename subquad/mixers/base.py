"""The protocol of token mixers, and their registry.

A causal mixer is a function `y, state = mixer(x, state)`, and cutting a sequence anywhere changes nothing:

    y_a, s = mixer(x[:, :k]);   y_b, _ = mixer(x[:, k:], s)      equals      mixer(x)      for every k

Generation, chunked prefill, truncated back-propagation and endless text are this law. A bidirectional mixer has no
state.
"""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from subquad.registry import build_from

State = tuple[Tensor, ...]


class Mixer(nn.Module):
    """Base of all token mixers. A subclass implements `mix`, and `mix_packed` where it can do better than padding.

    Args:
        dim: Features in and out.
        causal: Whether a position sees only itself and earlier ones.
    """

    state_type: ClassVar[str]
    """What a causal mixer's state is: "recurrent", tensors (batch, ...) of fixed size, or "growing", two tensors
    (batch, heads, stored, features) with an entry for each token so far."""
    directions: ClassVar[tuple[bool, ...]] = (True, False)
    """The values of `causal` that this kind has."""
    auxiliary_losses: ClassVar[tuple[str, ...]] = ()
    """Names of the losses that `mix` adds in training, see `add_auxiliary_loss`."""
    grid: tuple[int, int] | None = None
    """Height and width of the grid that a 2-D mixer works on; its sequences are grids, row after row."""

    def __init__(self, dim: int, causal: bool = True):
        super().__init__()
        if causal not in self.directions:
            missing, other = ("causal", "bidirectional") if causal else ("bidirectional", "causal")
            raise ValueError(f"{type(self).__name__} has no {missing} form: use it in a {other} model")
        self.dim = dim
        self.causal = causal
        self._auxiliary: dict[str, Tensor] = {}

    @classmethod
    def shared_module(cls, configs: list[dict[str, Any]], dim: int) -> nn.Module | None:
        """Parameters that all layers of this kind share, or None.

        Args:
            configs: The options of each layer of this kind, in order.
            dim: Features of the model.

        Returns:
            A module whose `forward()` returns one dictionary of keyword arguments of `mix` for each layer.
        """
        return None

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        **shared: Tensor,
    ) -> tuple[Tensor, State | None]:
        """Mix positions.

        Args:
            x: (batch, length, dim).
            state: What an earlier call returned, to continue after it; None at the start of a sequence.
            mask: (batch, length) bool, True for real tokens; padding changes no real position. With a state it may be
                (batch, stored + length), and must be where stored tokens of a growing state are padding.
            cu_seqlens: (num_sequences + 1,) int, boundaries of sequences packed into one row (batch 1): each behaves as
                if it stood alone.
            **shared: This layer's part of the shared module.

        Returns:
            y (batch, length, dim), and the state after the last position (None if bidirectional or packed).

        Raises:
            ValueError: If shapes do not fit, or arguments exclude each other.
        """
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"`x` must be (batch, length, {self.dim}), got {tuple(x.shape)}")
        if x.shape[1] == 0:
            raise ValueError("`x` has length 0: a mixer needs at least one position")
        if self.grid is not None and cu_seqlens is None:
            height, width = self.grid
            if x.shape[1] != height * width:
                raise ValueError(f"`x` must be a grid of {height} × {width} positions, got {x.shape[1]}")
            if mask is not None and not mask.all():
                raise ValueError("a grid holds no padding: every entry of `mask` must be True")
            mask = None
        if state is not None and not self.causal:
            raise ValueError("a bidirectional mixer has no state: pass the whole sequence at once")
        if cu_seqlens is None:
            if mask is not None and (mask.shape[0] != x.shape[0] or mask.shape[1] < x.shape[1]):
                raise ValueError(f"`mask` must be {tuple(x.shape[:2])} or longer, got {tuple(mask.shape)}")
            return self.mix(x, state, mask, **shared)
        if x.shape[0] != 1:
            raise ValueError(f"`cu_seqlens` needs batch size 1, got {x.shape[0]}: flatten the batch first")
        if state is not None or mask is not None:
            raise ValueError(
                "`cu_seqlens` excludes `state` and `mask`: packed sequences start anew and hold no padding"
            )
        return self.mix_packed(x, cu_seqlens, **shared), None

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None, **shared: Tensor) -> tuple[Tensor, State | None]:
        """Mix a batch of rows; arguments as in `forward`, already validated."""
        raise NotImplementedError

    def mix_packed(self, x: Tensor, cu_seqlens: Tensor, **shared: Tensor) -> Tensor:
        """Mix sequences packed into one row (1, length, dim): here as a padded batch, one row for each sequence."""
        lengths = cu_seqlens.diff()
        mask = torch.arange(int(lengths.max()), device=x.device) < lengths.unsqueeze(-1)
        padded = x.new_zeros(*mask.shape, x.shape[-1])
        padded[mask] = x[0]
        y, _ = self.mix(padded, None, mask, **shared)
        return y[mask].unsqueeze(0)

    def add_auxiliary_loss(self, name: str, loss: Tensor) -> None:
        """Hand a loss to whoever trains the model; `mix` calls it in training mode.

        A model returns the mean over its layers, and adds it to the loss of the task, times the weight that its
        configuration gives to `name`.

        Args:
            name: One of `auxiliary_losses`.
            loss: Scalar.
        """
        self._auxiliary[name] = loss

    def take_auxiliary_losses(self) -> dict[str, Tensor]:
        """What the last call added, by name; empty outside training. A second call returns nothing."""
        taken, self._auxiliary = self._auxiliary, {}
        return taken


MIXERS: dict[str, type[Mixer]] = {}
MixerClass = TypeVar("MixerClass", bound=type[Mixer])


def register_mixer(name: str) -> Callable[[MixerClass], MixerClass]:
    """Class decorator: make a mixer available under `name`, in every model and under every law of the tests."""

    def register(cls: MixerClass) -> MixerClass:
        if name in MIXERS:
            raise ValueError(f"mixer {name!r} is registered already, as {MIXERS[name].__name__}")
        MIXERS[name] = cls
        return cls

    return register


def build_mixer(config: dict[str, Any], dim: int, causal: bool = True) -> Mixer:
    """Build a mixer from `{"type": name, option: value, ...}`.

    Args:
        config: The registered name under "type"; the other entries are keyword arguments of the class.
        dim: Features in and out.
        causal: Whether a position sees only itself and earlier ones.

    Raises:
        ValueError: If the type or an option is unknown (the message names the nearest valid one) or does not fit.
    """
    return build_from("mixer", MIXERS, config, dim, causal=causal)


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a grid.

    Raises:
        ValueError: If one is not positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a grid needs positive `height` and `width`, got {height} × {width}")
    return height, width
