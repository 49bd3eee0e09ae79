"""Output layer and loss of a language model, forward and backward: time and memory, all logits against slices of them.

python benchmarks/output_layer.py [--tokens 2048] [--vocab 267744] [--dim 512] [--repeats 3] [--json FILE]
"""

import argparse
import multiprocessing
from pathlib import Path

import torch
from growth import resident_bytes
from side_by_side import report, time_side_by_side
from torch import Tensor

from subquad.ops import linear_cross_entropy

BACKENDS = {"subquad": "torch", "all logits": "reference"}


def problem(tokens: int, vocab: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, weights and targets."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, dim, requires_grad=True)
    weight = (torch.randn(vocab, dim) * dim**-0.5).requires_grad_()
    return hidden, weight, torch.randint(vocab, (tokens,))


def step(hidden: Tensor, weight: Tensor, targets: Tensor, backend: str) -> tuple[Tensor, ...]:
    """The gradients."""
    loss = linear_cross_entropy(hidden, weight, targets, backend=backend) / len(targets)
    return torch.autograd.grad(loss, (hidden, weight))


def memory(backend: str, tokens: int, vocab: int, dim: int) -> int:
    """Bytes that a process grows by, at most, over inputs and weights."""
    inputs = problem(tokens, vocab, dim)
    before = resident_bytes("VmRSS")
    step(*inputs, backend)
    return resident_bytes("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=267_744)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sizes = (args.tokens, args.vocab, args.dim)
    facts = {}
    for name, backend in BACKENDS.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            facts[f"memory_{name}_MiB"] = round(pool.apply(memory, (backend, *sizes)) / 2**20)
    inputs = problem(*sizes)
    results = [step(*inputs, backend) for backend in BACKENDS.values()]
    error = max(((a - b).norm() / b.norm()).item() for a, b in zip(*results, strict=True))
    if not error < 1e-4:
        raise SystemExit(f"the formulations disagree (gradient error {error:.1e}): nothing was timed")
    del results
    candidates = {name: lambda backend=backend: step(*inputs, backend) for name, backend in BACKENDS.items()}
    title = f"output layer and loss, forward + backward, {args.tokens} tokens, vocabulary {args.vocab}, dim {args.dim}"
    times = time_side_by_side(candidates, args.repeats)
    report(title, times, "subquad", args.json, gradient_error=f"{error:.1e}", **facts)


if __name__ == "__main__":
    main()
