"""The root-mean-square norm: compiled loops and the hand-written gradient against the formula."""

import pytest
import torch
from support import assert_close

from subquad.ops import explain, rms_norm

needs_numba = pytest.mark.skipif("numba" not in explain()["rms_norm"], reason="numba is not installed")
BACKENDS = [pytest.param("numba", marks=needs_numba), "torch"]


def normal(*shape, dtype=torch.float64, seed=0):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return tensor.to(dtype).requires_grad_()


def run(x, **options):
    """The output, and the gradient of x under a random cotangent."""
    y = rms_norm(x, **options)
    return y, *torch.autograd.grad(y, x, normal(*y.shape, dtype=y.dtype, seed=1).detach())


def orders(x):
    """x in every order in memory, in one with gaps, and as one row that is repeated."""
    yield x
    for axis in range(x.ndim - 1):
        yield x.transpose(axis, -2).contiguous().transpose(axis, -2)
    yield x.mT.contiguous().mT
    yield torch.cat([x, x], dim=-1)[..., : x.shape[-1]]
    yield x[:1].expand(x.shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("shape", "num_axes"), [((5,), 1), ((2, 63, 5), 1), ((2, 7, 3, 4), 2), ((2, 7, 3, 4), 3), ((0, 4), 1)]
)
def test_equals_the_formula(shape, num_axes, dtype, backend):
    for x in orders(normal(*shape, dtype=dtype).detach()) if len(shape) > 1 else [normal(*shape, dtype=dtype)]:
        x = x.detach().requires_grad_()
        expected = run(x, num_axes=num_axes, backend="reference")
        for ours, theirs in zip(run(x, num_axes=num_axes, backend=backend), expected, strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            assert_close(ours, theirs, dtype)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_the_formula(backend):
    x = normal(3, 4)
    expected = x / ((x.square().sum(-1, keepdim=True) / 4).sqrt() + 1e-8)
    assert_close(rms_norm(x, backend=backend), expected)
    heads = normal(2, 5, 3, 4)
    assert_close(rms_norm(heads, num_axes=2, backend=backend).flatten(-2), rms_norm(heads.flatten(-2)))


@needs_numba
def test_heads_that_come_first_in_memory_are_not_copied():
    x = normal(2, 3, 50, 4).detach().transpose(1, 2).requires_grad_()
    y, gradient = run(x, num_axes=2, backend="numba")
    assert y.is_contiguous()
    assert gradient.stride() == x.stride()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_zeros_and_of_nan(backend):
    x = normal(3, 4).detach()
    x[0], x[1, 2] = 0, torch.nan
    y, gradient = run(x.requires_grad_(), backend=backend)
    assert_close(gradient[0], 1e8 * normal(3, 4, seed=1)[0])
    assert (y[0] == 0).all()
    assert y[1].isnan().all()
    assert gradient[1].isnan().all()
    assert torch.isfinite(y[2]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, backend):
    x = (1000 * normal(4, 300)).detach().to(dtype).requires_grad_()
    y, gradient = run(x, backend=backend)
    assert (y.dtype, gradient.dtype) == (dtype, dtype)
    wide = x.detach().double().requires_grad_()
    expected = rms_norm(wide, backend="reference")
    cotangent = normal(4, 300, dtype=dtype, seed=1).detach().double()
    assert_close(y.double(), expected, dtype)
    assert_close(gradient.double(), torch.autograd.grad(expected, wide, cotangent)[0], dtype)


@needs_numba
def test_compiled_loops_have_gradients_of_any_order():
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, num_axes=2, backend="numba"), normal(2, 2, 3, 2))
    assert torch.autograd.gradgradcheck(lambda x: rms_norm(x, backend="numba"), normal(2, 3))


@needs_numba
def test_the_registered_operator_is_sound():
    torch.library.opcheck(torch.ops.subquad.rms_norm.default, (normal(2, 3, 4), 1))
    torch.library.opcheck(torch.ops.subquad.rms_norm.default, (normal(2, 3, 5, 4).transpose(1, 2).detach(), 2))


@pytest.mark.parametrize("num_axes", [0, 3])
def test_errors(num_axes):
    with pytest.raises(ValueError, match=f"`num_axes` must be from 1 to 2, the axes of `x`, got {num_axes}"):
        rms_norm(torch.ones(2, 3), num_axes=num_axes)
