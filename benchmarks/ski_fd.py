"""SKI and FD units against the straightforward published formulations, forward and backward, in one process.

Both hold the same weights; before anything is timed, outputs and gradients are compared.

    python benchmarks/ski_fd.py [--mixer ski|fd] [--causal] [--operator] [--batch 1] [--length 2048] [--dim 512]
                                [--rank 64] [--num-taps 33] [--repeats 7] [--json FILE]
"""

import argparse
import copy
from pathlib import Path

import torch
from published.fd import PublishedFDTNO
from published.ski import PublishedSKITNO
from side_by_side import report, time_side_by_side
from torch import Tensor, nn

from subquad.mixers import FDGTU, SKIGTU


def run(module: nn.Module, x: Tensor, cotangent: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of every parameter."""
    y = module(x)[0]
    return [y, *torch.autograd.grad((y * cotangent).sum(), [x, *module.parameters()])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixer", choices=["ski", "fd"], default="ski")
    parser.add_argument("--causal", action="store_true", help="with --mixer fd")
    parser.add_argument("--operator", action="store_true", help="the operator alone, not the unit around it")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--num-taps", type=int, default=33)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.mixer == "ski":
        ours = SKIGTU(args.dim, causal=False, horizon=args.length, rank=args.rank, num_taps=args.num_taps)
        restate = PublishedSKITNO
    else:
        ours = FDGTU(args.dim, args.causal, horizon=args.length, rpe_hidden_size=64)
        restate = PublishedFDTNO
    published = copy.deepcopy(ours)
    published.operator = restate(published.operator)
    modules = {"subquad": ours, "published formulation": published}
    if args.operator:
        modules = {name: module.operator for name, module in modules.items()}
    width = ours.operator.dim if args.operator else args.dim
    x = torch.randn(args.batch, args.length, width, requires_grad=True)
    cotangent = torch.randn(args.batch, args.length, width)

    first, second = (run(module, x, cotangent) for module in modules.values())
    error = max(((a - b).norm() / b.norm()).item() for a, b in zip(first, second, strict=True))
    if not error < 1e-3:
        raise SystemExit(f"the two formulations disagree by {error:.1e}; nothing was timed")
    del first, second

    candidates = {name: lambda module=module: run(module, x, cotangent) for name, module in modules.items()}
    what = f"{args.mixer} {'operator' if args.operator else 'unit'}, {'causal' if args.causal else 'bidirectional'}"
    title = f"{what}, forward and backward, batch {args.batch} × {args.length} × {args.dim}"
    report(title, time_side_by_side(candidates, args.repeats), "subquad", args.json, largest_error=f"{error:.1e}")


if __name__ == "__main__":
    main()
