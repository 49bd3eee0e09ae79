"""Learning rates (and β₁) as functions f(k) of the number k of updates done: update k + 1 uses f(k), as in fairseq.

A schedule is chosen in a recipe by `{"type": name, option: value, ...}`; every one is told the number of updates of the
run.
"""

import math
from collections.abc import Callable
from typing import Any

from subquad.registry import build_from

Schedule = Callable[[int], float]


def constant(steps: int, *, peak: float, warmup: int = 0) -> Schedule:
    """Linear warm-up from 0, then `peak`."""
    return lambda k: peak * k / warmup if k < warmup else peak


def inverse_sqrt(steps: int, *, peak: float, warmup: int, initial: float = 0.0) -> Schedule:
    """Linear warm-up from `initial`, then peak·√(warmup / k): fairseq's `inverse_sqrt`."""
    if warmup < 1:
        raise ValueError(f"schedule 'inverse_sqrt' needs a warmup of at least 1 update, got {warmup}")
    return lambda k: initial + k * (peak - initial) / warmup if k < warmup else peak * math.sqrt(warmup / k)


def polynomial(
    steps: int, *, peak: float, warmup: int = 0, initial: float = 0.0, end: float = 0.0, power: float = 1.0
) -> Schedule:
    """Linear warm-up from `initial`, then a polynomial down to `end` at the last update: fairseq's `polynomial_decay`.

    With an `initial` and `power` 1 it is the one-cycle schedule (Smith and Topin, 2017, arXiv 1708.07120).
    """

    def rate(k: int) -> float:
        if k < warmup:
            return initial + k * (peak - initial) / warmup
        return end + (peak - end) * (1 - _progress(k, warmup, steps)) ** power

    return rate


def cosine(steps: int, *, peak: float, warmup: int = 0, end: float = 0.0, trough: int | None = None) -> Schedule:
    """Linear warm-up from 0, then half a cosine wave down to `end` at the last update.

    With a `trough` the wave reaches `end` at that update instead, whatever the length of the run, and goes on from
    there: up to `peak`, and down again, as in the published runs of the Long Range Arena.
    """
    if trough is not None and trough <= warmup:
        raise ValueError(f"schedule 'cosine' needs a trough after the warmup of {warmup} updates, got {trough}")

    def rate(k: int) -> float:
        if k < warmup:
            return peak * k / warmup
        progress = _progress(k, warmup, steps) if trough is None else (k - warmup) / (trough - warmup)
        return end + (peak - end) * (1 + math.cos(math.pi * progress)) / 2

    return rate


def epoch_cosine(
    steps: int, *, peak: float, warmup: int, epoch: int, initial: float = 0.0, end: float = 0.0
) -> Schedule:
    """A cosine in steps of an epoch and one epoch late, as image classifiers are trained (timm's schedule in DeiT).

    After k updates, t = max(⌊k / epoch⌋ − 1, 0) · epoch. The rate goes linearly from `initial` to `peak` while
    t < warmup, then it is end + ½(peak − end)(1 + cos(πt / steps)): half a wave over the whole run, whose beginning is
    the warm-up's.

    Args:
        steps: Updates of the run.
        peak: Where the warm-up ends.
        warmup: Updates of the warm-up.
        epoch: Updates of an epoch.
        initial: Rate of the first two epochs.
        end: Where the wave ends.
    """
    if epoch < 1:
        raise ValueError(f"schedule 'epoch_cosine' needs an epoch of at least 1 update, got {epoch}")

    def rate(k: int) -> float:
        t = max(k // epoch - 1, 0) * epoch
        if t < warmup:
            return initial + (peak - initial) * t / warmup
        return end + (peak - end) * (1 + math.cos(math.pi * min(t / steps, 1.0))) / 2

    return rate


def _progress(k: int, warmup: int, steps: int) -> float:
    """The share of the updates after the warm-up that are done."""
    return 1.0 if k >= steps else (k - warmup) / (steps - warmup)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "inverse_sqrt": inverse_sqrt,
    "polynomial": polynomial,
    "cosine": cosine,
    "epoch_cosine": epoch_cosine,
}


def build_schedule(config: dict[str, Any], steps: int) -> Schedule:
    """Build a schedule from `{"type": name, option: value, ...}` for a run of `steps` updates.

    Raises:
        ValueError: If the type or an option is unknown (the message names the nearest valid one), missing or no number.
    """
    for name, value in config.items():
        if name != "type" and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise ValueError(f"schedule option {name!r} must be a number that is not negative, got {value!r}")
    return build_from("schedule", SCHEDULES, config, steps)
