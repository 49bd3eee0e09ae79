"""What the names and shapes of tensors tell: widths, numbers of layers, factors between widths."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from subquad.data import DataError

Tensors = Mapping[str, Tensor]
Config = dict[str, Any]


def shape_of(tensors: Tensors, name: str, axes: int = 2) -> tuple[int, ...]:
    """The shape of a tensor.

    Raises:
        DataError: It is missing, or has another number of axes, or an axis without entries.
    """
    if name not in tensors:
        raise DataError(f"the checkpoint lacks {name}, which says how wide its model is")
    shape = tuple(tensors[name].shape)
    if len(shape) != axes or not all(shape):
        raise DataError(f"{name} has shape {shape}, expected {axes} axes with entries")
    return shape


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, in their type too."""
    return a.dtype == b.dtype and torch.equal(a, b)


def numbers_behind(tensors: Tensors, prefix: str) -> set[str]:
    """The different numbers behind a prefix."""
    return {match[1] for match in (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in tensors) if match}


def count_behind(tensors: Tensors, prefix: str) -> int:
    """How many different numbers stand behind a prefix."""
    return len(numbers_behind(tensors, prefix))


def ratio_of(said: Any, width: int, dim: int, unit: int = 1) -> float:
    """The factor between two widths: what is said where it gives this width, which is rounded down."""
    if isinstance(said, int | float) and 0 < said <= width and int(said * dim) // unit * unit == width:
        return said
    return math.nextafter(width / dim, math.inf) if int(width / dim * dim) != width else width / dim
