"""The precision that ops compute in."""

import torch
from torch import Tensor


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype of sums, states and transforms: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
