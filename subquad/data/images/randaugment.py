"""RandAugment (Cubuk et al., 2020, arXiv 1909.13719) with strengths that all grow with the magnitude.

The fifteen operations and their strengths are those of the published runs (`rand-m9-mstd0.5-inc1`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from subquad.data.images import operations
from subquad.data.images.augmentation import RandAugment

MAX_MAGNITUDE = 10
PROBABILITY = 0.5


class Operation(NamedTuple):
    """An operation, and how strong it is.

    Args:
        apply: From images, strengths where there are any, and for movements the colour of the outside, to images.
        strength: From magnitudes in [0, 1] and random signs, `(batch,)` float64, to strengths; None: there are none.
        moves: Whether it moves pixels.
    """

    apply: Callable[..., Tensor]
    strength: Callable[[Tensor, Tensor], Tensor] | None = None
    moves: bool = False


def _whole(numbers: Tensor) -> Tensor:
    # 0.9 · 110 is 99, whatever float64 makes of it.
    return (numbers + 1e-9).floor().long()


def _factor(m: Tensor, sign: Tensor) -> Tensor:
    return 1 + sign * 0.9 * m


OPERATIONS = {
    "AutoContrast": Operation(operations.autocontrast),
    "Equalize": Operation(operations.equalize),
    "Invert": Operation(operations.invert),
    "Rotate": Operation(operations.rotate, lambda m, sign: sign * 30 * m, moves=True),
    "Posterize": Operation(operations.posterize, lambda m, sign: 4 - _whole(4 * m)),
    "Solarize": Operation(operations.solarize, lambda m, sign: 256 - _whole(256 * m)),
    "SolarizeAdd": Operation(operations.solarize_add, lambda m, sign: _whole(110 * m)),
    "Color": Operation(operations.color, _factor),
    "Contrast": Operation(operations.contrast, _factor),
    "Brightness": Operation(operations.brightness, _factor),
    "Sharpness": Operation(operations.sharpness, _factor),
    "ShearX": Operation(operations.shear_x, lambda m, sign: sign * 0.3 * m, moves=True),
    "ShearY": Operation(operations.shear_y, lambda m, sign: sign * 0.3 * m, moves=True),
    "TranslateX": Operation(operations.translate_x, lambda m, sign: sign * 0.45 * m, moves=True),
    "TranslateY": Operation(operations.translate_y, lambda m, sign: sign * 0.45 * m, moves=True),
}
"""By the names that the paper has."""


class Draw(NamedTuple):
    """What is drawn for a batch; all are `(batch, operations)`.

    Args:
        operations: Places in `OPERATIONS`, int64.
        applied: Whether an operation takes place, bool.
        magnitudes: In [0, 1], float64.
        signs: −1 or 1, float64.
    """

    operations: Tensor
    applied: Tensor
    magnitudes: Tensor
    signs: Tensor

    @classmethod
    def random(cls, rngs: Sequence[np.random.Generator], config: RandAugment) -> "Draw":
        """One source of chance for each image."""
        uniform = torch.from_numpy(np.stack([rng.random((3, config.operations)) for rng in rngs], axis=1))
        normal = torch.from_numpy(np.stack([rng.standard_normal(config.operations) for rng in rngs]))
        magnitudes = (config.magnitude + config.deviation * normal).clamp(0, MAX_MAGNITUDE) / MAX_MAGNITUDE
        return cls(
            (uniform[0] * len(OPERATIONS)).long(),
            uniform[1] < PROBABILITY,
            magnitudes,
            torch.where(uniform[2] < 0.5, -1.0, 1.0).double(),
        )


def rand_augment(images: Tensor, rngs: Sequence[np.random.Generator], config: RandAugment, fill: Tensor) -> Tensor:
    """Apply random operations, one after the other.

    Args:
        images: `(batch, channels, height, width)` uint8.
        rngs: One source of chance for each image.
        config: How many, and how strong.
        fill: The colour of what comes from outside the image, `(channels,)` uint8.

    Returns:
        As `images`.
    """
    return apply_operations(images, Draw.random(rngs, config), fill)


def apply_operations(images: Tensor, draw: Draw, fill: Tensor) -> Tensor:
    """Apply what was drawn; images that get the same operation get it together."""
    images = images.clone()
    for drawn, applied, magnitudes, signs in zip(*(entries.unbind(1) for entries in draw), strict=True):
        for number, operation in enumerate(OPERATIONS.values()):
            chosen = (applied & (drawn == number)).nonzero().squeeze(1)
            if len(chosen):
                arguments: list[Any] = [images[chosen]]
                if operation.strength is not None:
                    arguments.append(operation.strength(magnitudes[chosen], signs[chosen]))
                if operation.moves:
                    arguments.append(fill)
                images[chosen] = operation.apply(*arguments)
    return images
