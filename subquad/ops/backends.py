"""Which implementation of an op runs, and why. Each optional dependency is looked at in one place, here."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from subquad.registry import unknown_name

BACKENDS = ("auto", "reference", "torch", "numba", "triton", "liger")
IMPLEMENTED = {
    "toeplitz": ("numba", "torch", "reference"),
    "spectral_filter": ("torch", "reference"),
    "ski": ("numba", "torch", "reference"),
    "linear_recurrence": ("numba", "torch", "reference"),
    "gated_product": ("numba", "reference"),
    "gated_input": ("numba", "reference"),
    "rms_norm": ("numba", "torch", "reference"),
    "rotate_pairs": ("numba", "reference"),
    "linear_attention": ("numba", "torch", "reference"),
    "gated_linear_attention": ("torch", "reference"),
    "linear_cross_entropy": ("liger", "torch", "reference"),
}
"""What each op has, the first choice of `auto` first."""

HAS_NUMBA = importlib.util.find_spec("numba") is not None
HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None


def obstacle(op: str, backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot run `op` on `device`, with the way out; None if it can."""
    if backend not in IMPLEMENTED[op]:
        return f"{op} has no {backend} implementation yet: use one of {', '.join(IMPLEMENTED[op])}"
    if backend == "numba":
        if device.type != "cpu":
            return f"numba runs on the CPU, the tensors are on {device.type}: use backend='{IMPLEMENTED[op][1]}'"
        if not HAS_NUMBA:
            return "numba is not installed: pip install 'subquad[cpu]'"
    if backend == "liger":
        if device.type != "cuda":
            return f"liger-kernel runs on a GPU, the tensors are on {device.type}: use backend='{IMPLEMENTED[op][1]}'"
        if not HAS_LIGER:
            return "liger-kernel is not installed: pip install 'subquad[gpu]'"
    return None


def choose(op: str, backend: str, device: torch.device) -> str:
    """The backend that runs `op` on `device`.

    Raises:
        ValueError: If `backend` is unknown, or cannot run; nothing slower is taken quietly.
    """
    if backend not in BACKENDS:
        raise ValueError(unknown_name("backend", backend, BACKENDS))
    if backend == "auto":
        return next(name for name in IMPLEMENTED[op] if obstacle(op, name, device) is None)
    if (reason := obstacle(op, backend, device)) is not None:
        raise ValueError(f"backend {backend!r} cannot run: {reason}")
    return backend


def explain(device: torch.device | str = "cpu") -> dict[str, str]:
    """For each op, what `backend="auto"` takes on `device`, and why nothing faster."""
    device = torch.device(device)
    lines = {}
    for op, names in IMPLEMENTED.items():
        taken = choose(op, "auto", device)
        reasons = [f"not {name}: {obstacle(op, name, device)}" for name in names[: names.index(taken)]]
        lines[op] = "; ".join([taken, *reasons])
    return lines


def refuse_second_order(op: str) -> Callable[..., NoReturn]:
    """The autograd rule of a hand-written backward: it cannot be differentiated again."""

    def refuse(ctx: Any, *gradients: Any) -> NoReturn:
        raise RuntimeError(f"{op} has gradients of first order only: use backend='reference' to differentiate twice")

    return refuse


def differentiate(ctx: Any, gradients: Sequence[Tensor], formula: Callable, backward: Callable) -> tuple:
    """The autograd rule of an op without loops over time, of any order.

    Args:
        ctx: What autograd kept; the saved tensors are the first inputs of the op.
        gradients: Of its outputs.
        formula: The outputs from the inputs, in PyTorch; taken where the gradients will be differentiated themselves.
        backward: The gradients of the inputs from `gradients` and the inputs, compiled.
    """
    inputs = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return backward(*gradients, *inputs)
    are_needed = ctx.needs_input_grad[: len(inputs)]
    needed = [x for x, is_needed in zip(inputs, are_needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(formula(*inputs), needed, gradients, create_graph=True))
    return tuple(next(found) if is_needed else None for is_needed in are_needed)
