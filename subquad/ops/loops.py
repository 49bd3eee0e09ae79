"""What loops compiled for the CPU share (numba): compilation, threads, arrays and the logistic function."""

import functools
import itertools
import math
from collections.abc import Callable

import numba
import numpy as np
import torch
from numba.extending import overload
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


def array(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor on the CPU, copied only where they are not contiguous."""
    return tensor.detach().contiguous().numpy()


# float32: e^x = 2^n e^r with |r| ≤ log(2)/2 and six terms of the series, which compilers turn into vector instructions;
# a call of the C library they leave alone. Smaller arguments than the lowest would leave the normal numbers.
_LOWEST = np.float32(-87)
_PER_LOG_2 = np.float32(1 / math.log(2))
_LOG_2_HIGH = np.float32(0.693359375)
_LOG_2_LOW = np.float32(math.log(2) - 0.693359375)
_HALF, _ONE = np.float32(0.5), np.float32(1)
_C3, _C4, _C5, _C6 = (np.float32(1 / math.factorial(k)) for k in range(3, 7))


def exp_of_negative(x: float) -> float:
    """The exponential of x ≤ 0, for compiled loops."""
    return math.exp(x)


@overload(exp_of_negative, jit_options={"fastmath": FASTMATH})
def _(x):
    if x != numba.float32:
        return lambda x: math.exp(x)

    def series(x):
        x = _LOWEST if x < _LOWEST else x
        n = np.int32(x * _PER_LOG_2 - _HALF)
        r = x - np.float32(n) * _LOG_2_HIGH - np.float32(n) * _LOG_2_LOW
        # The bits of 2^n: an exponent, and nothing else.
        return np.int32((n + 127) << 23).view(np.float32) * (
            _ONE + r * (_ONE + r * (_HALF + r * (_C3 + r * (_C4 + r * (_C5 + r * _C6)))))
        )

    return series


# Inlined, or the loop around it is not turned into vector instructions.
@numba.njit(inline="always")
def sigmoids(z, one):
    """σ(z) and σ(−z), each to its last digits; `one` is 1 in the dtype of z."""
    small = exp_of_negative(-abs(z))
    share = one / (one + small)
    return share * (one if z >= 0 else small), share * (small if z >= 0 else one)
