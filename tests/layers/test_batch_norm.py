"""Batch norm over positions, padding left out."""

import pytest
import torch
from support import assert_close

from subquad.layers import BatchNorm, apply_norm, build_norm


@pytest.fixture
def norm():
    norm = build_norm("batchnorm", 5).double()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    return norm


def test_statistics_are_over_batch_and_length(norm):
    x = torch.randn(3, 7, 5, dtype=torch.float64) * 2 + 1
    mean, variance = x.mean((0, 1)), x.var((0, 1), correction=0)
    assert_close(norm(x), (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias)
    assert_close(norm.running_mean, 0.1 * mean)
    assert_close(norm.running_var, 0.9 + 0.1 * x.var((0, 1)))
    norm.eval()
    expected = (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
    assert_close(norm(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(norm, training):
    x = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    stored = torch.cat([torch.ones(2, 3, dtype=torch.bool), mask], dim=1)
    alone = BatchNorm(5).double()
    alone.load_state_dict(norm.state_dict())
    norm.train(training)
    alone.train(training)
    expected = alone(x[mask][None])[0]
    y = norm(x, stored)
    assert_close(y[mask], expected)
    weight = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), x)[0] for out in (y[mask], expected))
    assert_close(ours, theirs)
    assert_close(norm.running_var, alone.running_var)
    assert_close(norm.running_mean, alone.running_mean)


def test_only_norms_over_positions_see_the_mask(norm):
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    mask = torch.arange(6).expand(2, 6) < 4
    other = build_norm("layernorm", 5).double()
    assert torch.equal(apply_norm(other, x, mask), other(x))
    assert not apply_norm(norm, x, mask)[:, 4:].any()
