"""The spectral filter by FFT against the Toeplitz matrix of its taps, forward and backward."""

import pytest
import torch
from support import assert_close

from subquad.ops import spectral_filter, toeplitz


def make(batch, length, dim, num_frequencies, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, length, dim), (num_frequencies, dim), (num_frequencies, dim)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    tensors[2][[0, -1]] = 0
    return [t.requires_grad_() for t in tensors]


def run(tensors, **options):
    y = spectral_filter(*tensors, **options)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return y, *torch.autograd.grad((y * cotangent).sum(), tensors)


@pytest.mark.parametrize(("length", "num_frequencies"), [(1, 2), (1, 9), (2, 3), (5, 9), (63, 65), (64, 65), (65, 129)])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_reference(batch, length, num_frequencies):
    tensors = make(batch, length, 3, num_frequencies)
    names = ("y", "gradient of x", "gradient of the real part", "gradient of the imaginary part")
    for name, a, b in zip(names, run(tensors), run(tensors, backend="reference"), strict=True):
        assert_close(a, b, name=name)


def test_is_a_toeplitz_product():
    x, real, imaginary = make(2, 7, 3, 9)
    taps = torch.fft.irfft(torch.complex(real, imaginary), dim=0)[torch.arange(-6, 7)]
    for backend in ("torch", "reference"):
        assert_close(spectral_filter(x, real, imaginary, backend=backend), toeplitz(x, taps, center=6))


def test_any_layout_is_taken_and_channels_come_first_in_the_result():
    x, real, imaginary = make(2, 7, 3, 9)
    expected = spectral_filter(x, real, imaginary, backend="reference")
    for order in ((0, 2, 1), (2, 0, 1)):
        back = [order.index(axis) for axis in range(3)]
        y = spectral_filter(x.permute(order).contiguous().permute(back), real, imaginary)
        assert y.permute(2, 0, 1).is_contiguous()
        assert_close(y, expected)


def test_channels_are_computed_in_blocks(monkeypatch):
    monkeypatch.setattr("subquad.ops.fourier.BLOCK_NUMBERS", 2 * 3 * 16)  # two channels at a time
    tensors = make(3, 7, 5, 9)
    weight = torch.randn(3, 7, 5, dtype=torch.float64)
    ours, expected = (
        (y, *torch.autograd.grad(y, tensors, weight))
        for y in (spectral_filter(*tensors, backend=backend) for backend in ("torch", "reference"))
    )
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b)


def test_half_precision_is_accumulated_in_float32():
    x, real, imaginary = make(2, 700, 4, 1025, torch.float32)
    x = x.detach().bfloat16().requires_grad_()
    y = spectral_filter(x, real, imaginary)
    assert y.dtype == torch.bfloat16
    assert_close(y.double(), spectral_filter(x.double(), real.double(), imaginary.double()), torch.bfloat16)
    y.float().sum().backward()
    assert (x.grad.dtype, real.grad.dtype) == (torch.bfloat16, torch.float32)


def test_gradcheck_of_the_reference():
    assert torch.autograd.gradcheck(lambda *t: spectral_filter(*t, backend="reference"), make(2, 3, 2, 5))


def test_nothing_to_filter():
    y, grad_x, *_ = run(make(0, 9, 3, 17))
    assert y.shape == grad_x.shape == (0, 9, 3)


def test_the_registered_operator_is_sound():
    torch.library.opcheck(torch.ops.subquad.spectral_filter.default, make(2, 7, 3, 9))


def test_compiles_with_inductor():
    torch.compiler.reset()
    tensors = make(2, 24, 4, 33, torch.float32)

    def model(x, real, imaginary):
        return spectral_filter(x.sigmoid(), real, imaginary).square().sum()

    compiled = torch.compile(model, fullgraph=True)
    assert_close(compiled(*tensors), model(*tensors))
    ours, expected = (torch.autograd.grad(f(*tensors), tensors) for f in (compiled, model))
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b)


def test_a_second_derivative_is_refused():
    tensors = make(1, 8, 2, 9)
    (gradient,) = torch.autograd.grad(spectral_filter(*tensors).square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="spectral_filter has gradients of first order only"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("x", "real", "imaginary", "options", "message"),
    [
        ((2, 3), (5, 3), (5, 3), {}, r"`x` must be \(batch, length, dim\)"),
        ((2, 0, 3), (5, 3), (5, 3), {}, "length > 0"),
        ((2, 4, 3), (5, 2), (5, 2), {}, r"must be \(num_frequencies, 3\), got \(5, 2\)"),
        ((2, 4, 3), (5, 3), (4, 3), {}, r"got \(5, 3\) and \(4, 3\)"),
        ((2, 4, 3), (4, 3), (4, 3), {}, "4 inputs need at least 5 frequencies, got 4"),
        ((2, 4, 3), (5, 3), (5, 3), {"backend": "numba"}, "spectral_filter has no numba implementation"),
    ],
)
def test_errors(x, real, imaginary, options, message):
    with pytest.raises(ValueError, match=message):
        spectral_filter(torch.ones(x), torch.ones(real), torch.ones(imaginary), **options)
