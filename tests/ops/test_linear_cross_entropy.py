"""The output layer and its loss in slices: equal to all logits at once, and never holding them."""

import importlib.util
import os
import sys

import pytest
import torch
from support import assert_close

from subquad.ops import linear_cross_entropy
from subquad.ops import linear_cross_entropy as op


def problem(num_tokens=23, dim=5, vocab_size=11, dtype=torch.float64, bias=True):
    hidden = torch.randn(num_tokens, dim, dtype=dtype)
    weight = torch.randn(vocab_size, dim, dtype=dtype)
    targets = torch.randint(vocab_size, (num_tokens,))
    targets[::4] = -100
    offsets = torch.randn(vocab_size, dtype=dtype) if bias else None
    return [None if t is None else t.requires_grad_() for t in (hidden, weight, offsets)], targets


def loss_and_gradients(inputs, targets, backend):
    hidden, weight, bias = inputs
    loss = linear_cross_entropy(hidden, weight, targets, bias, backend=backend)
    return [loss, *torch.autograd.grad(3.0 * loss, [t for t in inputs if t is not None])]


@pytest.mark.parametrize("rows", [1, 4, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_slices_equal_all_logits(monkeypatch, rows, bias):
    monkeypatch.setattr(sys.modules["subquad.ops.linear_cross_entropy"], "SLICE_ENTRIES", 11 * rows)
    inputs, targets = problem(bias=bias)
    for ours, expected in zip(*(loss_and_gradients(inputs, targets, b) for b in ("torch", "reference")), strict=True):
        assert_close(ours, expected)


def test_a_share_that_underflows_costs_what_it_costs():
    hidden = torch.tensor([[1.0]])
    weight = torch.tensor([[0.0], [500.0]])
    assert linear_cross_entropy(hidden, weight, torch.tensor([0])).item() == 500.0
    assert linear_cross_entropy(hidden, weight, torch.tensor([1])).item() == 0.0


def test_nothing_to_score_is_zero():
    inputs, _ = problem()
    loss, *gradients = loss_and_gradients(inputs, torch.full((23,), -100), "torch")
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_inputs_get_no_gradient(frozen):
    inputs, targets = problem()
    inputs[frozen].requires_grad_(False)
    linear_cross_entropy(inputs[0], inputs[1], targets, inputs[2]).backward()
    assert [tensor.grad is None for tensor in inputs] == [i == frozen for i in range(3)]


def test_half_precision_sums_in_float32():
    inputs, targets = problem(num_tokens=400, vocab_size=50, dtype=torch.float32)
    expected = loss_and_gradients(inputs, targets, "reference")
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in inputs]
    loss, *gradients = loss_and_gradients(rounded, targets, "torch")
    assert loss.dtype == torch.float32
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients)
    for ours, reference in zip([loss, *gradients], expected, strict=True):
        assert_close(ours.float(), reference, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, *gradients = loss_and_gradients(inputs, targets, "torch")
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert_close(loss, expected[0], torch.bfloat16)


@pytest.mark.skipif(
    importlib.util.find_spec("liger_kernel") is None
    or not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"),
    reason="needs liger-kernel and a GPU, or TRITON_INTERPRET=1 for Triton's interpreter on the CPU",
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_liger_equals_all_logits(monkeypatch, dtype, bias):
    if not torch.cuda.is_available():
        monkeypatch.setattr(
            sys.modules["subquad.ops.linear_cross_entropy"], "choose", lambda op, backend, device: backend
        )
    inputs, targets = problem(dtype=dtype, bias=bias)
    if torch.cuda.is_available():
        inputs, targets = [t if t is None else t.detach().cuda().requires_grad_() for t in inputs], targets.cuda()
    for ours, expected in zip(*(loss_and_gradients(inputs, targets, b) for b in ("liger", "reference")), strict=True):
        assert ours.dtype == expected.dtype
        assert_close(ours, expected, dtype)
    targets[3] = 11
    with pytest.raises(IndexError, match=r"outside of the vocabulary, 0 … 10"):
        loss_and_gradients(inputs, targets, "liger")


@pytest.mark.parametrize("bias", [True, False])
def test_registered_op(bias):
    inputs, targets = problem(dtype=torch.float32, bias=bias)
    torch.library.opcheck(torch.ops.subquad.linear_cross_entropy.default, (*inputs, targets, True))
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    hidden, weight, offsets = inputs
    assert_close(compiled(hidden, weight, targets, offsets), op(hidden, weight, targets, offsets))


def test_second_derivatives_are_never_wrong():
    (hidden, weight, _), targets = problem()
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.square().sum().backward()
    exact = linear_cross_entropy(hidden, weight, targets, backend="reference")
    (gradient,) = torch.autograd.grad(exact, hidden, create_graph=True)
    gradient.square().sum().backward()


def test_clear_errors():
    (hidden, weight, _), targets = problem()
    with pytest.raises(ValueError, match=r"`weight` \(vocab_size, dim\), got \(23, 5\) and \(5, 11\)"):
        linear_cross_entropy(hidden, weight.T, targets)
    with pytest.raises(ValueError, match=r"`targets` must be \(23,\), got \(22,\)"):
        linear_cross_entropy(hidden, weight, targets[:-1])
    targets[3] = 11
    with pytest.raises(IndexError, match=r"outside of the vocabulary, 0 … 10"):
        linear_cross_entropy(hidden, weight, targets)
