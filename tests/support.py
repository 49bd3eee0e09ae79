"""What many tests need: the measure of error, and the way to data that lies beside the repository."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# RMS error relative to RMS reference: a property of the dtype that is computed in, never loosened in a test.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 5e-3}


def error_ratio(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return ((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(1e-30)).item()


def assert_close(
    actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None, name: str = "tensor"
) -> None:
    """Hold shapes equal, values finite, and the error ratio below the tolerance of `dtype`, by default `actual`'s."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if actual.numel() == 0:
        return
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    limit = TOLERANCE[dtype or actual.dtype]
    if not expected.detach().double().abs().max() > 1e-12:
        assert actual.detach().double().abs().max() <= limit, f"{name}: expected zeros"
        return
    ratio = error_ratio(actual, expected)
    assert ratio <= limit, f"{name}: error ratio {ratio:.2e} exceeds {limit:.0e}"


def shared(*parts: str) -> Path:
    """A path inside the folder of golden numbers and data, or a skip that names what is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not there: the folder `shared` is not beside the repository")
    return path
