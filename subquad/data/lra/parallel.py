"""Work shared by processes, with results in the order of the work."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from subquad.data.errors import DataError

T = TypeVar("T")


def map_in_order(function: Callable[[Any], T], items: Iterable[Any], num_workers: int | None = None) -> Iterator[T]:
    """`map(function, items)` in several processes; memory stays bounded, and `items` may be endless.

    Args:
        function: What is done with an item; other processes import it, so it stands at the top of a module.
        items: The work.
        num_workers: Number of processes; None: one for each core, 1: this process alone.

    Raises:
        DataError: A process ended early.
    """
    num_workers = num_workers or os.cpu_count() or 1
    if num_workers == 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"))
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a process ended early (out of memory, or a script without `if __name__ == '__main__':`); "
            "one worker needs no processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
