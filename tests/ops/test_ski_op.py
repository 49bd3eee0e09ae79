"""Structured kernel interpolation block by block against its dense matrices, forward and backward."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close

from subquad.ops import ski, toeplitz
from subquad.ops.backends import HAS_NUMBA
from subquad.ops.ski import hat_functions

DTYPES = torch.float32, torch.float64
FAST = ["torch", *(["numba"] if HAS_NUMBA else [])]


def make(batch, length, dim, num_taps, num_inducing, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, length, dim), (num_taps, dim), (2 * num_inducing - 1, dim)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def run(tensors, spacing, **options):
    y = ski(*tensors, spacing, **options)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return y, *torch.autograd.grad((y * cotangent).sum(), tensors)


def assert_equals_the_reference(tensors, spacing, backends=FAST):
    names = ("y", "gradient of x", "gradient of taps", "gradient of kernel")
    expected = run(tensors, spacing, backend="reference")
    for backend in backends:
        for name, a, b in zip(names, run(tensors, spacing, backend=backend), expected, strict=True):
            assert_close(a, b, name=f"{name}, {backend}")


@pytest.mark.parametrize(
    ("length", "num_inducing"),
    [(1, 1), (2, 2), (5, 3), (63, 8), (64, 8), (65, 65), (100, 17), (300, 70), (1000, 33)],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_reference(batch, length, num_inducing):
    tensors = make(batch, length, 3, 5, num_inducing)
    assert_equals_the_reference(tensors, (length - 1) / (num_inducing - 1) if num_inducing > 1 else 7.5)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 60), half=st.integers(0, 8), spacing=st.floats(1, 80), more=st.integers(0, 3), data=st.data()
)
def test_any_spacing(length, half, spacing, more, data):
    num_inducing = int((length - 1) // spacing) + 2 + more
    dim = data.draw(st.sampled_from([1, 2, 5]))
    assert_equals_the_reference(make(2, length, dim, 2 * half + 1, num_inducing, seed=length), spacing)


def test_many_wide_sequences_are_taken_in_blocks(monkeypatch):
    monkeypatch.setattr(importlib.import_module("subquad.ops.ski"), "BLOCK_ELEMENTS", 12)
    assert_equals_the_reference(make(5, 14, 4, 7, 5), 3.5, ["torch"])
    assert_equals_the_reference(make(5, 2, 2, 7, 2), 1.0, ["torch"])


@pytest.mark.parametrize(("batch", "length", "dim", "num_taps"), [(2, 130, 32, 5), (1, 64, 33, 1), (3, 70, 100, 201)])
def test_channels_and_rows_of_several_tasks(batch, length, dim, num_taps):
    assert_equals_the_reference(make(batch, length, dim, num_taps, 9), (length - 1) / 8)


@pytest.mark.parametrize("backend", FAST)
def test_long_sums_stay_accurate(backend):
    """Gradients of the taps are sums over all rows."""
    tensors = make(4, 5000, 3, 3, 9, torch.float32)
    *_, taps, kernel = run(tensors, 5000 / 8, backend=backend)
    *_, exact_taps, exact_kernel = run([t.detach().double().requires_grad_() for t in tensors], 5000 / 8)
    assert_close(taps.double(), exact_taps, torch.float32)
    assert_close(kernel.double(), exact_kernel, torch.float32)


def test_nothing_leaks_from_where_no_input_is():
    """A number that is none stays where taps and inducing positions bring it."""
    x, taps, kernel = make(1, 200, 40, 3, 5)
    x = x.detach().clone()
    x[0, 100, 7] = torch.nan
    for backend in FAST:
        y = ski(x, taps.detach(), torch.zeros_like(kernel), 50.0, backend=backend)
        assert not y[..., :7].isnan().any()
        assert not y[..., 8:].isnan().any()


def test_rows_of_the_interpolation():
    weights = hat_functions(torch.arange(8, dtype=torch.float64) / 1.75, 5)
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0],
            [3 / 7, 4 / 7, 0, 0, 0],
            [0, 6 / 7, 1 / 7, 0, 0],
            [0, 2 / 7, 5 / 7, 0, 0],
            [0, 0, 5 / 7, 2 / 7, 0],
            [0, 0, 1 / 7, 6 / 7, 0],
            [0, 0, 0, 4 / 7, 3 / 7],
            [0, 0, 0, 0, 1],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(("length", "rank"), [(17, 5), (100, 13), (9, 9), (1000, 64)])
def test_interpolation_reproduces_affine_functions(length, rank):
    spacing = (length - 1) / (rank - 1)
    positions = torch.arange(length, dtype=torch.float64)
    weights = hat_functions(positions / spacing, rank)
    assert ((weights > 1e-9).sum(1) <= 2).all()
    assert_close(weights.sum(1), torch.ones_like(positions))
    assert_close(weights @ (torch.arange(rank).double() * spacing), positions)


def test_an_inducing_position_at_every_input_is_the_dense_operator():
    x, taps, kernel = make(2, 30, 3, 5, 30)
    expected = toeplitz(x, taps, center=2) + toeplitz(x, kernel, center=29)
    assert_close(ski(x, taps, kernel, 1.0), expected)


@pytest.mark.parametrize("spacing", [4, 8])
def test_error_of_a_smooth_kernel(spacing):
    """At most h²/4 times the largest second derivative, here 1/width² of a Gaussian; and nearly so, at its top."""
    width, length = 60.0, 257
    rank = (length - 1) // spacing + 1
    gauss = lambda lags: torch.exp(-((lags / width) ** 2) / 2).unsqueeze(1)  # noqa: E731
    kernel = gauss(torch.arange(1 - rank, rank, dtype=torch.float64) * spacing)
    identity = torch.eye(length, dtype=torch.float64).unsqueeze(-1)
    approximate = ski(identity, torch.zeros(1, 1, dtype=torch.float64), kernel, float(spacing))
    exact = toeplitz(identity, gauss(torch.arange(1 - length, length, dtype=torch.float64)), center=length - 1)
    error, bound = (approximate - exact).abs().max().item(), spacing**2 / 4 / width**2
    assert 0.9 * bound < error <= bound


@pytest.mark.parametrize("backend", FAST)
def test_half_precision_is_accumulated_in_float32(backend):
    tensors = make(2, 700, 4, 9, 30, torch.float32)
    x, taps, kernel = tensors
    x = x.detach().bfloat16().requires_grad_()
    y = ski(x, taps, kernel, 25.0, backend=backend)
    assert y.dtype == torch.bfloat16
    assert_close(y.double(), ski(x.double(), taps.double(), kernel.double(), 25.0), torch.bfloat16)
    y.float().sum().backward()
    assert (x.grad.dtype, taps.grad.dtype, kernel.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


@pytest.mark.parametrize("backend", FAST)
def test_positions_are_exact_far_out(backend):
    x, taps, kernel = make(1, 20000, 1, 1, 40, torch.float32)
    y, exact = (ski(*(t.to(dtype) for t in (x, taps, kernel)), 517.3, backend=backend) for dtype in DTYPES)
    assert_close(y.double(), exact, torch.float32)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_autocast_changes_nothing(backend):
    tensors = make(2, 30, 3, 3, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = ski(*tensors, 7.5, backend=backend)
    assert torch.equal(y, ski(*tensors, 7.5, backend=backend))


def test_gradcheck_of_the_reference():
    tensors = make(2, 6, 2, 3, 3)
    assert torch.autograd.gradcheck(lambda *t: ski(*t, 2.5, backend="reference"), tensors)


@pytest.mark.parametrize(("batch", "dim"), [(0, 3), (2, 0)])
def test_nothing_to_multiply(batch, dim):
    y, grad_x, *_ = run(make(batch, 9, dim, 3, 5), 2.0)
    assert y.shape == grad_x.shape == (batch, 9, dim)


@pytest.mark.parametrize("backend", FAST)
def test_the_registered_operator_is_sound(backend):
    torch.library.opcheck(torch.ops.subquad.ski.default, (*make(2, 9, 3, 5, 4), 3.0, backend))


def test_compiles_with_inductor():
    torch.compiler.reset()
    tensors = make(2, 24, 4, 3, 5, torch.float32)

    def model(x, taps, kernel):
        return ski(x.sigmoid(), taps, kernel, 7.0).square().sum()

    compiled = torch.compile(model, fullgraph=True)
    assert_close(compiled(*tensors), model(*tensors))
    ours, expected = (torch.autograd.grad(f(*tensors), tensors) for f in (compiled, model))
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b)


def test_a_second_derivative_is_refused():
    tensors = make(1, 8, 2, 3, 3)
    (gradient,) = torch.autograd.grad(ski(*tensors, 4.0).square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="ski has gradients of first order only: use backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("x", "taps", "kernel", "options", "message"),
    [
        ((2, 3), (3, 3), (3, 3), {}, r"`x` must be \(batch, length, dim\)"),
        ((2, 0, 3), (3, 3), (3, 3), {}, "length > 0"),
        ((2, 4, 3), (2, 3), (3, 3), {}, r"`taps` must be \(odd number of lags, 3\), got \(2, 3\)"),
        ((2, 4, 3), (3, 3), (3, 2), {}, r"`kernel` must be \(odd number of lags, 3\), got \(3, 2\)"),
        ((2, 4, 3), (3, 3), (7, 3), {"spacing": 0.5}, "at least 1, got 0.5"),
        ((2, 4, 3), (3, 3), (7, 3), {"spacing": float("nan")}, "at least 1, got nan"),
        ((2, 9, 3), (3, 3), (5, 3), {"spacing": 3.0}, "3 inducing positions 3.0 apart end before the 9 inputs"),
        ((2, 4, 3), (3, 3), (3, 3), {"spacing": 3.0, "backend": "triton"}, "ski has no triton implementation"),
    ],
)
def test_errors(x, taps, kernel, options, message):
    with pytest.raises(ValueError, match=message):
        ski(torch.ones(x), torch.ones(taps), torch.ones(kernel), **{"spacing": 1.0, **options})
