"""Activation functions by name, and the product with an activated gate."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.ops import gated_product
from subquad.registry import unknown_name


def _identity(x: Tensor) -> Tensor:
    return x


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _one_plus_elu(x: Tensor) -> Tensor:
    return 1 + F.elu(x)


def _two_plus_elu(x: Tensor) -> Tensor:
    return 2 + F.elu(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": _identity,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "1+elu": _one_plus_elu,
    "2+elu": _two_plus_elu,
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
}


ELU_OFFSETS: dict[Callable[[Tensor], Tensor], float] = {F.elu: 0.0, _one_plus_elu: 1.0, _two_plus_elu: 2.0}
"""The c of the activations c + elu(x)."""


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The elementwise function called `name`.

    Raises:
        ValueError: If there is no such activation; the message names the nearest one.
    """
    if name not in ACTIVATIONS:
        raise ValueError(unknown_name("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]


def gated(x: Tensor, gate: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The product x ⊙ φ(gate) of two tensors (..., dim), φ being what `activation` returned."""
    return gated_product(x, gate) if activation is F.silu else x * activation(gate)
