"""Time and memory of training a mixer against the length: forward and backward, every mixer, both directions.

python benchmarks/growth.py [--lengths 512,1024,...] [--dim 128] [--mixers tno,hgru] [--json FILE]

Each point is measured in a process of its own, so that the memory is that of the point: what the process grew by, at
most, over what it held before the first call.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from side_by_side import processor

from subquad.mixers import MIXERS, build_mixer

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
OPTIONS: dict[str, dict[str, Any]] = {"fd_tno": {"horizon": max(LENGTHS)}, "ski_tno": {"horizon": max(LENGTHS)}}
"""Grids that do not change within the table."""


def resident_bytes(field: str) -> int:
    """A memory figure of this process, `VmRSS` (now) or `VmHWM` (most so far)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024


def measure(config: dict[str, Any], causal: bool, dim: int, length: int, repeats: int) -> dict[str, float]:
    """Median seconds of forward and backward, and bytes."""
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

    before = resident_bytes("VmRSS")
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times[1:]), "bytes": resident_bytes("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
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
            points = []
            for length in lengths:
                with spawn.Pool(1) as pool:
                    points.append(pool.apply(measure, (config, causal, args.dim, length, args.repeats)))
            rows.append({"mixer": name, "causal": causal, "lengths": lengths, "points": points})
            ratios = [
                f"{b['seconds'] / a['seconds']:.2f}"
                for length, a, b in zip(lengths, points, points[1:], strict=False)
                if length >= 2048
            ]
            growth = [
                f"{b['bytes'] / max(a['bytes'], 1):.2f}"
                for length, a, b in zip(lengths, points, points[1:], strict=False)
                if length >= 2048
            ]
            cells = [f"{1e3 * p['seconds']:.1f} ms, {p['bytes'] / 2**20:.0f} MiB" for p in points]
            direction = "causal" if causal else "both ways"
            row = [f"`{name}`, {direction}", *cells, ", ".join(ratios), ", ".join(growth)]
            print("| " + " | ".join(row) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
