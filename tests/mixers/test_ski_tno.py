"""SKI-TNO: worked examples, its dense matrix, and what the horizon is for."""

import pytest
import torch
from support import assert_close, error_ratio

from subquad.mixers import SKIGTU2D, SKITNO, build_mixer


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def operator(dim=3, causal=False, **options):
    return SKITNO(dim, causal, **options).double().eval()


def example(causal):
    """One channel: λ = ½, three knots on each side, and three taps."""
    tno = operator(1, causal, rank=3, num_taps=3, decay=0.5, horizon=None)
    with torch.no_grad():
        tno.past.copy_(double([[1], [2], [4]]))
        if not causal:
            tno.future.copy_(double([[0.5], [3], [-1]]))
        tno.taps.copy_(double([[1], [10]] if causal else [[100], [1], [10]]))
    return tno


def test_worked_example():
    tno = example(causal=False)
    rho = tno.smooth_part(torch.tensor([-4, -2, -1, 0, 1, 2, 4]), 5)
    # Lag 0 belongs to the past: the middle row.
    assert_close(rho[:, 0], double([0.09375, 0.375, 1.75, 4, 1.5, 0.75, 0.1875]))
    x = double([1, -1, 2, 0.5, 3]).reshape(1, 5, 1)
    smooth = double([2.9609375, 5.77734375, 8.59375, 11.5, 14.40625])
    sparse = double([-99, 209, 42, 320.5, 8])
    assert_close(tno(x)[0].flatten(), smooth + sparse)


def test_causal_worked_example():
    kernel = example(causal=True).kernel(5)
    assert_close(kernel.flatten(), double([4 + 1, 1.5 + 10, 0.75, 0.375, 0.1875]))


@pytest.mark.parametrize("kernel", ["table", "rpe"])
@pytest.mark.parametrize("length", [1, 2, 5, 40])
def test_an_inducing_position_at_every_input_is_exact(kernel, length):
    tno = operator(rank=40, num_taps=5, decay=0.9, horizon=40, kernel=kernel)
    x = torch.randn(2, length, 3, dtype=torch.float64)
    lags = torch.arange(length).unsqueeze(1) - torch.arange(length) + length - 1
    assert_close(tno(x)[0], torch.einsum("ijd,bjd->bid", tno.coefficients(length)[lags], x))


@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_sequence_shorter_than_the_rank_without_a_horizon(length):
    tno = operator(rank=16, num_taps=33, horizon=None)
    x = torch.randn(2, length, 3, dtype=torch.float64)
    lags = torch.arange(length).unsqueeze(1) - torch.arange(length) + length - 1
    assert_close(tno(x)[0], torch.einsum("ijd,bjd->bid", tno.coefficients(length)[lags], x))


def test_a_constant_table_sums_the_sequence():
    with pytest.warns(UserWarning, match="`decay` 1 makes the smooth part"):
        tno = operator(rank=4, num_taps=1, decay=1.0, horizon=30)
    constant = torch.randn(3, dtype=torch.float64)
    with torch.no_grad():
        tno.past.copy_(constant.expand(4, 3))
        tno.future.copy_(constant.expand(4, 3))
        tno.taps.zero_()
    x = torch.randn(2, 23, 3, dtype=torch.float64)
    assert_close(tno(x)[0], (constant * x.sum(1, keepdim=True)).expand_as(x))


@pytest.mark.parametrize("length", [3, 10, 29, 30, 75])
def test_with_a_horizon_zeros_on_the_right_change_nothing(length):
    tno = operator(rank=5, num_taps=3, horizon=30)
    x = torch.randn(2, length, 3, dtype=torch.float64)
    padded = torch.cat([x, x.new_zeros(2, 11, 3)], dim=1)
    assert_close(tno(padded)[0][:, :length], tno(x)[0])


def test_without_a_horizon_the_positions_follow_the_length():
    tno = operator(rank=5, num_taps=1, horizon=None, decay=0.9)
    x = torch.randn(1, 30, 3, dtype=torch.float64)
    padded = torch.cat([x, x.new_zeros(1, 20, 3)], dim=1)
    assert error_ratio(tno(padded)[0][:, :30], tno(x)[0]) > 1e-3


def test_the_last_knot_lies_at_the_horizon():
    tno = operator(rank=8, horizon=50)
    kernel = tno.smooth_part(torch.arange(-50, 51), 51)
    assert_close(kernel[-1], tno.past[0])
    assert_close(kernel[0], tno.future[0])


def test_gradients_at_the_knots():
    """Lag 0 lies on a knot, lags beyond the horizon below the lowest: finite differences say the same."""
    tno = operator(2, rank=3, num_taps=3, decay=0.4, horizon=7)
    x = torch.randn(1, 12, 2, dtype=torch.float64)
    cotangent = torch.randn_like(x)
    (tno(x)[0] * cotangent).sum().backward()
    for parameter in tno.parameters():
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += 1e-3 * direction
            above = (tno(x)[0] * cotangent).sum()
            parameter -= 2e-3 * direction
            below = (tno(x)[0] * cotangent).sum()
            parameter += 1e-3 * direction
        # The operator is linear in its parameters, so the difference is exact.
        assert_close((parameter.grad * direction).sum(), (above - below) / 2e-3, torch.float32)


def test_initial_scale():
    """Both parts of a new operator keep the scale of white noise, within a factor of three."""
    torch.manual_seed(0)
    tno = SKITNO(256, causal=False, rank=32, num_taps=17, horizon=512)
    x = torch.randn(1, 512, 256)
    whole = tno(x)[0]
    with torch.no_grad():
        tno.taps.zero_()
    smooth = tno(x)[0]
    for part in (smooth, whole - smooth):
        assert 1 / 3 < part.std() < 3


@pytest.mark.parametrize(("height", "width"), [(3, 5), (4, 4)])
def test_a_grid_is_the_product_of_dense_operators(height, width):
    unit = SKIGTU2D(4, height=height, width=width, rank=8, num_taps=3, activation="identity").double()
    v = torch.randn(2, height, width, unit.operator.dim, dtype=torch.float64)

    def dense(tno, n):
        return tno.coefficients(n)[torch.arange(n).unsqueeze(1) - torch.arange(n) + n - 1]

    rows, columns = dense(unit.operator, width), dense(unit.column_operator, height)
    first = torch.einsum("wjd,bhjd->bhwd", rows, torch.einsum("hid,biwd->bhwd", columns, v))
    second = torch.einsum("hid,biwd->bhwd", columns, torch.einsum("wjd,bhjd->bhwd", rows, v))
    u = torch.randn(2, height * width, unit.operator.dim, dtype=torch.float64)
    unit.branches = lambda x: (u, v.flatten(1, 2))
    y, _ = unit(torch.zeros(2, height * width, 4, dtype=torch.float64))
    assert_close(y, unit.output_proj(u * (first + second).flatten(1, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 1}, "`rank` must be at least 2, got 1"),
        ({"rank": 64, "horizon": 50}, "`rank` 64 is larger than the sequence, `horizon` 50: use at most 50"),
        ({"num_taps": 4}, "`num_taps` must be odd and positive, got 4"),
        ({"decay": 1.5}, r"`decay` must be in \(0, 1\], got 1.5"),
        ({"kernel": "tables"}, "unknown kernel 'tables'. Did you mean 'table'"),
        ({"horizon": None}, "must not depend on the length: give `horizon`, or `decay`"),
        ({"horizen": 5}, "Did you mean 'horizon'"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        build_mixer({"type": "ski_tno", **options}, 8)
