"""Random erasing (Zhong et al., 2020, arXiv 1708.04896)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from subquad.data.images.geometry import random_box

AREA = (0.02, 1 / 3)
RATIO = (0.3, 1 / 0.3)


def random_erase(values: Tensor, rngs: Sequence[np.random.Generator], probability: float) -> None:
    """Replace a rectangle of some of the images by noise, in place.

    Its share of the image is uniform in [0.02, ⅓], the logarithm of width over height uniform between 0.3 and its
    inverse; each value in it is drawn from N(0, 1).

    Args:
        values: Normalised images, `(batch, channels, height, width)` float32.
        rngs: One source of chance for each image.
        probability: That an image is changed.
    """
    channels, height, width = values.shape[1:]
    for image, rng in zip(values, rngs, strict=True):
        if rng.random() < probability and (box := random_box(height, width, rng, AREA, RATIO)):
            noise = rng.standard_normal((channels, box.height, box.width), dtype=np.float32)
            image[:, box.top : box.top + box.height, box.left : box.left + box.width] = torch.from_numpy(noise)
