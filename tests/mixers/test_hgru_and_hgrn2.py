"""HGRU, its grid form and HGRN2 against their formulas, step by step."""

import importlib

import pytest
import torch
from support import assert_close

from subquad import SubquadConfig, SubquadForCausalLM
from subquad.mixers import HGRN2, HGRU, HGRU2D

DIM = 6
BOUND = torch.linspace(0, 0.9, DIM, dtype=torch.float64)


def scan(inputs, factors):
    """h_t = factors_t h_{t−1} + inputs_t along axis 1."""
    h, states = torch.zeros_like(inputs[:, 0]), []
    for t in range(inputs.shape[1]):
        h = factors[:, t] * h + inputs[:, t]
        states.append(h)
    return torch.stack(states, dim=1)


def both_ways(inputs, decay, phases):
    forward, reverse = (decay * torch.exp(1j * phase) for phase in phases)
    return scan(inputs, forward) + scan(inputs.flip(1), reverse.flip(1)).flip(1)


def parts(unit, x):
    """Complex inputs and decays of a unit, by the formulas."""
    decay = BOUND + (1 - BOUND) * unit.forget_proj(x).sigmoid()
    real, imaginary = torch.nn.functional.silu(unit.input_proj(x)).chunk(2, -1)
    return (1 - decay) * torch.complex(real, imaginary), decay


def output(unit, x, h):
    normed = unit.norm(torch.cat([h.real, h.imag], dim=-1))
    return unit.output_proj(normed * torch.nn.functional.silu(unit.gate_proj(x)))


def randomized(unit):
    for parameter in unit.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return unit


@pytest.mark.parametrize("separate_phases", [True, False], ids=["separate", "shared"])
def test_each_direction_has_its_phase(separate_phases):
    unit = randomized(HGRU(DIM, causal=False, separate_phases=separate_phases).double())
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    phases = (unit.phase, unit.reverse_phase if separate_phases else unit.phase)
    assert_close(unit(x, lower_bound=BOUND)[0], output(unit, x, both_ways(*parts(unit, x), phases)))
    assert (unit.reverse_phase is not None) == separate_phases


def test_initial_phases_fall_from_one_radian():
    unit = HGRU(DIM, causal=False)
    expected = 10000.0 ** (-2 * torch.arange(DIM) / DIM)
    assert_close(unit.phase, expected)
    assert_close(unit.reverse_phase, expected)
    assert HGRU(DIM).reverse_phase is None


def test_a_grid_is_scanned_both_ways_along_rows_and_columns():
    unit = randomized(HGRU2D(DIM, height=3, width=5).double())
    x = torch.randn(2, 15, DIM, dtype=torch.float64)
    inputs, decay = parts(unit, x)
    phases = (unit.phase, unit.reverse_phase)
    h = torch.zeros(2, 3, 5, DIM, dtype=torch.complex128)
    inputs, decay = inputs.view_as(h), decay.view(h.shape)
    for row in range(3):
        h[:, row] += both_ways(inputs[:, row], decay[:, row], phases)
    for column in range(5):
        h[:, :, column] += both_ways(inputs[:, :, column], decay[:, :, column], phases)
    assert_close(unit(x, lower_bound=BOUND)[0], output(unit, x, h.flatten(1, 2)))


def test_a_real_grid_of_one_row_is_a_row_and_its_inputs():
    """Along columns of length one nothing is recurrent: each scan adds the gated input."""
    grid = HGRU2D(DIM, height=1, width=7, complex=False, norm="simple_rmsnorm").double()
    row = HGRU(DIM, causal=False, complex=False, norm="simple_rmsnorm").double()
    row.load_state_dict(grid.state_dict())
    x = torch.randn(2, 7, DIM, dtype=torch.float64)
    inputs, decay = row.gates(x, BOUND)
    h = scan(inputs, decay) + scan(inputs.flip(1), decay.flip(1)).flip(1)
    assert_close(row(x, lower_bound=BOUND)[0], row.readout(x, h))
    assert_close(grid(x, lower_bound=BOUND)[0], grid.readout(x, h + 2 * inputs))


