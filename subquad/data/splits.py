"""Which examples are for training, validation and test where the files do not say."""

from collections.abc import Sequence

import numpy as np
import torch

from subquad.data.errors import DataError

SEED = 42


def random_split(counts: Sequence[int], seed: int = SEED) -> list[np.ndarray]:
    """One random order of sum(counts) indices, cut into parts.

    Args:
        counts: Size of each part.
        seed: Of the order, which is torch's; 42 in the published runs.

    Returns:
        For each part its indices, int64.

    Raises:
        DataError: A part has no example.
        ValueError: The seed is no whole number, or too large.

    Example:
        >>> train, valid = random_split([45_000, 5_000])
        >>> train[:5], valid[:5]
        (array([37542, 44491,   216, 43688, 41558]), array([17408, 40845,  3378, 22188, 44921]))
    """
    if min(counts) < 1:
        raise DataError(f"{sum(counts)} examples are too few to be divided: the parts would have {list(counts)}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"the seed must be a whole number from 0 to 2⁶³ − 1, got {seed!r}")
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(seed)).numpy()
    return np.split(order, np.cumsum(counts)[:-1])
