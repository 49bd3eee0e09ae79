"""The linear recurrence, forward and backward, against loops over the time.

python benchmarks/recurrence.py [--batch 4] [--length 1024] [--dim 512] [--repeats 7] [--json FILE]
"""

import argparse
from pathlib import Path

import torch
from side_by_side import report, time_side_by_side
from torch import Tensor

from subquad.ops import linear_recurrence


def loop_with_slices(x: Tensor, decay: Tensor) -> Tensor:
    """The plain loop: every slice's gradient is a full-size tensor, so the backward pass is quadratic in the length."""
    h = torch.zeros_like(x[:, 0])
    states = []
    for t in range(x.shape[1]):
        h = decay[:, t] * h + x[:, t]
        states.append(h)
    return torch.stack(states, dim=1)


def loop_with_unbind(x: Tensor, decay: Tensor) -> Tensor:
    """The better loop: the time axis is taken apart once."""
    h = torch.zeros_like(x[:, 0])
    states = []
    for x_t, decay_t in zip(x.unbind(1), decay.unbind(1), strict=True):
        h = decay_t * h + x_t
        states.append(h)
    return torch.stack(states, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    shape = (args.batch, args.length, args.dim)
    x, decay = torch.randn(shape, requires_grad=True), torch.rand(shape, requires_grad=True)
    weight = torch.randn(shape)
    functions = {
        "subquad, numba": lambda: linear_recurrence(x, decay, backend="numba")[0],
        "subquad, torch": lambda: linear_recurrence(x, decay, backend="torch")[0],
        "loop over x.unbind(1)": lambda: loop_with_unbind(x, decay),
        "loop over x[:, t]": lambda: loop_with_slices(x, decay),
    }

    def gradients(function):
        return torch.autograd.grad(function(), (x, decay), weight)

    expected = gradients(functions["loop over x.unbind(1)"])
    for name, function in functions.items():
        errors = [((a - b).norm() / b.norm()).item() for a, b in zip(gradients(function), expected, strict=True)]
        if not max(errors) < 1e-5:
            raise SystemExit(f"{name} is wrong (gradient errors {errors}): nothing was timed")
    candidates = {name: lambda f=function: gradients(f) for name, function in functions.items()}
    times = time_side_by_side(candidates, args.repeats, slow=frozenset({"loop over x[:, t]"}))
    title = f"linear recurrence, forward + backward, batch {args.batch}, length {args.length}, dim {args.dim}, float32"
    report(title, times, "subquad, numba", args.json)


if __name__ == "__main__":
    main()
