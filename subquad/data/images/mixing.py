"""Images of a batch mixed with one another: Mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899); smoothed targets."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.data.images.geometry import Box


def smoothed(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Probabilities `(batch, num_classes)` float32: 1 − smoothing for the class, and smoothing spread over all."""
    return F.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def random_mix(
    values: Tensor, targets: Tensor, rng: np.random.Generator, *, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Mix a batch with itself in reverse order, by Mixup or by CutMix.

    Args:
        values: `(batch, channels, height, width)` float32.
        targets: Probabilities, `(batch, num_classes)` float32.
        rng: Source of chance for the whole batch.
        mixup: α of the share of an image, Beta(α, α); 0: never Mixup.
        cutmix: Likewise; with both, each has probability ½.

    Raises:
        ValueError: The number of images is odd: one would be mixed with itself.
    """
    if len(values) % 2:
        raise ValueError(
            f"images are mixed in pairs: a batch must hold an even number of them, got {len(values)}; "
            "change training.device_batch_size, or switch off mixup and cutmix"
        )
    cuts = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    share = rng.beta(cutmix, cutmix) if cuts else rng.beta(mixup, mixup)
    if cuts:
        height, width = values.shape[2:]
        return cut_mix(values, targets, random_mix_box(height, width, share, rng))
    return _mean(values, share), _mean(targets, share)


def random_mix_box(height: int, width: int, share: float, rng: np.random.Generator) -> Box:
    """A box whose sides are √(1 − share) of the image's, around a uniform centre, clipped to the image."""
    spans = []
    for side in (height, width):
        length = int(side * math.sqrt(1 - share))
        start = int(rng.random() * side) - length // 2
        spans.append((max(start, 0), min(start + length, side)))
    (top, bottom), (left, right) = spans
    return Box(top, left, bottom - top, right - left)


def cut_mix(values: Tensor, targets: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Put a box of the reversed batch in; targets are mixed by what is left of each image."""
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    mixed = values.clone()
    mixed[:, :, rows, columns] = values.flip(0)[:, :, rows, columns]
    return mixed, _mean(targets, 1 - box.height * box.width / (values.shape[2] * values.shape[3]))


def _mean(values: Tensor, share: float) -> Tensor:
    return torch.lerp(values.flip(0), values, share)
