"""A small data set of images: discs and squares in two colours, somewhere, on noise."""

from pathlib import Path

import numpy as np
import pytest

CLASSES = ("blue disc", "blue square", "red disc", "red square")
SIZE = 32


def draw_shape(label: int, rng: np.random.Generator) -> np.ndarray:
    """An image of a class, (32, 32, 3) uint8."""
    image = rng.integers(60, size=(SIZE, SIZE, 3))
    radius = int(rng.integers(7, 11))
    row, column = rng.integers(radius, SIZE - radius, size=2)
    y, x = np.mgrid[:SIZE, :SIZE]
    is_disc = label % 2 == 0
    distance = np.hypot(y - row, x - column) if is_disc else np.maximum(abs(y - row), abs(x - column))
    image[distance < radius, 2 if label < 2 else 0] = 200
    return image.astype(np.uint8)


def write_shapes(root: Path, train: int = 96, test: int = 40) -> Path:
    """A folder for each class, and a part for training and one for validation."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", test)):
        for i in range(count):
            label = i % len(CLASSES)
            path = root / part / CLASSES[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(draw_shape(label, rng)).save(path)
    return root
