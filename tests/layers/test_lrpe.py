"""Positions by rotation against their formulas."""

import math

import pytest
import torch
from support import assert_close

from subquad.layers import LRPE, RotaryPositions, build_relative_positions
from subquad.layers.lrpe import rotate_pairs


def randomised(dim):
    module = LRPE(dim).double()
    module.theta.data = torch.rand_like(module.theta)
    return module


@pytest.mark.parametrize("dim", [8, 7, 1])
def test_pairs_are_interleaved_and_an_odd_feature_stays(dim):
    x, angles = torch.randn(3, dim, dtype=torch.float64), torch.randn(3, dim // 2, dtype=torch.float64)
    y = rotate_pairs(x, angles)
    for m in range(dim // 2):
        turned = torch.complex(x[:, 2 * m], x[:, 2 * m + 1]) * torch.exp(1j * angles[:, m])
        assert_close(y[:, 2 * m], turned.real)
        assert_close(y[:, 2 * m + 1], turned.imag)
    if dim % 2:
        assert torch.equal(y[:, -1], x[:, -1])


@pytest.mark.parametrize("reflected", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
def test_queries_and_keys_are_turned_as_any_other_and_have_their_gradients(reflected, rows):
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(rows, 5, 1, 2, dtype=torch.float64, requires_grad=True)
    direction = torch.nn.functional.normalize(torch.randn(4, dtype=torch.float64), dim=0) if reflected else None
    y = rotate_pairs(x, angles, direction)
    assert_close(y, rotate_pairs(x.unsqueeze(0), angles, direction)[0])
    assert y.transpose(1, 2).is_contiguous()
    assert torch.autograd.gradcheck(lambda x, angles: rotate_pairs(x, angles, direction), (x, angles))
    # Queries may be any view, and their gradients too.
    view = x.detach()[..., :3].repeat_interleave(2, dim=-1)[..., 1:5]
    assert_close(rotate_pairs(view, angles, direction), rotate_pairs(view.clone(), angles, direction))
    (of_sum,) = torch.autograd.grad(y.sum(), x)
    (of_products,) = torch.autograd.grad((rotate_pairs(x, angles, direction) * torch.ones_like(x)).sum(), x)
    assert_close(of_sum, of_products)


def test_a_direction_can_be_learned():
    x, angles = torch.randn(1, 3, 2, 4, dtype=torch.float64), torch.randn(3, 1, 2, dtype=torch.float64)
    direction = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda direction: rotate_pairs(x, angles, direction), direction)


def test_compiled_and_eager_are_the_same():
    torch.compiler.reset()
    lrpe, x = randomised(6), torch.randn(2, 5, 6, dtype=torch.float64)
    compiled = torch.compile(lambda x: lrpe(x, lrpe.angles(torch.arange(5))), backend="aot_eager", fullgraph=True)
    assert_close(compiled(x), lrpe(x, lrpe.angles(torch.arange(5))))


@pytest.mark.parametrize("dim", [8, 7])
@pytest.mark.parametrize("kind", [LRPE, RotaryPositions])
def test_products_depend_on_the_distance_alone(kind, dim):
    positions = kind(dim).double()
    q, k = torch.randn(2, 6, dim, dtype=torch.float64)
    here, there = (positions.angles(torch.arange(6) + start) for start in (0, 10**6))
    products = [positions(q, angles) @ positions(k, angles).mT for angles in (here, there)]
    assert_close(products[1], products[0], torch.float32)
    assert_close(positions(q, here).norm(dim=-1), q.norm(dim=-1), torch.float32)


def test_initial_values():
    lrpe = LRPE(6)
    assert_close(lrpe.theta, torch.tensor([10000 ** (-2 * m / 6) for m in range(3)]))
    assert_close(lrpe.reflection.norm(), torch.tensor(1.0))
    assert not lrpe.reflection.requires_grad
    assert lrpe.theta._no_weight_decay
    x = torch.randn(4, 6)
    assert_close(lrpe(x, lrpe.angles(torch.zeros(4))), x - 2 * torch.outer(x @ lrpe.reflection, lrpe.reflection))


def test_late_positions_keep_their_angles_in_half_precision():
    rotary, x = RotaryPositions(8), torch.randn(1, 8)
    angles = rotary.angles(torch.tensor([2**20 + 1]))
    exact = torch.tensor(
        [math.fmod((2**20 + 1) * 10000 ** (-m / 4), 2 * math.pi) for m in range(4)], dtype=angles.dtype
    )
    assert_close(angles[0], exact)
    y = rotary(x.bfloat16(), angles)
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), rotary(x, angles), torch.bfloat16)


def test_unknown_names():
    assert build_relative_positions(None, 8) is None
    with pytest.raises(ValueError, match=r"unknown relative positions 'rotery'\. Did you mean 'rotary'\?"):
        build_relative_positions("rotery", 8)
