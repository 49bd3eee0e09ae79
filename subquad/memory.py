"""Memory of a process that trains or evaluates on the CPU."""

import ctypes
import os
import sys

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1
"""Names of the options in glibc's malloc.h: M_MMAP_MAX and M_TRIM_THRESHOLD."""


def keep_freed_memory() -> bool:
    """Let the C library keep memory that was freed, for the next tensor, instead of giving it back to the system.

    A training step frees and asks for the same tensors again and again; memory that comes anew from the system is
    cleared page by page first. What was given out once stays with the process until it ends. Nothing is changed where
    the user has chosen otherwise (`MALLOC_…`, `GLIBC_TUNABLES`), nor where the C library is not glibc.

    Returns:
        Whether it was changed.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if chosen or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # No block is a mapping of its own, and the end of the heap is not cut off (−1: never).
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
