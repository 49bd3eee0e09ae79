"""Which part of an image is seen, and at which size."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
PADDING = 4
# Evaluation resizes the shorter side to 256 for a crop of 224.
RESIZED, CROPPED = 256, 224
LONG = (1 / 16, 16.0)


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float] = AREA,
    ratio: tuple[float, float] = RATIO,
) -> Box | None:
    """A part of random area, shape and place (Szegedy et al., 2015, arXiv 1409.4842).

    Args:
        height: Of the image.
        width: Of the image.
        rng: Source of chance.
        area: Bounds of its share of the image, which is uniform.
        ratio: Bounds of width over height, whose logarithm is uniform.

    Returns:
        None if in ten attempts it was larger than the image.
    """
    for _ in range(ATTEMPTS):
        pixels = height * width * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(pixels / shape)), round(math.sqrt(pixels * shape))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = rng.random() * (height - box_height + 1), rng.random() * (width - box_width + 1)
            return Box(int(top), int(left), box_height, box_width)
    return None


def central_box(height: int, width: int, ratio: tuple[float, float] = RATIO) -> Box:
    """The largest part in the middle of an image whose width over height is within bounds."""
    box_width = min(width, round(height * ratio[1]))
    box_height = min(height, round(width / ratio[0]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize `(channels, height, width)` uint8: bicubic, antialiased."""
    return F.interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]


def random_resized_crop(image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """A random part of an image `(channels, height, width)` uint8, resized: `(channels, size, size)`."""
    height, width = image.shape[1:]
    box = random_box(height, width, rng) or central_box(height, width)
    part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    return resize(part, size, size)


def resized_centre(image: Tensor, size: int) -> Tensor:
    """The middle of an image `(channels, height, width)` uint8, as evaluation sees it: `(channels, size, size)`.

    The shorter side becomes ⌊256/224 · size⌋ pixels; a square of `size` in the middle is kept.
    """
    # Of a very long image the ends are cut off before it is enlarged, not after: they could fill the memory.
    box = central_box(image.shape[1], image.shape[2], LONG)
    image = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    height, width = image.shape[1:]
    shorter = size * RESIZED // CROPPED
    height, width = (side * shorter // min(height, width) for side in (height, width))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resize(image, height, width)[:, top : top + size, left : left + size]


def padded_crop(images: Tensor, corners: Tensor) -> Tensor:
    """Cut parts of their own size out of images with 4 black pixels around them.

    Args:
        images: `(batch, channels, height, width)`.
        corners: Top and left of each part, 0 … 8: `(batch, 2)` int64; 4 and 4 is the image itself.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, [PADDING] * 4)
    rows = (corners[:, :1] + torch.arange(height))[:, None, :, None]
    columns = (corners[:, 1:] + torch.arange(width))[:, None, None, :]
    batch = torch.arange(images.shape[0])[:, None, None, None]
    return padded[batch, torch.arange(images.shape[1])[:, None, None], rows, columns]


def random_padded_crop(images: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
    """`padded_crop` at random places, one source of chance for each image."""
    corners = np.array([rng.random(2) for rng in rngs]) * (2 * PADDING + 1)
    return padded_crop(images, torch.from_numpy(corners).long())


def random_flip(images: Tensor, rngs: Sequence[np.random.Generator], probability: float) -> Tensor:
    """Mirror some of the images `(batch, channels, height, width)`, left to right."""
    chosen = torch.tensor([rng.random() < probability for rng in rngs])
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)
