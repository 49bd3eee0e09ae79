"""Images of one part of a data set, in memory or in files, with their classes."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from subquad.data.errors import DataError
from subquad.data.pillow import pillow

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")


class ImageSplit(Dataset[Tensor], ABC):
    """Images; `split[index]` is one, `(channels, height, width)` uint8.

    Args:
        labels: The class of each, `(num_images,)` int64.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitem__(self, index: int) -> Tensor: ...

    @abstractmethod
    def subset(self, indices: np.ndarray) -> "ImageSplit":
        """Some of the images, in this order."""

    @abstractmethod
    def identity(self) -> Iterable[np.ndarray]:
        """What tells these images from others."""


class ImageArrays(ImageSplit):
    """Images in memory, all of one size.

    Args:
        images: `(num_images, channels, height, width)` uint8.
        labels: `(num_images,)` int64.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        super().__init__(labels)
        self.images = images

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(self.images[index])

    def subset(self, indices: np.ndarray) -> "ImageArrays":
        """Some of the images, in this order."""
        return ImageArrays(self.images[indices], self.labels[indices])

    def identity(self) -> Iterable[np.ndarray]:
        """Pixels and classes."""
        return self.images, self.labels


class ImageFiles(ImageSplit):
    """Images in files, of any size, decoded to red, green and blue when they are asked for.

    Args:
        root: The folder that names begin at.
        names: Path of each file from there, as the system writes it, `(num_images,)` of bytes.
        sizes: Bytes of each file, `(num_images,)` int64.
        labels: `(num_images,)` int64.

    Raises:
        ImportError: Pillow is not installed.
    """

    def __init__(self, root: Path, names: np.ndarray, sizes: np.ndarray, labels: np.ndarray) -> None:
        super().__init__(labels)
        pillow()  # its lack is found before long work
        self.root, self.names, self.sizes = root, names, sizes

    def __getitem__(self, index: int) -> Tensor:
        return decode_image(self.root / os.fsdecode(self.names[index]))

    def subset(self, indices: np.ndarray) -> "ImageFiles":
        """Some of the images, in this order."""
        return ImageFiles(self.root, self.names[indices], self.sizes[indices], self.labels[indices])

    def identity(self) -> Iterable[np.ndarray]:
        """Names, sizes of the files, and classes; pixels would have to be read."""
        return self.names, self.sizes, self.labels


def decode_image(path: Path) -> Tensor:
    """Read an image as red, green and blue: `(3, height, width)` uint8, in memory pixel by pixel.

    Raises:
        ImportError: Pillow is not installed.
        DataError: It cannot be read, or its values have more than 8 bits; the message names the file.
    """
    image_module = pillow()
    try:
        with image_module.open(path, formats=FORMATS) as image:
            mode, pixels = image.mode, np.array(image.convert("RGB"))
    except Exception as error:  # damaged files raise almost anything
        raise DataError(f"{path}: not a readable image ({type(error).__name__}: {error})") from None
    if mode.startswith(("I", "F")):  # Pillow cuts off what is above 255
        raise DataError(f"{path}: grey values of more than 8 bits (mode {mode}); convert the file to 8 bits")
    return torch.from_numpy(pixels).permute(2, 0, 1)


@dataclass(frozen=True)
class Release:
    """A data set as its files hold it.

    Args:
        title: What kind of files these are.
        classes: Names of the classes.
        parts: Images by the names train, valid, test; train is always there.
        mean: Of each channel, of values in [0, 1].
        std: Standard deviation of each channel.
    """

    title: str
    classes: Sequence[str]
    parts: Mapping[str, ImageSplit]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def fingerprint(splits: Iterable[ImageSplit], *others: Any) -> str:
    """Equal for equal images and classes, wherever their files are."""
    digest = hashlib.sha256(repr(others).encode())
    for split in splits:
        for array in split.identity():
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
