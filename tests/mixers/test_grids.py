"""Toeplitz operators, alone and over grids, against dense matrices."""

import pytest
import torch
from support import assert_close

from subquad.mixers import GTU2D, TNO

HEIGHT, WIDTH = 3, 5


def dense(operator, length):
    """The operator as one matrix for each channel (length, length, dim), written entry by entry."""
    kernel = operator.coefficients(length)
    matrix = torch.zeros(length, length, operator.dim, dtype=kernel.dtype)
    for i in range(length):
        for j in range(length):
            if not operator.causal or i >= j:
                matrix[i, j] = kernel[i - j if operator.causal else length - 1 + i - j]
    return matrix


@pytest.fixture
def unit(request):
    torch.manual_seed(0)
    unit = GTU2D(4, height=HEIGHT, width=WIDTH, **getattr(request, "param", {})).double()
    for parameter in unit.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for operator in (unit.operator, unit.column_operator):
        operator.decay.data.uniform_(0.7, 0.99)
    return unit


def grids():
    return torch.randn(2, HEIGHT * WIDTH, 4, dtype=torch.float64)


def columns(unit, v):
    """T_H v, v (batch, height, width, channels): `column_operator` along the height."""
    return torch.einsum("ijd,bjwd->biwd", dense(unit.column_operator, HEIGHT), v)


def rows(unit, v):
    """T_W v: `operator` along the width."""
    return torch.einsum("ijd,bhjd->bhid", dense(unit.operator, WIDTH), v)


def finish(unit, x, mixed):
    gate, _ = unit.branches(x)
    return unit.output_proj(unit.norm(unit.activation(gate) * mixed.flatten(1, 2)))


def values(unit, x):
    return unit.branches(x)[1].unflatten(1, (HEIGHT, WIDTH))


@pytest.mark.parametrize("unit", [{}, {"norm": "layernorm"}], indirect=True)
def test_the_product_is_that_of_both_orders(unit):
    x = grids()
    v = values(unit, x)
    expected = finish(unit, x, columns(unit, rows(unit, v)) + rows(unit, columns(unit, v)))
    assert_close(unit(x)[0], expected)
    assert_close(unit(x)[0], finish(unit, x, 2 * columns(unit, rows(unit, v))))


@pytest.mark.parametrize("unit", [{"combine": "sum"}], indirect=True)
def test_the_sum_of_the_two_operators(unit):
    x = grids()
    v = values(unit, x)
    assert_close(unit(x)[0], finish(unit, x, columns(unit, v) + rows(unit, v)))


@pytest.mark.parametrize("unit", [{"combine": "sum"}, {"combine": "product"}], indirect=True)
def test_a_turned_picture_is_that_of_exchanged_operators(unit):
    x = grids()
    turned = GTU2D(4, height=WIDTH, width=HEIGHT, combine=unit.combine).double()
    turned.load_state_dict(unit.state_dict())
    turned.operator, turned.column_operator = turned.column_operator, turned.operator

    def turn(x):
        return x.unflatten(1, (HEIGHT, WIDTH)).transpose(1, 2).flatten(1, 2)

    assert_close(turned(turn(x))[0], turn(unit(x)[0]))


@pytest.mark.parametrize("unit", [{"combine": "sum"}], indirect=True)
def test_which_operator_acts_along_which_axis(unit):
    """A dot spreads along its row by `operator` and along its column by `column_operator`, and nowhere else."""
    x = grids()
    dot = torch.zeros_like(values(unit, x))
    dot[:, 1, 2] = 1
    unit.branches = lambda _: (torch.ones_like(dot).flatten(1, 2), dot.flatten(1, 2))
    unit.activation = unit.output_proj = torch.nn.Identity()
    mixed = unit(x)[0].unflatten(1, (HEIGHT, WIDTH))[0]
    row, column = dense(unit.operator, WIDTH)[:, 2], dense(unit.column_operator, HEIGHT)[:, 1]
    expected = torch.zeros_like(mixed)
    expected[1] += row
    expected[:, 2] += column
    assert_close(mixed, expected)


def test_dropout_is_on_what_the_operators_return():
    unit = GTU2D(4, height=HEIGHT, width=WIDTH, dropout=0.5, bias=False)
    x = grids().float()
    assert torch.equal(unit.eval()(x)[0], unit(x)[0])
    seen = []
    unit.output_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    unit.train()(x)
    assert 0.3 < (seen[-1] == 0).float().mean() < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 0}, "positive `height` and `width`, got 0 × 5"),
        ({"combine": "products"}, "Did you mean 'product'"),
        ({"causal": True}, "has no causal form"),
        ({"window": 0}, "`window` must be positive or None, got 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        GTU2D(4, **{"height": HEIGHT, "width": WIDTH, **options})


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("activation", ["identity", "2+elu"])
def test_a_window_is_a_band_of_the_matrix(causal, activation):
    options = {"decay": 0.9, "kernel_activation": activation}
    whole, windowed = TNO(3, causal, **options).double(), TNO(3, causal, window=4, **options).double()
    windowed.load_state_dict(whole.state_dict())
    lags = torch.arange(9).unsqueeze(1) - torch.arange(9)
    band = (lags.abs() < 4).unsqueeze(-1)
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    assert_close(windowed(x)[0], torch.einsum("ijd,bjd->bid", dense(whole, 9) * band, x))
    assert_close(windowed(x[:, :4])[0], whole(x[:, :4])[0])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 6])
def test_a_kept_kernel_serves_shorter_sequences_alone(causal, window):
    """Evaluation keeps the kernel of the next power of two: a longer sequence needs a new one."""
    operator = TNO(3, causal, window=window).double().eval()
    with torch.no_grad():
        for length in (8, 12, 5, 16, 33, 1):
            assert_close(operator.kernel(length), operator.coefficients(length), name=f"kernel for {length}")
