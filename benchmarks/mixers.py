"""Mixers against the straightforward published formulations, forward and backward, each pair in a process of its own.

Both sides hold the same weights; before anything is timed, outputs and gradients are compared.

    python benchmarks/mixers.py [MIXER ...] [--batch 1] [--length 2048] [--dim 512] [--operator] [--repeats 7]
                                [--json FOLDER]
"""

import argparse
import copy
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
from published.fd import PublishedFDTNO
from published.hgru import PublishedHGRU
from published.norm_attention import PublishedNormAttention
from published.ski import PublishedSKITNO
from published.unit import published_unit
from side_by_side import report, time_side_by_side
from torch import Tensor, nn

from subquad.mixers import FDGTU, HGRU, SKIGTU, NormAttention


def ski_tno(dim: int, length: int) -> dict[str, nn.Module]:
    """Bidirectional, rank 64, 33 taps."""
    ours = SKIGTU(dim, causal=False, horizon=length, rank=64, num_taps=33)
    return {"subquad": ours, "published formulation": published_unit(ours, PublishedSKITNO)}


def fd_tno(dim: int, length: int, causal: bool = False) -> dict[str, nn.Module]:
    """An encoder of 3 hidden maps of width 64."""
    ours = FDGTU(dim, causal, horizon=length, rpe_hidden_size=64)
    return {"subquad": ours, "published formulation": published_unit(ours, PublishedFDTNO)}


def fd_tno_causal(dim: int, length: int) -> dict[str, nn.Module]:
    """As `fd_tno`."""
    return fd_tno(dim, length, causal=True)


def norm_attention(dim: int, length: int) -> dict[str, nn.Module]:
    """Causal, 8 heads."""
    ours = NormAttention(dim)
    return {"subquad": ours, "published formulation": PublishedNormAttention(copy.deepcopy(ours))}


def hgru(dim: int, length: int) -> dict[str, nn.Module]:
    """Causal, complex; also with the time axis taken apart once."""
    ours = HGRU(dim)
    return {
        "subquad": ours,
        "published formulation": PublishedHGRU(copy.deepcopy(ours)),
        "the same with unbind": PublishedHGRU(copy.deepcopy(ours), unbind=True),
    }


PAIRS: dict[str, Callable[[int, int], dict[str, nn.Module]]] = {
    function.__name__: function for function in (ski_tno, fd_tno, fd_tno_causal, norm_attention, hgru)
}


def run(module: nn.Module, x: Tensor, cotangent: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of every parameter that is trained, from that of the output."""
    y = module(x)
    y = y[0] if isinstance(y, tuple) else y
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [y, *torch.autograd.grad(y, [x, *parameters], cotangent)]


def measure(name: str, args: argparse.Namespace) -> None:
    """Compare a pair, time both sides in turn, and report."""
    torch.manual_seed(0)
    modules = PAIRS[name](args.dim, args.length)
    if args.operator:
        modules = {side: module.get_submodule("operator") for side, module in modules.items()}
    width = 3 * args.dim if args.operator else args.dim
    x = torch.randn(args.batch, args.length, width, requires_grad=True)
    cotangent = torch.randn(args.batch, args.length, width)
    first, *others = (run(module, x, cotangent) for module in modules.values())
    error = max(((a - b).norm() / b.norm()).item() for other in others for a, b in zip(first, other, strict=True))
    if not error < 1e-3:
        raise SystemExit(f"{name}: the formulations disagree by {error:.1e}; nothing was timed")
    del first, others
    candidates = {
        side: lambda module=module, x=x, cotangent=cotangent: run(module, x, cotangent)
        for side, module in modules.items()
    }
    title = f"{name}{', operator alone' if args.operator else ''}, {args.batch} × {args.length} × {args.dim}"
    path = args.json / f"{name}-{args.length}.json" if args.json else None
    times = time_side_by_side(candidates, args.repeats)
    report(title, times, "subquad", path, largest_error=f"{error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixers", nargs="*", choices=[[], *PAIRS], default=[])
    parser.add_argument("--operator", action="store_true", help="the Toeplitz operator alone, not the unit around it")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    for name in args.mixers or PAIRS:
        # What one pair has made glibc keep would serve the next.
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(name, args))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
