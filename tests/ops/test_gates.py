"""The products of gated units: compiled loops against the formulas, forward and backward."""

import math

import numpy as np
import pytest
import torch
from support import assert_close

from subquad.ops import explain, gated_input, gated_product

needs_numba = pytest.mark.skipif("numba" not in explain()["gated_product"], reason="numba is not installed")
NAMES = ("x", "gate", "lower bound")


def normal(*shape, dtype=torch.float64, seed=0):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (3 * tensor).to(dtype).requires_grad_()


def bounds(dim, dtype=torch.float64):
    return torch.linspace(0, 0.99, dim, dtype=torch.float64).to(dtype).requires_grad_()


def run(op, tensors, **options):
    """Outputs, and the gradients of every input under random cotangents."""
    outputs = op(*tensors, **options)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    total = sum((y * normal(*y.shape, seed=7 + i)).sum() for i, y in enumerate(outputs))
    return [*outputs, *torch.autograd.grad(total, tensors)]


def hold(op, tensors, dtype=None):
    """Compiled loops equal the formula."""
    ours, expected = run(op, tensors, backend="numba"), run(op, tensors, backend="reference")
    names = [*("output", "gate")[: len(ours) - len(tensors)], *(f"gradient of {name}" for name in NAMES)]
    for name, a, b in zip(names, ours, expected, strict=False):
        assert a.dtype == b.dtype, name
        assert_close(a, b, dtype, name)


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1,), (2, 63, 5), (1, 1000, 3), (0, 4, 2)])
def test_product_equals_the_formula(shape, dtype):
    hold(gated_product, [normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)])


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("parts", [1, 2], ids=["real", "complex"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 63, 5), (1, 1000, 3), (0, 4, 2)])
def test_input_equals_the_formula(shape, parts, dtype):
    *rows, dim = shape
    hold(gated_input, [normal(*rows, parts * dim, dtype=dtype), normal(*shape, dtype=dtype), bounds(dim, dtype)])


@needs_numba
def test_one_lower_bound_for_all_channels():
    bound = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    hold(gated_input, [normal(2, 9, 10), normal(2, 9, 5), bound])


@needs_numba
def test_any_order_in_memory_is_taken():
    gate = normal(5, 2, 7).permute(1, 2, 0)
    for x in (normal(5, 2, 7).permute(1, 2, 0), normal(2, 7, 5), normal(2, 5, 7).mT, normal(2, 7, 10)[..., ::2]):
        for first, second in ((x, gate), (gate, x)):
            y = gated_product(first, second, backend="numba")
            assert_close(y, gated_product(first, second, backend="reference"))
            grads = torch.autograd.grad(y.sum(), (first, second))
            expected = torch.autograd.grad(gated_product(first, second, backend="reference").sum(), (first, second))
            for a, b in zip(grads, expected, strict=True):
                assert_close(a, b)
    assert gated_product(normal(2, 7, 5), gate, backend="numba").stride() == gate.stride()
    x, logits = normal(2, 7, 20)[..., ::2], normal(5, 2, 7).permute(1, 2, 0)
    for a, b in zip(gated_input(x, logits, backend="numba"), gated_input(x, logits, backend="reference"), strict=True):
        assert_close(a, b)


@needs_numba
def test_both_ends_of_a_gate_keep_their_digits():
    """1 − λ close to 1 and to 0, and far beyond what an exponential can hold in float32."""
    logits = torch.tensor([-1e4, -100.0, -80.0, -20.0, -1.0, 0.0, 1.0, 20.0, 80.0, 100.0, 1e4])
    ones = torch.ones_like(logits)
    inputs, decay = gated_input(ones[None, None], logits[None, None], torch.zeros(11), backend="numba")
    exact = logits.double()
    silu = 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(decay.flatten(), exact.sigmoid(), rtol=1e-6, atol=2e-38)
    np.testing.assert_allclose(inputs.flatten(), silu * (-exact).sigmoid(), rtol=1e-6, atol=2e-38)
    leaves = [logits.requires_grad_(), ones.requires_grad_()]
    gradients = torch.autograd.grad((gated_product(ones, logits, backend="numba")).sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)


@needs_numba
def test_not_a_number_stays_what_it_is():
    nan, one = torch.full((1, 1, 1), math.nan), torch.ones(1, 1, 1)
    for dtype in (torch.float32, torch.float64):
        n, o = nan.to(dtype), one.to(dtype)
        assert gated_product(o, n, backend="numba").isnan().all()
        assert gated_product(n, o, backend="numba").isnan().all()
        assert all(y.isnan().all() for y in gated_input(o, n, backend="numba"))
        assert gated_input(n, o, backend="numba")[0].isnan().all()


