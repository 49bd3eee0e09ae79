"""Time and memory of training a mixer against the length: forward and backward, every mixer, both directions.

python benchmarks/growth.py [--lengths 512,1024,...] [--dim 128] [--mixers tno,hgru] [--json FILE]

The lengths of a mixer are timed in turn, in one process, so that a machine that slows down slows all of them. Memory is
measured in a process for each point: what it grew by, at most, over what it held before the first call.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from side_by_side import processor

from subquad.memory import keep_freed_memory
from subquad.mixers import MIXERS, build_mixer

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
OPTIONS: dict[str, dict[str, Any]] = {"fd_tno": {"horizon": max(LENGTHS)}, "ski_tno": {"horizon": max(LENGTHS)}}
"""Grids that do not change within the table."""


def resident_bytes(field: str) -> int:
    """A memory figure of this process, `VmRSS` (now) or `VmHWM` (most so far)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024


def training_step(config: dict[str, Any], causal: bool, dim: int, length: int) -> Callable[[], None]:
    """Forward and backward of a new mixer."""
    torch.manual_seed(0)
    if config["type"].endswith("_2d"):
        height = 1 << (length.bit_length() - 1) // 2
        config = {**config, "height": height, "width": length // height}
    mixer = build_mixer(config, dim, causal).train()
    shared_module = type(mixer).shared_module([config], dim)
    shared = {} if shared_module is None else shared_module()[0]
    x = torch.randn(1, length, dim, requires_grad=True)
    weight = torch.randn(1, length, dim)

    def step() -> None:
        y, _ = mixer(x, **{name: value.detach() for name, value in shared.items()})
        loss = (y * weight).sum()
        for auxiliary in mixer.take_auxiliary_losses().values():
            loss = loss + auxiliary
        loss.backward()

    return step


def measure_seconds(config: dict[str, Any], causal: bool, dim: int, lengths: list[int], repeats: int) -> list[float]:
    """Median seconds of a step at each length, in a process that keeps its memory as the commands do."""
    keep_freed_memory()
    steps = [training_step(config, causal, dim, length) for length in lengths]
    times: list[list[float]] = [[] for _ in lengths]
    for _ in range(repeats + 1):
        for step, of_length in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            of_length.append(time.perf_counter() - start)
    return [statistics.median(of_length[1:]) for of_length in times]


def measure_bytes(config: dict[str, Any], causal: bool, dim: int, length: int) -> int:
    """What the process grows by in two steps, at most."""
    step = training_step(config, causal, dim, length)
    before = resident_bytes("VmRSS")
    step()
    step()
    return resident_bytes("VmHWM") - before


def per_doubling(values: list[float], lengths: list[int]) -> str:
    """How often a figure is that of half the length, beyond 2,048."""
    pairs = zip(lengths, values, values[1:], strict=False)
    return ", ".join(f"{after / max(before, 1e-9):.2f}" for length, before, after in pairs if length >= 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--mixers", help="default: all")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    lengths = [int(length) for length in args.lengths.split(",")]
    names = args.mixers.split(",") if args.mixers else list(MIXERS)
    machine = {"processor": processor(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(f"{machine}, batch 1, dim {args.dim}, float32")
    print("| mixer | " + " | ".join(f"{length:,}" for length in lengths) + " | time per doubling from 2,048 | memory |")
    print("| --- |" + " --- |" * (len(lengths) + 2))
    rows = []
    spawn = multiprocessing.get_context("spawn")
    for name in names:
        for causal in MIXERS[name].directions:
            config = {"type": name, **OPTIONS.get(name, {})}
            with spawn.Pool(1) as pool:
                seconds = pool.apply(measure_seconds, (config, causal, args.dim, lengths, args.repeats))
            sizes = []
            for length in lengths:
                with spawn.Pool(1) as pool:
                    sizes.append(pool.apply(measure_bytes, (config, causal, args.dim, length)))
            rows.append({"mixer": name, "causal": causal, "lengths": lengths, "seconds": seconds, "bytes": sizes})
            cells = [f"{1e3 * t:.1f} ms, {size / 2**20:.0f} MiB" for t, size in zip(seconds, sizes, strict=True)]
            direction = "causal" if causal else "both ways"
            row = [f"`{name}`, {direction}", *cells, per_doubling(seconds, lengths), per_doubling(sizes, lengths)]
            print("| " + " | ".join(row) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
