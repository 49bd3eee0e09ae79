"""Every backend of the linear recurrence against its reference, and against numbers of the original code."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from support import SHARED, assert_close, shared

from subquad.ops import explain, linear_recurrence

BACKENDS = [
    "torch",
    pytest.param(
        "numba",
        marks=pytest.mark.skipif("numba" not in explain()["linear_recurrence"], reason="numba is not installed"),
    ),
]
GOLDEN = sorted((SHARED / "golden").glob("hgrn-scan-*.safetensors")) or [None]


def make(batch, length, dim, *, complex_=False, packed=None, states=True, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    width = 2 * dim if complex_ else dim
    decay = torch.rand(batch, length, dim, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    sequences = batch if packed is None else len(packed) - 1
    return {
        "x": normal(batch, length, width),
        "decay": decay,
        "initial_state": normal(sequences, width) if states else None,
        "phase": normal(dim) if complex_ else None,
        "cu_seqlens": None if packed is None else torch.tensor(packed),
    }


def run(arguments, **options):
    """Outputs, and the gradients of every input under random cotangents of both outputs."""
    arguments = {
        k: v.detach().clone().requires_grad_(v.requires_grad) if v is not None else None for k, v in arguments.items()
    }
    x, decay, initial = arguments.pop("x"), arguments.pop("decay"), arguments.pop("initial_state")
    h, final = linear_recurrence(x, decay, initial, **arguments, **options)
    generator = torch.Generator().manual_seed(9)
    total = sum(
        (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum() for y in (h, final)
    )
    leaves = {"x": x, "decay": decay, "initial_state": initial, "phase": arguments["phase"]}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True, allow_unused=True)
    return {"h": h, "final": final, **{f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True)}}


def hold(actual, expected, dtype=None):
    for name, value in expected.items():
        assert_close(actual[name], value, dtype, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000])
def test_backends_equal_the_reference(length, complex_, reverse, backend):
    for batch, states in ((1, True), (3, False)):
        arguments = make(batch, length, 5, complex_=complex_, states=states)
        hold(run(arguments, reverse=reverse, backend=backend), run(arguments, reverse=reverse, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("states", [False, True], ids=["zero", "states"])
def test_packed_sequences_stand_alone(states, complex_, reverse, backend):
    boundaries = [0, 0, 7, 8, 8, 40]
    arguments = make(1, 40, 130, complex_=complex_, packed=boundaries, states=states)
    packed = run(arguments, reverse=reverse, backend=backend)
    hold(packed, run(arguments, reverse=reverse, backend="reference"))
    for sequence, (start, stop) in enumerate(pairwise(boundaries)):
        if start == stop:
            expected = arguments["initial_state"][sequence] if states else torch.zeros_like(packed["final"][sequence])
            assert torch.equal(packed["final"][sequence], expected)
            continue
        h, final = linear_recurrence(
            arguments["x"][:, start:stop],
            arguments["decay"][:, start:stop],
            arguments["initial_state"][sequence : sequence + 1] if states else None,
            phase=arguments["phase"],
            reverse=reverse,
            backend=backend,
        )
        assert_close(packed["h"][:, start:stop], h)
        assert_close(packed["final"][sequence : sequence + 1], final)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_reverse_is_flip_run_flip(complex_, backend):
    a = make(2, 30, 4, complex_=complex_)
    h, final = linear_recurrence(
        a["x"], a["decay"], a["initial_state"], phase=a["phase"], reverse=True, backend=backend
    )
    x, decay = a["x"].flip(1), a["decay"].flip(1)
    flipped, same = linear_recurrence(x, decay, a["initial_state"], phase=a["phase"], backend=backend)
    assert_close(h, flipped.flip(1))
    assert_close(final, same)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(length=st.integers(2, 50), data=st.data())
def test_a_cut_anywhere_changes_nothing(backend, length, data):
    cut = data.draw(st.integers(1, length - 1))
    a = make(2, length, 3, complex_=data.draw(st.booleans()), seed=length)
    whole, final = linear_recurrence(a["x"], a["decay"], a["initial_state"], phase=a["phase"], backend=backend)
    state, pieces = a["initial_state"], []
    for x, decay in zip(a["x"].split([cut, length - cut], 1), a["decay"].split([cut, length - cut], 1), strict=True):
        piece, state = linear_recurrence(x, decay, state, phase=a["phase"], backend=backend)
        pieces.append(piece)
    assert_close(torch.cat(pieces, dim=1), whole)
    assert_close(state, final)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gate", [0.0, 1.0, 1 - 1e-9])
def test_extreme_gates(gate, backend):
    arguments = make(2, 200, 3)
    arguments["decay"] = torch.full_like(arguments["decay"], gate).requires_grad_()
    result = run(arguments, backend=backend)
    hold(result, run(arguments, backend="reference"))
    if gate == 0:
        assert torch.equal(result["h"], arguments["x"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_bfloat16_inputs_remember_over_8192_steps(complex_, backend):
    exact = make(1, 8192, 4, complex_=complex_, states=False)
    exact["decay"] = (1 - 1e-4 * torch.rand(1, 8192, 4, dtype=torch.float64)).requires_grad_()
    if complex_:
        exact["phase"] = torch.rand(4, dtype=torch.float64).requires_grad_()
    rounded = {**exact, "x": exact["x"].bfloat16(), "decay": exact["decay"].float()}
    h, final = linear_recurrence(rounded["x"], rounded["decay"], phase=exact["phase"], backend=backend)
    assert (h.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    same = {**exact, "x": rounded["x"].double(), "decay": rounded["decay"].double()}
    expected, end = linear_recurrence(same["x"], same["decay"], phase=exact["phase"], backend=backend)
    assert_close(h.double(), expected, torch.bfloat16)
    assert_close(final.double(), end, torch.bfloat16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_need_not_be_contiguous(backend):
    a = make(3, 20, 6)
    x, decay = (a[k].detach().mT.contiguous().mT for k in ("x", "decay"))
    assert not x.is_contiguous()
    assert_close(linear_recurrence(x, decay, backend=backend)[0], linear_recurrence(a["x"], a["decay"])[0])


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_gradcheck_of_the_reference(complex_):
    a = make(2, 5, 2, complex_=complex_)
    arguments = (a["x"], a["decay"], a["initial_state"], a["phase"])
    assert torch.autograd.gradcheck(
        lambda x, d, s, p: linear_recurrence(x, d, s, phase=p, backend="reference"),
        arguments,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", [None, [0, 3, 9]], ids=["batch", "packed"])
def test_the_registered_operator_is_sound(packed, backend):
    a = make(1 if packed else 2, 9, 3, complex_=True, packed=packed)
    arguments = (a["x"], a["decay"], a["initial_state"], a["phase"], False, a["cu_seqlens"], backend)
    torch.library.opcheck(torch.ops.subquad.linear_recurrence.default, arguments)


def test_compiles_with_inductor():
    torch.compiler.reset()
    a = make(2, 20, 4, dtype=torch.float32)

    def model(x, decay):
        return linear_recurrence(x.sigmoid(), decay)[0].square().sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for length in (20, 13):
        x, decay = (a[k].detach()[:, :length].requires_grad_() for k in ("x", "decay"))
        assert_close(compiled(x, decay), model(x, decay))


def test_exports_with_any_length():
    class Scan(torch.nn.Module):
        def forward(self, x, decay):
            return linear_recurrence(x, decay)

    length = torch.export.Dim("length", max=4096)
    a = make(2, 24, 3, dtype=torch.float32)
    example = (a["x"].detach(), a["decay"].detach())
    program = torch.export.export(Scan(), example, dynamic_shapes={"x": {1: length}, "decay": {1: length}})
    for n in (2, 3, 100):
        a = make(2, n, 3, dtype=torch.float32)
        for actual, expected in zip(
            program.module()(a["x"], a["decay"]), linear_recurrence(a["x"], a["decay"]), strict=True
        ):
            assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "dim"), [(0, 3), (2, 0)])
def test_nothing_to_compute(batch, dim, backend):
    arguments = make(batch, 9, dim, complex_=True)
    result = run(arguments, backend=backend)
    assert result["h"].shape == arguments["x"].shape
    assert torch.equal(result["gradient of phase"], torch.zeros(dim, dtype=torch.float64))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_autocast_changes_nothing(backend):
    a = make(2, 30, 3, dtype=torch.float32)
    expected = linear_recurrence(a["x"], a["decay"], backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        result = linear_recurrence(a["x"], a["decay"], backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(result, expected, strict=True))


def test_numba_needs_no_place_for_its_cache(monkeypatch):
    numba = pytest.importorskip("numba")
    from subquad.ops.linear_recurrence_numba import compiled

    def njit(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'f': no locator available")
        return original(**options)

    original = numba.njit
    monkeypatch.setattr(numba, "njit", njit)
    assert compiled(lambda x: x + 1).py_func(1) == 2


def test_threads_of_torch_are_left_alone():
    script = (
        "import torch; torch.set_num_threads(1); from subquad.ops import linear_recurrence as run; "
        "x = torch.rand(2, 9, 8); run(x, x); print(torch.get_num_threads())"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "1"


def test_a_second_derivative_is_refused():
    a = make(1, 8, 2)
    h, _ = linear_recurrence(a["x"], a["decay"], backend="torch")
    (gradient,) = torch.autograd.grad(h.square().sum(), a["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="gradients of first order only: use backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem if p else "none")
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_golden_numbers(path, backend):
    shared("golden")
    with safe_open(path, "pt") as file:
        t = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        config = json.loads(file.metadata()["config"])
        family = file.metadata()["family"]
    inputs = {k.removeprefix("input."): v for k, v in t.items() if k.startswith("input.")}
    inputs = {k: v.requires_grad_(v.is_floating_point()) for k, v in inputs.items()}
    options = {"reverse": config.get("reverse", False), "backend": backend}
    if family == "hgrn.scan_log_packed":
        y, final = linear_recurrence(
            inputs["x"], inputs["g"].exp(), inputs["h0"], cu_seqlens=inputs["cu_seqlens"], **options
        )
    else:
        if family == "hgrn.scan_complex":
            x = torch.cat([inputs["x_re"], inputs["x_im"]], dim=-1)
            initial = torch.cat([inputs["h0_re"], inputs["h0_im"]], dim=-1)
        else:
            x, initial = inputs["x"], inputs["h0"]
        decay = inputs["lam"].transpose(0, 1)
        y, final = linear_recurrence(x.transpose(0, 1), decay, initial, phase=inputs.get("theta"), **options)
        y = y.transpose(0, 1)
    assert_close(y, t["output.y"], name="y")
    assert_close(final, t["output.final"], name="final state")
    ((y * t["input.cotangent"]).sum() + (final * t["input.cotangent_final"]).sum()).backward()
    for name, value in inputs.items():
        if f"grad.input.{name}" in t:
            assert_close(value.grad, t[f"grad.input.{name}"], name=f"gradient of {name}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(2, 4, 4)}, r"must be \(2, 4, 3\), as `decay`, got \(2, 4, 4\)"),
        ({"decay": torch.ones(2, 4)}, r"`decay` must be \(batch, length, dim\)"),
        ({"x": torch.ones(2, 0, 3), "decay": torch.ones(2, 0, 3)}, "length > 0"),
        ({"phase": torch.ones(3)}, r"of a complex recurrence must be \(2, 4, 6\)"),
        ({"initial_state": torch.ones(3, 3)}, r"`initial_state` must be \(2, 3\), got \(3, 3\)"),
        ({"x": torch.ones(2, 4, 3, dtype=torch.int64)}, "real floating-point tensors, got torch.int64"),
        ({"cu_seqlens": torch.tensor([0, 4])}, "flatten the batch first"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
        ({"backend": "triton"}, "no triton implementation yet: use one of numba, torch, reference"),
    ],
)
def test_errors(changes, message):
    arguments = {"x": torch.ones(2, 4, 3), "decay": torch.ones(2, 4, 3), **changes}
    with pytest.raises(ValueError, match=message):
        linear_recurrence(**arguments)


@pytest.mark.parametrize("boundaries", [[0, 3], [1, 4], [0, 3, 2, 4]])
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_boundaries_are_checked(boundaries, backend):
    with pytest.raises(ValueError, match=r"must rise from 0 to the length 4, got \["):
        linear_recurrence(
            torch.ones(1, 4, 2), torch.ones(1, 4, 2), cu_seqlens=torch.tensor(boundaries), backend=backend
        )
