"""FD-TNO: worked examples, its dense matrix, and what horizon and smooth spectrum are for."""

import pytest
import torch
from support import assert_close, error_ratio

from subquad.mixers import FDGTU2D, FDTNO, build_mixer
from subquad.ops import toeplitz


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def operator(dim=3, causal=True, **options):
    return FDTNO(dim, causal, **options).double().eval()


def sampled(causal, real, imaginary=None):
    """One channel with the given response at the frequencies of the grid."""
    tno = operator(1, causal, num_frequencies=len(real) - 1, horizon=None)
    with torch.no_grad():
        tno.real.copy_(double(real).unsqueeze(1))
        if imaginary is not None:
            tno.imaginary.copy_(double(imaginary).unsqueeze(1))
    return tno


def test_worked_examples():
    assert_close(sampled(True, [1, 2, 3]).kernel(2).flatten(), double([2, -1]))
    causal = sampled(True, [1, 2, 3, 0.5, -1]).kernel(4).flatten()
    assert_close(causal, double([1.375, 1.0303300859, -1.5, -0.0303300859]), torch.float32)
    both = sampled(False, [1, 2, 3, 0.5, -1], [1, -1, 0.5])
    expected = double([0.5, -0.625, 0.5303300859, 1.375, 0.5, -0.875, -0.5303300859])
    assert_close(both.kernel(4).flatten(), expected, torch.float32)
    x = torch.randn(2, 4, 1, dtype=torch.float64)
    assert_close(both(x)[0], toeplitz(x, both.kernel(4), center=3))


OPTIONS = [{}, {"smooth_spectrum": True, "rpe_activation": "gelu"}, {"num_frequencies": 5}, {"rpe_bias": False}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("length", [1, 2, 11, 32, 40])
def test_equals_the_inverse_transform_of_the_response(length, options):
    """Causal: the kernel's transform has the response as its real part, up to the tap that no output sees."""
    causal = operator(causal=True, horizon=32, **options)
    size = causal.grid_size(length)
    (basis, coefficients), imaginary = causal.response(size)
    assert imaginary is None
    response = basis @ coefficients
    even = torch.fft.irfft(response, n=size, dim=0)
    kernel = torch.cat([even[:1], 2 * even[1 : size // 2], even[size // 2 : size // 2 + 1]])
    assert_close(torch.fft.rfft(kernel, n=size, dim=0).real, response)
    assert_close(causal.kernel(length), kernel[:length])

    both = operator(causal=False, horizon=32, **options)
    real, imaginary = (basis @ coefficients for basis, coefficients in both.response(size))
    assert not imaginary[[0, -1]].any()
    taps = torch.fft.irfft(torch.complex(real, imaginary), n=size, dim=0)
    assert_close(both.kernel(length), taps[torch.arange(1 - length, length)])
    x = torch.randn(2, length, 3, dtype=torch.float64)
    assert_close(both(x)[0], toeplitz(x, both.kernel(length), center=length - 1))


@pytest.mark.parametrize("causal", [True, False])
def test_up_to_the_horizon_the_kernel_is_one(causal):
    tno = operator(causal=causal, horizon=100)
    center = 0 if causal else 127
    longest = tno.coefficients(128)
    for length in (1, 2, 50, 100, 128):
        expected = longest[:length] if causal else longest[center - length + 1 : center + length]
        assert_close(tno.coefficients(length), expected)
    assert error_ratio(tno.coefficients(129)[: len(longest)] if causal else tno.coefficients(129)[1:-1], longest) > 1e-6


def test_beyond_the_horizon_the_kept_kernel_is_that_of_its_own_grid():
    tno = operator(horizon=8)
    with torch.no_grad():
        for length in (30, 5, 9, 17, 16, 40):
            assert_close(tno.kernel(length), tno.coefficients(length), name=f"length {length}")


def test_without_a_horizon_the_kernel_follows_the_length():
    tno = operator(horizon=None)
    assert [tno.grid_size(length) for length in (1, 2, 3, 8, 9)] == [2, 4, 8, 16, 32]
    assert error_ratio(tno.coefficients(9)[:8], tno.coefficients(8)) > 1e-6


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_a_smooth_spectrum_has_coefficients_that_fall_exponentially(activation):
    torch.manual_seed(0)
    options = {"rpe_activation": activation, "rpe_hidden_size": 64, "horizon": 2**12}
    smooth, rough = operator(2, False, smooth_spectrum=True, **options), operator(2, False, **options)

    def falloff(tno, lag):
        kernel = tno.coefficients(1024)
        center = len(kernel) // 2
        near = torch.cat([kernel[center - 3 : center], kernel[center + 1 : center + 4]])
        return kernel[center + lag : center + lag + 16].square().mean().sqrt() / near.square().mean().sqrt()

    assert falloff(smooth, 128) < 1e-12
    assert falloff(rough, 128) > 1e-4


def test_with_a_smooth_spectrum_the_grid_does_not_matter():
    tno = operator(2, True, smooth_spectrum=True, rpe_activation="silu", horizon=None)
    assert_close(tno.coefficients(4096)[:512], tno.coefficients(512))


def test_a_grid_along_the_named_axes():
    unit = FDGTU2D(4, height=3, width=5, activation="identity").double()
    v = torch.randn(2, 3, 5, unit.operator.dim, dtype=torch.float64)

    def dense(tno, n):
        return tno.coefficients(n)[torch.arange(n).unsqueeze(1) - torch.arange(n) + n - 1]

    expected = torch.einsum("wjd,bhjd->bhwd", dense(unit.operator, 5), v)
    expected = 2 * torch.einsum("hid,biwd->bhwd", dense(unit.column_operator, 3), expected)
    unit.branches = lambda x: (torch.ones_like(v).flatten(1, 2), v.flatten(1, 2))
    y, _ = unit(torch.zeros(2, 15, 4, dtype=torch.float64))
    assert_close(y, unit.output_proj(expected.flatten(1, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "`horizon` must be positive or None, got 0"),
        ({"num_frequencies": 1}, "`num_frequencies` must be at least 2, got 1"),
        ({"num_frequencies": 4, "smooth_spectrum": True}, "has no meaning with `num_frequencies`"),
        ({"horizen": 5}, "Did you mean 'horizon'"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        build_mixer({"type": "fd_tno", **options}, 8)
