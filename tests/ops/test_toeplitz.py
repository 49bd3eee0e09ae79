"""The Toeplitz product by FFT against the matrix, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close

from subquad.ops import toeplitz
from subquad.ops.backends import HAS_NUMBA

FAST = ["torch", pytest.param("numba", marks=pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed"))]


def make(batch, length, dim, lags, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, length, dim, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(),
        torch.randn(lags, dim, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(),
    )


def run(x, kernel, **options):
    y = toeplitz(x, kernel, **options)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return y, *torch.autograd.grad((y * cotangent).sum(), (x, kernel))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("backend", FAST)
def test_equals_the_reference(length, direction, backend):
    lags, center = (length, 0) if direction == "causal" else (2 * length - 1, length - 1)
    for batch, dim in ((1, 3), (3, 3), (2, 33)):
        x, kernel = make(batch, length, dim, lags)
        for outputs in {1, length // 2 or 1, length}:
            ours = run(x, kernel, center=center, num_outputs=outputs, backend=backend)
            expected = run(x, kernel, center=center, num_outputs=outputs, backend="reference")
            for name, a, b in zip(("y", "gradient of x", "gradient of kernel"), ours, expected, strict=True):
                assert_close(a, b, name=f"{name}, {outputs} outputs")


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 40), lags=st.integers(1, 100), data=st.data())
def test_any_kernel_at_any_place(backend, length, lags, data):
    center = data.draw(st.integers(0, lags - 1))
    outputs = data.draw(st.integers(1, length))
    x, kernel = make(2, length, 2, lags, seed=length)
    ours = run(x, kernel, center=center, num_outputs=outputs, backend=backend)
    for a, b in zip(ours, run(x, kernel, center=center, num_outputs=outputs, backend="reference"), strict=True):
        assert_close(a, b)


def test_the_formula():
    x, kernel = make(1, 4, 1, 7)
    y = toeplitz(x, kernel, center=3, backend="reference")
    for i in range(4):
        assert_close(y[0, i], sum(kernel[3 + i - j] * x[0, j] for j in range(4)))


def test_a_causal_kernel_never_looks_ahead():
    x, kernel = make(1, 30, 2, 30)
    y = toeplitz(x, kernel)
    changed = torch.cat([x[:, :20], torch.randn(1, 10, 2, dtype=torch.float64)], dim=1)
    assert_close(toeplitz(changed, kernel)[:, :20], y[:, :20])


@pytest.mark.parametrize("num_outputs", [None, 3])
@pytest.mark.parametrize("backend", FAST)
def test_any_layout_is_taken_and_the_result_has_that_of_the_backend(num_outputs, backend):
    x, kernel = make(2, 64, 8, 64)
    expected = toeplitz(x, kernel, num_outputs=num_outputs, backend="reference")
    for order in ((0, 2, 1), (2, 0, 1)):
        back = [order.index(axis) for axis in range(3)]
        y = toeplitz(x.permute(order).contiguous().permute(back), kernel, num_outputs=num_outputs, backend=backend)
        assert (y if backend == "numba" else y.permute(2, 0, 1)).is_contiguous()
        assert_close(y, expected)


def test_channels_are_computed_in_blocks(monkeypatch):
    monkeypatch.setattr("subquad.ops.fourier.BLOCK_NUMBERS", 2 * 3 * 40)  # two channels at a time
    x, kernel = make(3, 20, 5, 20)
    weight = torch.randn(3, 20, 5, dtype=torch.float64)
    ours, expected = (
        (y, *torch.autograd.grad(y, (x, kernel), weight))
        for y in (toeplitz(x, kernel, backend=backend) for backend in ("torch", "reference"))
    )
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", FAST)
def test_half_precision_is_accumulated_in_float32(dtype, backend):
    x, kernel = make(2, 700, 4, 700, torch.float32)
    x = x.detach().to(dtype).requires_grad_()
    y = toeplitz(x, kernel, backend=backend)
    assert y.dtype == dtype
    assert_close(y.double(), toeplitz(x.double(), kernel.double()), dtype)
    y.float().sum().backward()
    assert (x.grad.dtype, kernel.grad.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_gradients_of_half_precision_kernels_are_summed_in_float32(backend):
    x, kernel = make(3, 130, 8, 9, torch.float32)
    kernel = kernel.detach().bfloat16().requires_grad_()
    exact = kernel.detach().double().requires_grad_()
    toeplitz(x, kernel, center=4, backend=backend).square().sum().backward()
    toeplitz(x.double(), exact, center=4, backend="reference").square().sum().backward()
    error = (kernel.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 2**-8  # it is rounded once


@pytest.mark.parametrize("backend", FAST)
def test_float32_is_as_exact_as_float32(backend):
    x, kernel = make(2, 4096, 2, 4096)
    y = toeplitz(x.float(), kernel.float(), backend=backend)
    assert_close(y.double(), toeplitz(x, kernel, backend="torch"), torch.float32)


def test_gradcheck_of_the_reference():
    x, kernel = make(2, 4, 2, 7)
    assert torch.autograd.gradcheck(lambda x, k: toeplitz(x, k, center=3, backend="reference"), (x, kernel))


@pytest.mark.parametrize(("batch", "dim"), [(0, 3), (2, 0)])
def test_nothing_to_multiply(batch, dim):
    x, kernel = make(batch, 9, dim, 9)
    y, grad_x, grad_kernel = run(x, kernel)
    assert y.shape == grad_x.shape == x.shape
    assert torch.equal(grad_kernel, torch.zeros_like(kernel))


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_autocast_changes_nothing(backend):
    x, kernel = make(2, 30, 3, 30, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = toeplitz(x, kernel, backend=backend)
    assert torch.equal(y, toeplitz(x, kernel, backend=backend))


@pytest.mark.parametrize("backend", FAST)
def test_the_registered_operator_is_sound(backend):
    x, kernel = make(2, 9, 3, 17)
    torch.library.opcheck(torch.ops.subquad.toeplitz.default, (x, kernel, 8, 9, backend))
    past = kernel.detach()[8:].requires_grad_()
    torch.library.opcheck(torch.ops.subquad.toeplitz.default, (x, past, 0, 4, backend))


def test_compiles_with_inductor():
    torch.compiler.reset()
    x, kernel = make(2, 24, 4, 24, torch.float32)

    def model(x, kernel):
        return toeplitz(x.sigmoid(), kernel).square().sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for length in (24, 15):
        part = x.detach()[:, :length].requires_grad_()
        assert_close(compiled(part, kernel), model(part, kernel))
        ours, expected = (torch.autograd.grad(f(part, kernel), (part, kernel)) for f in (compiled, model))
        for a, b in zip(ours, expected, strict=True):
            assert_close(a, b)


def test_exports_with_any_length():
    class Causal(torch.nn.Module):
        def forward(self, x, kernel):
            return toeplitz(x, kernel)

    length = torch.export.Dim("length", max=4096)
    example = tuple(t.detach() for t in make(2, 24, 3, 24, torch.float32))
    program = torch.export.export(Causal(), example, dynamic_shapes={"x": {1: length}, "kernel": {0: length}})
    for n in (2, 3, 100):
        x, kernel = make(2, n, 3, n, torch.float32)
        assert_close(program.module()(x, kernel), toeplitz(x, kernel))


def test_a_second_derivative_is_refused():
    x, kernel = make(1, 8, 2, 8)
    (gradient,) = torch.autograd.grad(toeplitz(x, kernel).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="toeplitz has gradients of first order only: use backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("x", "kernel", "options", "message"),
    [
        ((2, 3), (3, 3), {}, r"`x` must be \(batch, length, dim\)"),
        ((2, 0, 3), (3, 3), {}, "length > 0"),
        ((2, 4, 3), (4, 2), {}, r"`kernel` must be \(lags, 3\).*got \(4, 2\)"),
        ((2, 4, 3), (4, 3), {"center": 4}, r"0 … 3, got 4"),
        ((2, 4, 3), (4, 3), {"num_outputs": 5}, r"1 … 4, the length, got 5"),
        ((2, 4, 3), (4, 3), {"backend": "triton"}, "toeplitz has no triton implementation"),
    ],
)
def test_errors(x, kernel, options, message):
    with pytest.raises(ValueError, match=message):
        toeplitz(torch.ones(x), torch.ones(kernel), **options)


def test_only_real_numbers():
    with pytest.raises(ValueError, match=r"real floating-point tensors, got torch.int64 and torch.float32"):
        toeplitz(torch.ones(2, 4, 3, dtype=torch.int64), torch.ones(4, 3))
