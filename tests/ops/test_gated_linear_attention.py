"""Gated linear attention in chunks against its reference, and the reference against cases that are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close

from subquad.ops import gated_linear_attention, linear_attention, linear_recurrence

LEAVES = ("q", "k", "v", "log_decay", "initial_state")


def make(batch, length, heads=2, *, key_dim=5, value_dim=4, states=True, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    gates = 3 * torch.randn(batch, length, heads, key_dim, generator=generator, dtype=torch.float64)
    return {
        "q": normal(batch, length, heads, key_dim),
        "k": normal(batch, length, heads, key_dim),
        "v": normal(batch, length, heads, value_dim),
        "log_decay": torch.nn.functional.logsigmoid(gates).to(dtype).requires_grad_(),
        "initial_state": normal(batch, heads, key_dim, value_dim) if states else None,
    }


def run(arguments, **options):
    """Outputs, and the gradients of every input under random cotangents of both outputs."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in arguments.items() if x is not None}
    o, final = gated_linear_attention(**leaves, **options)
    generator = torch.Generator().manual_seed(9)
    total = sum(
        (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum() for y in (o, final)
    )
    # The gate of a first step without a state before it has no influence.
    gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True, allow_unused=True)
    return {"o": o, "final": final, **{f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True)}}


def hold(actual, expected, dtype=None):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, dtype, name)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_chunks_equal_the_reference(length, reverse):
    for dtype in (torch.float64, torch.float32):
        for batch, heads, states in ((1, 3, True), (3, 1, False)):
            arguments = make(batch, length, heads, states=states, dtype=dtype)
            hold(run(arguments, reverse=reverse), run(arguments, reverse=reverse, backend="reference"))


def test_without_decay_it_is_linear_attention():
    a = make(2, 100)
    o, final = gated_linear_attention(a["q"], a["k"], a["v"], torch.zeros_like(a["q"]), a["initial_state"])
    expected, state = linear_attention(a["q"], a["k"], a["v"], a["initial_state"], backend="reference")
    assert_close(o, expected)
    assert_close(final, state)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_with_one_key_channel_it_is_a_recurrence(reverse):
    a = make(2, 100, 3, key_dim=1, value_dim=1)
    o, final = gated_linear_attention(**a, reverse=reverse)
    inputs, decay, initial = (
        (a["k"] * a["v"]).flatten(2),
        a["log_decay"].exp().flatten(2),
        a["initial_state"].flatten(1),
    )
    h, end = linear_recurrence(inputs, decay, initial, reverse=reverse)
    assert_close(o.flatten(2), a["q"].flatten(2) * h)
    assert_close(final.flatten(1), end)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_reverse_is_flip_run_flip(backend):
    a = make(2, 70)
    o, final = gated_linear_attention(**a, reverse=True, backend=backend)
    flipped = {name: x if name == "initial_state" else x.flip(1) for name, x in a.items()}
    expected, same = gated_linear_attention(**flipped, backend=backend)
    assert_close(o, expected.flip(1))
    assert_close(final, same)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(2, 150), data=st.data())
def test_a_cut_anywhere_changes_nothing(length, data):
    cut = data.draw(st.integers(1, length - 1))
    a = make(1, length, seed=length)
    whole, final = gated_linear_attention(**a)
    state, pieces = a["initial_state"], []
    for part in zip(*(a[name].split([cut, length - cut], 1) for name in LEAVES[:4]), strict=True):
        piece, state = gated_linear_attention(*part, state)
        pieces.append(piece)
    assert_close(torch.cat(pieces, dim=1), whole)
    assert_close(state, final)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gate", [0.0, -1e-7, -30.0, -80.0, -1e4, -torch.inf])
def test_extreme_gates(gate, dtype):
    """Every second gate: sums over a chunk reach −300 000, where a difference of two of them would have no digits."""
    arguments = make(2, 130, dtype=dtype)
    arguments["log_decay"].data[:, ::2] = gate
    hold(run(arguments), run(arguments, backend="reference"))


def test_a_gate_of_minus_infinity_begins_a_sequence():
    a = make(1, 150, states=False)
    log_decay = a["log_decay"].detach().index_fill(1, torch.tensor([40, 64, 101]), -torch.inf)
    o, final = gated_linear_attention(a["q"], a["k"], a["v"], log_decay)
    lengths = [40, 24, 37, 49]
    parts = [gated_linear_attention(*part) for part in zip(*(a[n].split(lengths, 1) for n in LEAVES[:4]), strict=True)]
    assert_close(o, torch.cat([part for part, _ in parts], dim=1))
    assert_close(final, parts[-1][1])


