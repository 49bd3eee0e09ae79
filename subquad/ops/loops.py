"""What loops compiled for the CPU share (numba): compilation, threads, arrays."""

import functools
import itertools
from collections.abc import Callable

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Multiplications and additions may be fused; nothing else is reordered, and NaNs stay NaNs.
FASTMATH = {"contract"}


def compiled(function: Callable) -> Callable:
    """Compile for any length and number of threads, and keep the result on disk where there is a place to write."""
    compile_ = functools.partial(numba.njit, parallel=True, fastmath=FASTMATH)
    try:
        return compile_(cache=True)(function)
    except RuntimeError:
        return compile_()(function)


def run(loop: Callable[..., None], *arguments: list) -> None:
    """Run a compiled loop on as many threads as torch uses; starting numba's threads must not change that number."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    loop(*itertools.chain(*arguments))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def widened(tensor: Tensor, lanes: int) -> np.ndarray:
    """As `array`, with channels (the last axis) of zeros up to the number of a task where there are fewer."""
    return array(tensor if tensor.shape[-1] >= lanes else F.pad(tensor.detach(), (0, lanes - tensor.shape[-1])))


def array(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor on the CPU, copied only where they are not contiguous."""
    return tensor.detach().contiguous().numpy()
