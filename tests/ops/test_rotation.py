"""Turned features: against complex numbers, and compiled loops against the formula, forward and backward."""

import pytest
import torch
from support import assert_close
from torch.nn.functional import elu as torch_elu
from torch.nn.functional import normalize

from subquad.ops import explain, rotate_pairs

HAS_NUMBA = "numba" in explain()["rotate_pairs"]
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
BACKENDS = ["reference", pytest.param("numba", marks=needs_numba)]


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def case(dim=4, rows=1, reflected=True, dtype=torch.float64, length=5):
    x, angles = normal(2, length, 3, dim, dtype=dtype), normal(rows, length, 1, dim // 2, dtype=dtype, seed=1)
    direction = normalize(normal(dim, dtype=dtype, seed=2), dim=0) if reflected else None
    return x.requires_grad_(), angles.requires_grad_(), direction


@pytest.mark.parametrize("dim", [8, 7, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_pairs_are_interleaved_and_an_odd_feature_stays(backend, dim):
    x, angles, _ = case(dim, reflected=False)
    y = rotate_pairs(x, angles, backend=backend)
    for m in range(dim // 2):
        turned = torch.complex(x[..., 2 * m], x[..., 2 * m + 1]) * torch.exp(1j * angles[..., m])
        assert_close(y[..., 2 * m], turned.real)
        assert_close(y[..., 2 * m + 1], turned.imag)
    if dim % 2:
        assert torch.equal(y[..., -1], x[..., -1])


@pytest.mark.parametrize("elu", [0.0, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_feature_map_and_reflection_come_first(backend, elu):
    x, angles, direction = case()
    z = torch_elu(x) + elu
    z = z - 2 * (z @ direction).unsqueeze(-1) * direction
    y = rotate_pairs(x, angles, direction, elu=elu, backend=backend)
    assert_close(y, rotate_pairs(z, angles, backend=backend))
    assert_close(y, rotate_pairs(x.unsqueeze(0), angles.unsqueeze(0), direction, elu=elu)[0])


@pytest.mark.parametrize("elu", [None, 0.0, 2.0])
@pytest.mark.parametrize("reflected", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend, rows, reflected, elu):
    x, angles, direction = case(5, rows, reflected)

    def turned(x, angles):
        return rotate_pairs(x, angles, direction, elu=elu, backend=backend)

    assert torch.autograd.gradcheck(turned, (x, angles))
    assert torch.autograd.gradgradcheck(turned, (x, angles))


@needs_numba
@pytest.mark.parametrize("elu", [None, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_loops_equal_the_formula_in_lower_precision(dtype, elu):
    x, angles, direction = case(64, 2, dtype=dtype, length=300)
    (y, *gradients), (expected, *expected_gradients) = (
        (y := rotate_pairs(x, angles, direction, elu=elu, backend=backend), *torch.autograd.grad(y.sum(), (x, angles)))
        for backend in ("numba", "reference")
    )
    assert y.dtype == dtype
    assert y.transpose(1, 2).is_contiguous()
    assert_close(y, expected, dtype)
    for ours, formula in zip(gradients, expected_gradients, strict=True):
        assert ours.dtype == dtype
        assert_close(ours, formula, dtype)


@needs_numba
def test_any_order_in_memory_is_taken():
    x, angles, direction = case()
    view = x.detach()[..., :3].repeat_interleave(2, dim=-1)[..., 1:5].requires_grad_()
    gradient = normal(2, 3, 4, 5, seed=3).permute(0, 3, 1, 2)
    results = []
    for backend in ("numba", "reference"):
        y = rotate_pairs(view, angles[0], direction, backend=backend)
        results.append([y, *torch.autograd.grad(y, (view, angles), gradient)])
    for ours, formula in zip(*results, strict=True):
        assert_close(ours, formula)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_direction_can_be_learned(backend):
    x, angles, direction = case(6)
    assert torch.autograd.gradcheck(
        lambda direction: rotate_pairs(x, angles, direction, backend=backend), direction.requires_grad_()
    )


def test_what_does_not_fit_is_named():
    x, angles, direction = case()
    with pytest.raises(ValueError, match=r"`angles` must be \(\.\.\., 2\) for pairs of 4, got \(1, 5, 1, 3\)"):
        rotate_pairs(x, normal(1, 5, 1, 3))
    with pytest.raises(ValueError, match="`direction` must be \\(4,\\), got \\(3,\\)"):
        rotate_pairs(x, angles, direction[:3])
    if HAS_NUMBA:
        with pytest.raises(ValueError, match="angles of all heads"):
            rotate_pairs(x, angles.expand(1, 5, 3, 2), backend="numba")