def test_bfloat16_inputs_remember_over_4096_steps():
    exact = make(1, 4096, 1, states=False)
    exact["log_decay"] = -1e-4 * torch.rand(1, 4096, 1, 5, dtype=torch.float64)
    rounded = {name: exact[name].bfloat16() for name in "qkv"}
    o, final = gated_linear_attention(**rounded, log_decay=exact["log_decay"].float())
    assert (o.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    same = {name: x.double() for name, x in rounded.items()}
    expected, end = gated_linear_attention(**same, log_decay=exact["log_decay"].float().double())
    assert_close(o.double(), expected, torch.bfloat16)
    assert_close(final.double(), end, torch.float32)


def test_inputs_need_not_be_contiguous():
    a = make(2, 70)
    strided = {name: x if x is None else x.detach().mT.contiguous().mT for name, x in a.items()}
    assert not strided["q"].is_contiguous()
    hold(run(strided), run(a))


def test_gradcheck_of_the_reference():
    a = make(2, 4, 1, key_dim=2, value_dim=3)
    inputs = tuple(a[name] for name in LEAVES)
    assert torch.autograd.gradcheck(lambda *x: gated_linear_attention(*x, backend="reference"), inputs)


@pytest.mark.parametrize("states", [False, True], ids=["zero", "states"])
def test_the_registered_operator_is_sound(states):
    a = make(2, 9, states=states)
    torch.library.opcheck(torch.ops.subquad.gated_linear_attention.default, (*(a[name] for name in LEAVES), True))


def test_compiles_in_one_graph_for_any_length():
    torch.compiler.reset()

    def loss(q, k, v, log_decay):
        return gated_linear_attention(q, k, v.tanh(), log_decay)[0].square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (20, 70):
        leaves = [make(1, length, states=False, dtype=torch.float32)[name] for name in LEAVES[:4]]
        ours, expected = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, loss))
        for a, b in zip(ours, expected, strict=True):
            assert_close(a, b)


def test_exports_with_any_length():
    class Attention(torch.nn.Module):
        def forward(self, q, k, v, log_decay):
            return gated_linear_attention(q, k, v, log_decay)

    length = torch.export.Dim("length", min=2, max=4096)
    example = tuple(make(2, 24, dtype=torch.float32)[name].detach() for name in LEAVES[:4])
    program = torch.export.export(Attention(), example, dynamic_shapes=[{1: length}] * 4)
    for n in (2, 130):
        inputs = [make(2, n, dtype=torch.float32)[name].detach() for name in LEAVES[:4]]
        for actual, expected in zip(program.module()(*inputs), gated_linear_attention(*inputs), strict=True):
            assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_autocast_changes_nothing(backend):
    arguments = make(2, 70, dtype=torch.float32)
    expected = run(arguments, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        result = run(arguments, backend=backend)
    assert all(torch.equal(result[name], value) for name, value in expected.items())


def test_nothing_to_compute():
    arguments = make(0, 9)
    result = run(arguments)
    assert result["o"].shape == (0, 9, 2, 4)
    assert result["gradient of initial_state"].shape == (0, 2, 5, 4)


def test_a_second_derivative_is_refused():
    a = make(1, 8)
    o, _ = gated_linear_attention(**a)
    (gradient,) = torch.autograd.grad(o.square().sum(), a["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="gradients of first order only: use backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.ones(2, 3, 4)}, r"`q` must be \(batch, length, heads, key_dim\)"),
        ({"q": torch.ones(2, 0, 3, 4)}, "length > 0"),
        ({"k": torch.ones(2, 4, 3, 5)}, r"`k` must be \(2, 4, 3, 4\), as `q`, got \(2, 4, 3, 5\)"),
        ({"log_decay": torch.ones(2, 4, 3)}, r"`log_decay` must be \(2, 4, 3, 4\)"),
        ({"v": torch.ones(2, 5, 3, 4)}, r"`v` must be \(2, 4, 3\) and value_dim"),
        ({"v": torch.ones(2, 4, 3, 4, dtype=torch.int64)}, "`v` must be a real floating-point tensor"),
        ({"initial_state": torch.ones(2, 3, 4)}, r"`initial_state` must be \(2, 3, 4, 4\), got \(2, 3, 4\)"),
        ({"backend": "triton"}, "no triton implementation yet: use one of torch, reference"),
    ],
)
def test_errors(changes, message):
    arguments = {name: torch.ones(2, 4, 3, 4) for name in LEAVES[:4]} | changes
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(**arguments)
