"""CIFAR-10 as the image task of the Long Range Arena: `subquad.data.images.cifar` reads the files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from subquad.data.images.cifar import CIFAR10, read_part


@dataclass(frozen=True, eq=False)
class CifarImages:
    """The images of one part.

    Args:
        images: `(num_images, 32, 32, 3)` uint8, red, green, blue.
        labels: `(num_images,)` int64.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: int) -> np.ndarray:
        """An image, `(32, 32, 3)` uint8."""
        return self.images[index]


def read_cifar10(root: str | Path, part: str, *, strict: bool = False) -> CifarImages:
    """Read the images of a part, `train` or `test`.

    Args:
        root: Where the data is, in `ROOT[/cifar | /cifar10]/cifar-10-batches-py`.
        part: train (five batches) or test.
        strict: A whole batch that is not the published one is an error; otherwise a warning.

    Raises:
        DataNotFoundError: The folder or a batch is missing.
        DataError: A batch is not what the data set has.
    """
    split = read_part(Path(root), CIFAR10, part, strict=strict)
    return CifarImages(np.ascontiguousarray(split.images.transpose(0, 2, 3, 1)), split.labels)