@needs_numba
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x, gate = normal(2, 9, 6, dtype=dtype), normal(2, 9, 6, dtype=dtype, seed=1)
    y, *gradients = run(gated_product, [x, gate], backend="numba")
    expected, *wide = run(gated_product, [x.double(), gate.double()], backend="reference")
    assert {t.dtype for t in (y, *gradients)} == {dtype}
    for a, b in zip((y, *gradients), (expected, *wide), strict=True):
        assert_close(a.double(), b, dtype)
    tensors = [normal(2, 9, 12, dtype=dtype), gate, bounds(6, torch.float32)]
    inputs, decay, *gradients = run(gated_input, tensors, backend="numba")
    assert inputs.dtype == decay.dtype == torch.float32
    assert [t.dtype for t in gradients] == [dtype, dtype, torch.float32]
    for a, b in zip((inputs, decay), gated_input(*(t.double() for t in tensors), backend="reference"), strict=True):
        assert_close(a, b)
    assert gated_product(x, gate.float(), backend="numba").dtype == torch.float32


def test_the_formulas():
    x, z, bound = normal(2, 3, 8), normal(2, 3, 4), bounds(4)
    assert_close(gated_product(z, z, backend="reference"), z * z / (1 + (-z).exp()))
    inputs, decay = gated_input(x, z, bound)
    assert_close(decay, bound + (1 - bound) / (1 + (-z).exp()))
    silu = x / (1 + (-x).exp())
    assert_close(inputs, silu * torch.cat([1 - decay, 1 - decay], dim=-1))
    assert_close(gated_input(x, z)[1], z.sigmoid())


def test_gradcheck_of_the_references():
    x, z = normal(1, 2, 4), normal(1, 2, 2)
    assert torch.autograd.gradcheck(lambda *t: gated_input(*t, backend="reference"), (x, z, bounds(2)))
    assert torch.autograd.gradcheck(lambda *t: gated_product(*t, backend="reference"), (z, normal(1, 2, 2, seed=1)))


@needs_numba
def test_the_registered_operators_are_sound():
    x, z = normal(2, 3, 8, dtype=torch.float32), normal(4, 2, 3, dtype=torch.float32).detach().permute(1, 2, 0)
    z.requires_grad_()
    torch.library.opcheck(torch.ops.subquad.gated_input.default, (x, z, bounds(4, torch.float32)))
    torch.library.opcheck(torch.ops.subquad.gated_product.default, (x[..., :4].detach().requires_grad_(), z))


def test_compiles_with_inductor():
    torch.compiler.reset()
    tensors = [normal(2, 20, 8, dtype=torch.float32), normal(2, 20, 4, dtype=torch.float32), bounds(4, torch.float32)]

    def model(x, z, bound):
        inputs, decay = gated_input(x, z, bound)
        return gated_product(inputs, x).sum() + decay.square().sum()

    compiled = torch.compile(model, fullgraph=True)
    assert_close(compiled(*tensors), model(*tensors))
    ours, expected = (torch.autograd.grad(f(*tensors), tensors) for f in (compiled, model))
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b)


@needs_numba
@pytest.mark.parametrize("width", [4, 8])
def test_gradients_of_any_order(width):
    bound = torch.rand(4, dtype=torch.float64, requires_grad=True)
    inputs = (normal(1, 2, width), normal(1, 2, 4), bound)
    assert torch.autograd.gradgradcheck(lambda *inputs: gated_input(*inputs, backend="numba"), inputs)
    x, gate = normal(1, 2, 4), normal(1, 2, 4)
    assert torch.autograd.gradgradcheck(lambda x, gate: gated_product(x, gate, backend="numba"), (x, gate))
    assert torch.autograd.gradgradcheck(lambda x: gated_product(x, gate.detach(), backend="numba"), (x,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gated_product(torch.ones(2, 3), torch.ones(2, 4)), r"`gate` must be \(2, 3\), as `x`, got \(2, 4\)"),
        (lambda: gated_input(torch.ones(2, 3, 6), torch.ones(2, 3, 4)), r"`x` must be \(2, 3, 4\).*got \(2, 3, 6\)"),
        (lambda: gated_input(torch.ones(3, 4), torch.ones(3, 4)), r"`logits` must be \(batch, length, dim\)"),
        (lambda: gated_input(torch.ones(1, 3, 4), torch.ones(2, 3, 4)), r"got \(1, 3, 4\)"),
        (
            lambda: gated_input(torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.ones(3)),
            r"`lower_bound` must be \(4,\) or one number, got \(3,\)",
        ),
        (lambda: gated_product(torch.ones(2), torch.ones(2), backend="torch"), "gated_product has no torch"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
