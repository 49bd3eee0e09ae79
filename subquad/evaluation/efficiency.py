"""Speed and memory of a model: training steps, and generation against the length of the context.

Figures of different models may be compared when they were measured on one machine with the same shapes; `measure_run`
gives each run a fresh process, so that neither memory nor caches of an earlier model count. Times are those of the
fastest step: whatever is above comes from the machine's other work, and the load is recorded.
"""

import math
import multiprocessing
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from subquad.evaluation.extrapolation import max_positions
from subquad.evaluation.runs import Run
from subquad.layers.patches import as_pair

CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
DECODE_STEPS = 24
WARMUP_STEPS = 4
TRAINING_STEPS = 5


@dataclass(frozen=True)
class TrainingSpeed:
    """Cost of training steps (forward, backward, AdamW) of one shape.

    Args:
        batch_size: Sequences, pairs of them or images in a step.
        length: Tokens in a sequence.
        tokens_per_second: From the fastest step; a pair has those of both sequences.
        peak_memory_bytes: Most memory in use at once: what torch allocated on a GPU; on a CPU what the process grew by
            since before the model was there. None where the system does not tell.
    """

    batch_size: int
    length: int
    tokens_per_second: float
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class GenerationSpeed:
    """Cost of generating after a context, batch 1.

    Args:
        context: Tokens before the first new one.
        prefill_ms: Time to read the context.
        ms_per_token: Time of a new token, the fastest of several.
    """

    context: int
    prefill_ms: float
    ms_per_token: float


@dataclass(frozen=True)
class Efficiency:
    """All that is measured of a run.

    Args:
        device: Where, in words.
        load: How many processes wanted to run when it began (the average of a minute); None where the system does not
            tell.
        training: Cost of training steps.
        generation: Cost of generation for each context; empty for models that do not generate.
    """

    device: str
    load: float | None
    training: TrainingSpeed
    generation: list[GenerationSpeed]


def training_speed(model: Any, *, batch_size: int = 8, length: int = 512, steps: int = TRAINING_STEPS) -> TrainingSpeed:
    """Time training steps on random tokens. The weights are changed.

    On a CPU the memory is that of the process: call it in a fresh one, as `measure_run` does.

    Args:
        model: A language model of transformers, or a classifier of ours.
        batch_size: Sequences, pairs of them or images in a step.
        length: Tokens in a sequence, or fewer where the model has no more positions; of an image, a grid or a series of
            one length it is as many as the model takes.
        steps: Steps that are timed, after one that is not.
    """
    device = model.device
    length = _possible_length(model, length)
    inputs = _random_inputs(model, batch_size, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    memory_before = _resident_bytes("VmRSS")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model.train()
    times = []
    for _ in range(steps + 1):
        start = _now(device)
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(_now(device) - start)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = _resident_bytes("VmHWM")
        if peak is not None and memory_before is not None:
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            peak = peak - memory_before + weights
    texts = 2 if getattr(model.config, "is_of_pairs", False) else 1
    return TrainingSpeed(batch_size, length, texts * batch_size * length / min(times[1:]), peak)


def _random_inputs(model: Any, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """The arguments of a training step, with labels."""
    config, device = model.config, model.device
    name = type(model).__name__
    if not name.endswith("Classification"):
        tokens = torch.randint(config.vocab_size, (batch_size, length), device=device)
        return {"input_ids": tokens, "labels": tokens}
    labels = torch.zeros(batch_size, dtype=torch.long, device=device)
    if name.endswith("ForImageClassification"):
        size = as_pair(config.image_size)
        return {"pixel_values": torch.rand(batch_size, config.num_channels, *size, device=device), "labels": labels}
    if config.input_features is not None:
        return {"input_values": torch.rand(batch_size, length, config.input_features, device=device), "labels": labels}
    shape = (batch_size, 2, length) if config.is_of_pairs else (batch_size, length)
    return {"input_ids": torch.randint(config.vocab_size, shape, device=device), "labels": labels}


def _possible_length(model: Any, length: int) -> int:
    """The patches of an image, the positions of a grid or of a series of one length; else at most `length`."""
    for module in model.modules():
        if getattr(module, "grid", None) is not None:
            return math.prod(module.grid)
        if hasattr(module, "only_length"):
            return module.only_length
    return min(length, max_positions(model) or length)


@torch.inference_mode()
def generation_speed(
    model: Any, contexts: Sequence[int] = CONTEXTS, *, steps: int = DECODE_STEPS
) -> list[GenerationSpeed]:
    """Time the tokens after contexts of several lengths, with the model's cache.

    Args:
        model: A causal language model of transformers.
        contexts: Tokens before the first new one.
        steps: New tokens that are timed, after a few that are not.

    Returns:
        One entry for each context, but none for those beyond the model's positions.
    """
    model.eval()
    longest = max_positions(model)
    contexts = [c for c in contexts if longest is None or c + WARMUP_STEPS + steps <= longest]
    results = []
    for context in contexts[:1] + contexts:  # the first one twice: kernels are compiled when they are first called
        tokens = torch.randint(model.config.vocab_size, (1, context), device=model.device)
        start = _now(model.device)
        outputs = model(tokens, use_cache=True, logits_to_keep=1)
        prefill = _now(model.device) - start
        times = []
        for _ in range(WARMUP_STEPS + steps):
            start = _now(model.device)
            token = outputs.logits[:, -1:].argmax(-1)
            outputs = model(token, past_key_values=outputs.past_key_values, use_cache=True)
            times.append(_now(model.device) - start)
        results.append(GenerationSpeed(context, prefill * 1e3, min(times[WARMUP_STEPS:]) * 1e3))
    return results[1:]


def measure_run(
    folder: Path | str, *, contexts: Sequence[int] = CONTEXTS, batch_size: int = 8, length: int = 512
) -> Efficiency:
    """Measure the model of a run folder in a process of its own.

    As with all multiprocessing, a script that calls this must guard its start with `if __name__ == "__main__":`.

    Args:
        folder: The run folder.
        contexts: Lengths of context to generate after.
        batch_size: Sequences in a training step.
        length: Tokens in a training sequence.

    Raises:
        DataError: The run cannot be loaded.
    """
    Run(folder)  # what is no run is refused before a process starts
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure, folder, tuple(contexts), batch_size, length).result()


def _measure(folder: Path | str, contexts: Sequence[int], batch_size: int, length: int) -> Efficiency:
    run = Run(folder)
    model = run.load_model()
    device = model.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # not on Windows
    # Training first: the high-water mark of a process never falls.
    training = training_speed(model, batch_size=batch_size, length=length)
    has_cache = run.task == "causal-lm" and model.config.use_cache
    generation = generation_speed(model, contexts) if has_cache else []
    return Efficiency(name, load, training, generation)


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _resident_bytes(field: str) -> int | None:
    """Memory of this process by Linux's own account: now (VmRSS) or at most (VmHWM), never that of its parent."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
