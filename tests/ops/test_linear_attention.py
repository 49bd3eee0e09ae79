"""Linear attention in chunks against the triangle of scores, forward and backward."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close

from subquad.ops import linear_attention
from subquad.ops.backends import HAS_NUMBA

NAMES = ("o", "final state", "gradient of q", "gradient of k", "gradient of v", "gradient of the initial state")

BACKENDS = ["torch", "numba"] if HAS_NUMBA else ["torch"]
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")


def make(batch, length, heads=2, key_dim=3, value_dim=5, sequences=None, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        (batch, length, heads, key_dim),
        (batch, length, heads, key_dim),
        (batch, length, heads, value_dim),
        (sequences or batch, heads, key_dim, value_dim),
    ]
    tensors = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def run(inputs, **options):
    """Outputs, and gradients from a cotangent on both of them."""
    o, final = linear_attention(*inputs, **options)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in (o, final)]
    loss = (o * weights[0]).sum() + (final * weights[1]).sum()
    return o, final, *torch.autograd.grad(loss, inputs)


def compare(inputs, causal=True, **options):
    expected = run(inputs, causal=causal, **options, backend="reference")
    for backend in BACKENDS if causal else ["torch"]:
        for name, ours, theirs in zip(
            NAMES, run(inputs, causal=causal, **options, backend=backend), expected, strict=False
        ):
            assert_close(ours, theirs, name=f"{name}, {backend}")


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 127, 128, 129, 257])
@pytest.mark.parametrize("causal", [True, False])
def test_equals_the_reference(length, causal):
    for chunk_size in (1, 16, 64):
        compare(make(1, length), causal=causal, chunk_size=chunk_size)
        compare(make(3, length, heads=1)[:3], causal=causal, chunk_size=chunk_size)


@pytest.mark.parametrize(("key_dim", "value_dim"), [(1, 1), (16, 17), (17, 16), (64, 64), (80, 3), (128, 130)])
def test_heads_of_any_width(key_dim, value_dim):
    compare(make(2, 70, key_dim=key_dim, value_dim=value_dim), chunk_size=32)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5), data=st.data())
def test_packed_sequences_stand_alone(lengths, data):
    lengths[0] += 1
    causal, chunk_size = data.draw(st.booleans()), data.draw(st.integers(1, 9))
    inputs = make(1, sum(lengths), sequences=len(lengths))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    compare(inputs, causal=causal, chunk_size=chunk_size, cu_seqlens=cu_seqlens)
    *qkv, states = inputs
    backend = data.draw(st.sampled_from(BACKENDS if causal else ["torch"]))
    o, final = linear_attention(
        *qkv, states, causal=causal, chunk_size=chunk_size, cu_seqlens=cu_seqlens, backend=backend
    )
    for i, length in enumerate(lengths):
        if length:
            part = [x[:, cu_seqlens[i] : cu_seqlens[i + 1]] for x in qkv]
            alone, end = linear_attention(*part, states[i : i + 1], causal=causal, backend=backend)
            assert_close(o[:, cu_seqlens[i] : cu_seqlens[i + 1]], alone)
            assert_close(final[i : i + 1], end)
        else:
            assert torch.equal(final[i], states[i])


@pytest.mark.parametrize(
    ("backend", "causal"),
    [(name, True) for name in ("reference", *BACKENDS)] + [("reference", False), ("torch", False)],
)
def test_the_formula(causal, backend):
    q, k, v, state = make(1, 4, heads=1)
    o, final = linear_attention(q, k, v, state, causal=causal, chunk_size=1, backend=backend)
    products = [state[0, 0] + sum(torch.outer(k[0, t, 0], v[0, t, 0]) for t in range(n)) for n in range(5)]
    for s in range(4):
        assert_close(o[0, s, 0], q[0, s, 0] @ products[s + 1 if causal else 4])
    assert_close(final[0, 0], products[4])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cut", [1, 64, 130, 199])
def test_two_pieces_are_the_whole(cut, backend):
    *qkv, state = make(2, 200)
    o, final = linear_attention(*qkv, state, backend=backend)
    first, middle = linear_attention(*(x[:, :cut] for x in qkv), state, backend=backend)
    second, end = linear_attention(*(x[:, cut:] for x in qkv), middle, backend=backend)
    assert_close(torch.cat([first, second], dim=1), o)
    assert_close(end, final)


@pytest.mark.parametrize("length", [129, 192, 300])
def test_long_sequences_are_computed_in_pieces(monkeypatch, length):
    module = sys.modules["subquad.ops.linear_attention"]
    monkeypatch.setattr(module, "SEGMENT_NUMBERS", 1)
    for inputs, chunk_size in ((make(2, length), 16), (make(2, length)[:3], 64)):
        expected = run(inputs, chunk_size=chunk_size, backend="reference")
        for ours, theirs in zip(run(inputs, chunk_size=chunk_size, backend="torch"), expected, strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_later_position_never_matters(backend):
    q, k, v, _ = make(1, 200)
    o, _ = linear_attention(q, k, v, backend=backend)
    changed = [torch.cat([x[:, :150], torch.randn_like(x[:, 150:])], dim=1) for x in (q, k, v)]
    assert torch.equal(linear_attention(*changed, backend=backend)[0][:, :150], o[:, :150])


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_some_inputs_need_a_gradient(backend):
    inputs = [x.detach() for x in make(1, 150)]
    expected = run([x.requires_grad_() for x in inputs], backend=backend)
    for i, name in enumerate(NAMES[2:]):
        alone = [x.detach().requires_grad_(j == i) for j, x in enumerate(inputs)]
        o, final = linear_attention(*alone, backend=backend)
        generator = torch.Generator().manual_seed(5)
        weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in (o, final)]
        ((o * weights[0]).sum() + (final * weights[1]).sum()).backward()
        assert_close(alone[i].grad, expected[2 + i], name=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", [(0, 2, 1, 3), (3, 0, 1, 2), (1, 0, 3, 2)])
def test_any_order_in_memory(order, backend):
    inputs = make(2, 150)
    back = [order.index(axis) for axis in range(4)]
    strided = [x.detach().permute(order).contiguous().permute(back).requires_grad_() for x in inputs[:3]]
    assert not strided[0].is_contiguous()
    for ours, expected in zip(run(strided, backend=backend), run(inputs[:3], backend=backend), strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_tensors_and_rows_said_once(backend):
    whole = torch.randn(2, 150, 3, 15, dtype=torch.float64)
    parts = [
        x.detach().requires_grad_()
        for x in (whole[..., :5], whole[..., 5:10], whole[:1, :1, :, 10:].expand(2, 150, 3, 5))
    ]
    expected = run([x.detach().contiguous().requires_grad_() for x in parts], backend="reference")
    for ours, theirs in zip(run(parts, backend=backend), expected, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_input_may_have_a_dtype_of_its_own(backend):
    *qkv, state = make(2, 100)
    dtypes = (torch.bfloat16, torch.float32, torch.float16, torch.float64)
    mixed = [x.detach().to(dtype).requires_grad_() for x, dtype in zip((*qkv, state), dtypes, strict=True)]
    o, final = linear_attention(*mixed, backend=backend)
    assert (o.dtype, final.dtype) == (torch.float16, torch.float32)
    exact, end = linear_attention(*(x.detach().double() for x in mixed), backend="reference")
    assert_close(o.double(), exact, torch.float16)
    assert_close(final.double(), end, torch.float32)
    # Gradients that are no tensors of their own: one number for all.
    (o.float().sum() + final.sum()).backward()
    expected = run_sums([x.detach().double().requires_grad_() for x in mixed])
    for x, gradient, dtype in zip(mixed, expected, dtypes, strict=True):
        assert x.grad.dtype == dtype
        assert_close(x.grad.double(), gradient, torch.bfloat16)


def run_sums(inputs):
    o, final = linear_attention(*inputs, backend="reference")
    return torch.autograd.grad(o.sum() + final.sum(), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 300])
def test_half_precision_is_accumulated_in_float32(dtype, length, backend):
    *qkv, _ = make(2, length, dtype=dtype)
    o, final = linear_attention(*qkv, backend=backend)
    assert (o.dtype, final.dtype) == (dtype, torch.float32)
    exact, end = linear_attention(*(x.double() for x in qkv))
    assert_close(o.double(), exact, dtype)
    assert_close(final.double(), end, torch.float32)
    o.float().sum().backward()
    assert all(x.grad.dtype == dtype for x in qkv)


def test_wide_values_keep_sums_that_float16_cannot_hold():
    q, k, v, _ = make(1, 300, dtype=torch.float16)
    o, _ = linear_attention(100 * q, 100 * k, 100 * v.float())
    assert o.dtype == torch.float32
    assert o.abs().max() > 65504
    assert torch.isfinite(o).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_is_as_exact_as_float32(backend):
    *qkv, state = make(1, 4096, heads=1, key_dim=16)
    single = [x.float() for x in (*qkv, state)]
    expected = linear_attention(*qkv, state)
    for ours, exact in zip(linear_attention(*single, backend=backend), expected, strict=True):
        assert_close(ours.double(), exact, torch.float32)


@pytest.mark.parametrize("causal", [True, False])
def test_gradcheck_of_the_reference(causal):
    inputs = make(2, 4)
    assert torch.autograd.gradcheck(lambda *x: linear_attention(*x, causal=causal, backend="reference"), inputs)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("length", [1, 200])
def test_autocast_changes_nothing(backend, length):
    inputs = make(2, length, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        o, final = linear_attention(*inputs, backend=backend)
    gradients = torch.autograd.grad(o.sum() + final.sum(), inputs)
    expected = linear_attention(*inputs, backend=backend)
    expected += torch.autograd.grad(expected[0].sum() + expected[1].sum(), inputs)
    for a, b in zip((o, final, *gradients), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "heads"), [(0, 2), (2, 0)])
def test_nothing_to_multiply(batch, heads, backend):
    inputs = make(batch, 200, heads=heads)
    for result, expected in zip(run(inputs, backend=backend)[2:], inputs, strict=True):
        assert result.shape == expected.shape


def test_the_registered_operator_is_sound():
    op = torch.ops.subquad.linear_attention.default
    inputs = make(1, 9, sequences=2)
    for backend in BACKENDS:
        torch.library.opcheck(op, (*inputs, True, 2, torch.tensor([0, 4, 9]), backend))
        torch.library.opcheck(op, (*make(2, 9)[:3], None, True, 2, None, backend))
    torch.library.opcheck(op, (*make(2, 9)[:3], None, False, 2, None, "torch"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_with_inductor(backend):
    torch.compiler.reset()

    def model(q, k, v, state):
        o, final = linear_attention(q.sigmoid(), k, v, state, backend=backend)
        return o.square().sum() + final.sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for length in (140, 150):
        inputs = make(2, length, dtype=torch.float32)
        assert_close(compiled(*inputs), model(*inputs))
        ours, expected = (torch.autograd.grad(f(*inputs), inputs) for f in (compiled, model))
        for a, b in zip(ours, expected, strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_exports_with_any_length(backend):
    class Causal(torch.nn.Module):
        def forward(self, q, k, v):
            return linear_attention(q, k, v, backend=backend)[0]

    length = torch.export.Dim("length", min=2, max=4096)
    example = tuple(x.detach() for x in make(2, 24, dtype=torch.float32)[:3])
    program = torch.export.export(Causal(), example, dynamic_shapes={name: {1: length} for name in "qkv"})
    for n in (2, 200):
        inputs = make(2, n, dtype=torch.float32)[:3]
        assert_close(program.module()(*inputs), linear_attention(*inputs)[0])


@needs_numba
def test_auto_leaves_few_heads_and_sums_over_all_positions_to_torch(monkeypatch):
    module, taken = sys.modules["subquad.ops.linear_attention"], []
    monkeypatch.setattr(module, "_linear_attention", lambda *arguments: taken.append(arguments[-1]))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for batch, heads, causal in ((2, 2, True), (1, 3, True), (2, 2, False)):
        linear_attention(*make(batch, 9, heads=heads)[:3], causal=causal)
    linear_attention(*make(1, 9, heads=2)[:3], cu_seqlens=torch.tensor([0, 4, 9]))
    assert taken == ["numba", "torch", "torch", "numba"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_derivative_is_refused(backend):
    q, k, v, _ = make(1, 8)
    (gradient,) = torch.autograd.grad(
        linear_attention(q, k, v, backend=backend)[0].square().sum(), q, create_graph=True
    )
    with pytest.raises(RuntimeError, match="linear_attention has gradients of first order only: use backend='ref"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"q": (2, 4, 6)}, {}, r"`q` must be \(batch, length, heads, key_dim\)"),
        ({"q": (2, 0, 2, 3)}, {}, "length > 0"),
        ({"k": (2, 4, 2, 5)}, {}, r"`k` must be \(2, 4, 2, 3\), as `q`, got \(2, 4, 2, 5\)"),
        ({"v": (2, 5, 2, 3)}, {}, r"`v` must be \(2, 4, 2\) and value_dim, got \(2, 5, 2, 3\)"),
        ({"state": (2, 2, 3, 4)}, {}, r"`initial_state` must be \(2, 2, 3, 5\), got \(2, 2, 3, 4\)"),
        ({}, {"chunk_size": 0}, "`chunk_size` must be positive, got 0"),
        ({}, {"cu_seqlens": torch.tensor([0, 4])}, "flatten the batch first"),
        ({}, {"backend": "triton"}, "linear_attention has no triton implementation"),
        pytest.param({}, {"backend": "numba", "causal": False}, "is causal: use backend='torch'", marks=needs_numba),
    ],
)
def test_errors(changes, options, message):
    shapes = {"q": (2, 4, 2, 3), "k": (2, 4, 2, 3), "v": (2, 4, 2, 5), "state": (2, 2, 3, 5), **changes}
    with pytest.raises(ValueError, match=message):
        linear_attention(*(torch.ones(shape) for shape in shapes.values()), **options)


def test_boundaries_must_fit():
    q, k, v, _ = make(1, 9)
    for boundaries in ([0, 4, 8], [1, 9], [0, 6, 4, 9]):
        with pytest.raises(ValueError, match="must rise from 0 to the length 9"):
            linear_attention(q, k, v, cu_seqlens=torch.tensor(boundaries))
    with pytest.raises(ValueError, match="int32 or int64"):
        linear_attention(q, k, v, cu_seqlens=torch.tensor([0.0, 9.0]))
