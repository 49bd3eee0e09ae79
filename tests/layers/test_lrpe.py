"""Positions by rotation against their formulas."""

import math

import pytest
import torch
from support import assert_close

from subquad.layers import LRPE, RotaryPositions, build_relative_positions


def randomised(dim):
    module = LRPE(dim).double()
    module.theta.data = torch.rand_like(module.theta)
    return module


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
