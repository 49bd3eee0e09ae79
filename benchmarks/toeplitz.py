"""The Toeplitz product, forward and backward, against the plain published formulation.

python benchmarks/toeplitz.py [--repeats 7] [--json FOLDER]
"""

import argparse
from pathlib import Path

import torch
from side_by_side import report, time_side_by_side
from torch import Tensor

from subquad.ops import toeplitz


def published(x: Tensor, kernel: Tensor) -> Tensor:
    """FFT of length 2n along the strided time axis; the gradient is autograd's."""
    n = x.shape[1]
    spectrum = torch.fft.rfft(x, n=2 * n, dim=1) * torch.fft.rfft(kernel, n=2 * n, dim=0)
    return torch.fft.irfft(spectrum, n=2 * n, dim=1)[:, :n]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    for batch, length, dim in ((8, 512, 1536), (1, 16384, 192)):
        x, kernel = torch.randn(batch, length, dim, requires_grad=True), torch.randn(length, dim, requires_grad=True)
        weight = torch.randn(batch, length, dim)
        functions = {"subquad": toeplitz, "published formulation": published}
        results = [torch.autograd.grad(f(x, kernel), (x, kernel), weight) for f in functions.values()]
        error = max(((a - b).norm() / b.norm()).item() for a, b in zip(*results, strict=True))
        if not error < 1e-4:
            raise SystemExit(f"the formulations disagree (gradient error {error:.1e}): nothing was timed")
        candidates = {
            name: lambda f=function, x=x, k=kernel, w=weight: torch.autograd.grad(f(x, k), (x, k), w)
            for name, function in functions.items()
        }
        title = f"causal Toeplitz product, forward + backward, batch {batch}, length {length}, dim {dim}, float32"
        path = args.json / f"toeplitz-{length}.json" if args.json else None
        report(title, time_side_by_side(candidates, args.repeats), "subquad", path, gradient_error=f"{error:.1e}")


if __name__ == "__main__":
    main()
