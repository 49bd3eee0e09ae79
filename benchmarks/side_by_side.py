"""What all benchmarks share: interleaved runs, medians, ratios, and a header that says where they were measured."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def time_side_by_side(
    candidates: dict[str, Callable[[], object]], repeats: int, slow: frozenset[str] = frozenset()
) -> dict[str, list[float]]:
    """Seconds of each candidate, run in turn so that a busy moment hits all; the first round is not counted.

    Candidates in `slow` take so long that they are run in the first three rounds only.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, run in candidates.items():
            if name in slow and not 1 <= repeat <= 3:
                continue
            start = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return times


def report(title: str, times: dict[str, list[float]], ours: str, path: Path | None = None, **facts: object) -> None:
    """Print medians, ranges and ratios to `ours`; write them as JSON."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{title}\n  torch {torch.__version__}, {torch.get_num_threads()} threads, {processor()}")
    for name, values in times.items():
        ratio = medians[name] / medians[ours]
        print(
            f"  {name:32s} median {1e3 * medians[name]:9.1f} ms   range {1e3 * min(values):.1f}–{1e3 * max(values):.1f}"
            f"   {ratio:7.2f}× of {ours}"
        )
    for name, value in facts.items():
        print(f"  {name.replace('_', ' ')}: {value}")
    if path is not None:
        result = {"title": title, "processor": processor(), "torch": torch.__version__, "seconds": times, **facts}
        path.write_text(json.dumps(result, indent=1) + "\n")
