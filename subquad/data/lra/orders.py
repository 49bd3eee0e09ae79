"""Fixed orders of an image's pixels, in place of row after row: what a model of sequences sees as its neighbours.

Each function gives the places `(height · width,)` int64 of the pixels in the order in which they are read.
"""

from collections.abc import Callable

import numpy as np


def bit_reversal(side: int) -> np.ndarray:
    """Pixel i stands where the number with the reversed bits of i says: no neighbour stays one.

    Raises:
        ValueError: `side` is no power of two.
    """
    _check(side)
    places = np.zeros(1, dtype=np.int64)
    while len(places) < side * side:
        places = np.concatenate([2 * places, 2 * places + 1])
    return places


def snake(side: int) -> np.ndarray:
    """Row after row, every other one backwards: each pixel is beside the one before."""
    places = np.arange(side * side).reshape(side, side)
    places[1::2] = places[1::2, ::-1]
    return places.reshape(-1)


def hilbert(side: int) -> np.ndarray:
    """Hilbert's curve (1891): each pixel is beside the one before, and near in the order is near in the image.

    Raises:
        ValueError: `side` is no power of two.
    """
    _check(side)
    rows = columns = np.zeros(1, dtype=np.int64)
    size = 1
    while size < side:
        # Four copies of the curve: transposed, as it is, as it is below it, and transposed at the other diagonal.
        last = size - 1
        rows, columns = (
            np.concatenate([columns, rows, rows + size, 2 * size - 1 - columns]),
            np.concatenate([rows, columns + size, columns + size, last - rows]),
        )
        size *= 2
    return rows * side + columns


def _check(side: int) -> None:
    if side < 1 or side & (side - 1):
        raise ValueError(f"this order needs images with a side that is a power of two, got {side}")


ORDERS: dict[str, Callable[[int], np.ndarray]] = {"bit_reversal": bit_reversal, "snake": snake, "hilbert": hilbert}