def test_hgrn2_is_its_recurrence():
    mixer = randomized(HGRN2(DIM, head_dim=3).double())
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    f = (BOUND + (1 - BOUND) * mixer.forget_proj(x).sigmoid()).unflatten(-1, (2, 3))
    q = torch.nn.functional.silu(mixer.q_proj(x)).unflatten(-1, (2, 3)) / 3**0.5
    v = mixer.v_proj(x).unflatten(-1, (2, 3))
    states = scan((1 - f).unsqueeze(-1) * v.unsqueeze(-2), f.unsqueeze(-1).expand(*f.shape, 3))
    expected = mixer.output_proj(mixer.norm((q.unsqueeze(-1) * states).sum(-2).flatten(-2)))
    y, (state,) = mixer(x, lower_bound=BOUND)
    assert_close(y, expected)
    assert_close(state, states[:, -1])


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_many_positions_are_computed_as_few_are(complex_, monkeypatch):
    """Long inputs take compiled loops where short ones take the formula of the gates."""
    unit = randomized(HGRU(DIM, complex=complex_).double())
    x = torch.randn(2, 9, DIM, dtype=torch.float64, requires_grad=True)
    bound = BOUND.clone().requires_grad_()
    results = []
    for small in (2**14, 0):
        for name in ("gated_product", "gated_input"):
            monkeypatch.setattr(importlib.import_module(f"subquad.ops.{name}"), "SMALL", small)
        y, _ = unit(x, lower_bound=bound)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, bound, *unit.parameters()])])
    for few, many in zip(*results, strict=True):
        assert_close(many, few)


@pytest.mark.parametrize("bias", [-200.0, -15.0, 15.0, 200.0])
def test_saturated_gates_keep_their_gradients_finite(bias):
    """A forget gate of exactly 0 or 1 in float32, with and without a lower bound."""
    for mixer in (HGRU(DIM), HGRU(DIM, complex=False), HGRN2(DIM, head_dim=2)):
        mixer.forget_proj.bias.data.fill_(bias)
        x = torch.randn(1, 40, DIM, requires_grad=True)
        bound = BOUND.float().requires_grad_()
        y, _ = mixer(x, lower_bound=bound)
        gradients = torch.autograd.grad(y.square().sum(), [x, bound, *mixer.parameters()])
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_low_rank_gates_and_width():
    unit = HGRU(DIM, complex=False, expand_ratio=2, gate_rank=2, bias=False)
    maps = {name: tuple(p.shape) for name, p in unit.named_parameters() if "norm" not in name}
    assert maps == {
        "input_proj.weight": (12, 6),
        "forget_proj.0.weight": (2, 6),
        "forget_proj.1.weight": (12, 2),
        "gate_proj.0.weight": (2, 6),
        "gate_proj.1.weight": (12, 2),
        "output_proj.weight": (6, 12),
    }


def test_lower_bounds_are_as_wide_as_the_recurrence_and_can_be_left_out():
    def shared(*mixers):
        config = SubquadConfig(vocab_size=9, hidden_size=DIM, num_hidden_layers=2, mixers=list(mixers))
        return {name: tuple(p.shape) for name, p in SubquadForCausalLM(config).model.shared.named_parameters()}

    assert shared({"type": "hgru", "expand_ratio": 2}) == {"hgru.weight": (2, 12)}
    assert shared({"type": "hgru", "lower_bounds": False}) == {}
    assert shared({"type": "hgru"}, {"type": "hgrn2", "lower_bounds": False}) == {"hgru.weight": (1, 6)}
    with pytest.raises(ValueError, match=r"layers of one kind share their lower bounds.*widths \[6, 12\]"):
        shared({"type": "hgru"}, {"type": "hgru", "expand_ratio": 2})
    with pytest.raises(ValueError, match=r"layers of one kind share their lower bounds.*\[False, True\]"):
        shared({"type": "hgrn2"}, {"type": "hgrn2", "lower_bounds": False})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HGRU(DIM, expand_ratio=0.1), "leaves no channel of 6"),
        (lambda: HGRU(DIM, gate_rank=0), "`gate_rank` must be positive, or None for full rank, got 0"),
        (lambda: HGRU2D(DIM, height=0, width=3), "positive `height` and `width`, got 0 × 3"),
        (lambda: HGRU2D(DIM, True, height=2, width=3), "HGRU2D has no causal form"),
        (lambda: HGRN2(DIM, head_dim=4), "`head_dim` must divide the 6 features, got 4"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
