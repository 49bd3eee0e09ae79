"""Layers against their formulas."""

import math

import pytest
import torch
from support import assert_close

from subquad.layers import (
    FFN,
    GLU,
    LowerBounds,
    RelativePositionEncoder,
    SinusoidalPositions,
    activation,
    apply_rotary,
    build_channel_mixer,
    build_norm,
)


def randomise(module):
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter)
    return module.double()


def rms(x):
    return x.square().mean(-1, keepdim=True).sqrt()


NORMS = {
    "simple_rmsnorm": lambda m, x: x / (rms(x) + 1e-8),
    "rmsnorm": lambda m, x: m.weight * x / (rms(x) + 1e-8),
    "gated_rmsnorm": lambda m, x: m.weight * x / (rms(x) + 1e-8) * torch.sigmoid(m.gate * x),
    "scalenorm": lambda m, x: m.weight * x / (rms(x) ** 2 + 1e-5).sqrt(),
    "layernorm": lambda m, x: (
        m.weight * (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() + m.bias
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name):
    norm = randomise(build_norm(name, 12))
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    assert_close(norm(x), NORMS[name](norm, x))


def test_gradient_of_the_simple_rms_norm():
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    norm = build_norm("simple_rmsnorm", 5)
    assert torch.autograd.gradcheck(norm, x)
    zero = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm(zero).sum(), zero)
    assert_close(gradient, torch.full_like(zero, 1e8))


@pytest.mark.parametrize("name", NORMS)
def test_norms_in_half_precision(name):
    norm = build_norm(name, 64)
    x = 1e-3 * torch.randn(4, 64)
    expected = norm(x)
    for dtype in (torch.float16, torch.bfloat16):
        y = norm.to(dtype)(x.to(dtype))
        assert y.dtype == dtype
        assert_close(y.float(), expected, torch.bfloat16)


def test_a_zero_vector_has_a_finite_norm_and_gradient():
    x = torch.zeros(2, 8, requires_grad=True)
    y = build_norm("simple_rmsnorm", 8)(x)
    y.sum().backward()
    assert not y.any()
    assert torch.isfinite(x.grad).all()


def test_no_norm_is_the_identity():
    x = torch.randn(2, 3)
    assert build_norm(None, 3)(x) is x


def test_glu_and_ffn():
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    glu = randomise(GLU(6, 9))
    gate, up = glu.gate_proj(x), glu.up_proj(x)
    assert_close(glu(x), glu.down_proj(gate * torch.sigmoid(gate) * up))
    ffn = randomise(FFN(6, 9))
    assert_close(ffn(x), ffn.down_proj(ffn.up_proj(x).clamp_min(0)))


def test_dropout_of_channel_mixers_acts_in_training_only():
    glu = GLU(6, 50, dropout=0.5)
    x = torch.randn(4, 6)
    assert not torch.equal(glu(x), glu(x))
    glu.eval()
    assert torch.equal(glu(x), glu(x))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "gluu", "hidden_size": 3}, "Did you mean 'glu'"),
        ({"type": "glu"}, "hidden_size"),
        ({"type": "glu", "hidden_size": 3, "activatoin": "silu"}, "Did you mean 'activation'"),
        ({"type": "glu", "hidden_size": 3, "activation": "swiglu"}, "unknown activation 'swiglu'"),
        ({"hidden_size": 3}, "described by"),
    ],
)
def test_channel_mixer_errors(config, message):
    with pytest.raises(ValueError, match=message):
        build_channel_mixer(config, 6)


def test_activations():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    assert_close(activation("2+elu")(x), torch.where(x > 0, x + 2, x.exp() + 1))
    assert_close(activation("1+elu")(x), torch.where(x > 0, x + 1, x.exp()))
    assert_close(activation("gelu")(x), x * 0.5 * (1 + torch.erf(x / math.sqrt(2))))
    assert activation("identity")(x) is x


@pytest.mark.parametrize("residual", [False, True])
def test_relative_position_encoder(residual):
    encoder = randomise(RelativePositionEncoder(7, 8, num_layers=2, residual=residual))
    positions = torch.tensor([-3.0, 0.0, 1.0, 1000.0], dtype=torch.float64)
    z = positions.unsqueeze(-1) * encoder.input_proj.weight.T + encoder.input_proj.bias
    for layer in encoder.layers:
        mapped = layer((z / (rms(z) + 1e-8)).relu())
        z = z + mapped if residual else mapped
    assert_close(encoder(positions), encoder.output_proj((z / (rms(z) + 1e-8)).relu()))


def test_coefficients_tend_to_a_constant_at_long_lags():
    encoder = randomise(RelativePositionEncoder(7, 8, num_layers=2))
    far, farther = encoder(torch.tensor([1e7, 1e8], dtype=torch.float64))
    assert (far - farther).abs().max() < 1e-5 * far.abs().max()


def test_positions_stay_exact_under_autocast_and_in_bfloat16():
    encoder = RelativePositionEncoder(7, 16)
    positions = torch.arange(3000, 3010)
    expected = encoder(positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(positions), expected)
    rounded = RelativePositionEncoder(7, 16).bfloat16()
    rounded.load_state_dict(encoder.state_dict())
    coefficients = rounded(positions)
    assert coefficients.dtype == torch.float32
    assert (coefficients[1:] != coefficients[:-1]).any(dim=-1).all(), "neighbouring positions are distinguished"


def test_lower_bounds():
    bounds = randomise(LowerBounds(5, 3))
    values = torch.stack([layer["lower_bound"] for layer in bounds()])
    shares = bounds.weight.exp() / bounds.weight.exp().sum(0)
    assert_close(values[1:], shares[1:].cumsum(0))
    assert not values[0].any()
    assert (values.diff(dim=0) >= 0).all()
    assert (values < 1).all()
    assert_close(torch.stack([b["lower_bound"] for b in LowerBounds(4, 2)()])[:, 0], torch.arange(4) / 4)


def test_lower_bounds_are_not_rounded_to_half_precision():
    values = LowerBounds(300, 2).bfloat16()()
    assert values[-1]["lower_bound"].dtype == torch.float32
    assert 0.996 < values[-1]["lower_bound"][0] < 0.997


def test_sinusoidal_positions():
    positions = SinusoidalPositions(9)(torch.tensor([[-1, 0, 3]]))
    assert positions.shape == (1, 3, 9)
    assert not positions[0, 0].any()
    frequencies = torch.tensor([10000.0 ** (-k / 3) for k in range(4)])
    expected = torch.cat([(3 * frequencies).sin(), (3 * frequencies).cos(), torch.zeros(1)])
    assert_close(positions[0, 2], expected)
    with pytest.raises(ValueError, match="at least 4"):
        SinusoidalPositions(3)


def test_rotary_positions_are_relative():
    q, k = torch.randn(2, 1, 1, 6, 8, dtype=torch.float64)
    here = apply_rotary(q) @ apply_rotary(k).mT
    there = apply_rotary(q, offset=1000) @ apply_rotary(k, offset=1000).mT
    assert_close(here, there)
    assert_close(apply_rotary(q)[..., :1, :], q[..., :1, :])
    assert_close(apply_rotary(q).norm(dim=-1), q.norm(dim=-1))
