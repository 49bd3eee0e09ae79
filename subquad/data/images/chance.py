"""Random numbers that depend on what they are for alone: the same after a resume, and for any number of workers."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are for."""

    CROP = 0
    CHANGES = 1
    MIXING = 2


def random_numbers(seed: int, epoch: int, index: int, purpose: Purpose) -> np.random.Generator:
    """A source of random numbers that is independent of all others (Philox: the arguments are key and counter)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, purpose, index]))
