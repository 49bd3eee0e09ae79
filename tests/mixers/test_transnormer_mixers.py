"""NormAttention and DiagAttention against their formulas, and what the laws do not say."""

import pytest
import torch
from laws import Subject
from support import assert_close

from subquad.mixers import build_mixer
from subquad.ops import rms_norm
from subquad.ops.blocks import from_blocks, to_blocks

NORM = {"type": "norm_attention", "num_heads": 2}
DIAG = {"type": "diag_attention", "num_heads": 2, "block_size": 4}


def encoded(mixer, x, activation=lambda y: y):
    """Queries, keys and values (heads, length, head_dim) of one row `x` (length, dim), positions from 0."""
    q, k, v = (proj(x).unflatten(-1, (2, -1)).transpose(0, 1) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    angles = mixer.positions.angles(torch.arange(len(x)))
    return mixer.positions(activation(q), angles), mixer.positions(activation(k), angles), v


@pytest.mark.parametrize("causal", [True, False])
def test_norm_attention_is_its_formula(causal):
    subject = Subject(NORM, causal)
    mixer, x = subject.mixer, subject.inputs(1, 70)
    q, k, v = encoded(mixer, x[0], torch.nn.functional.elu)
    scores = q @ k.mT
    o = (scores.tril() if causal else scores) @ v
    assert_close(subject(x)[0][0], mixer.output_proj(rms_norm(o.transpose(0, 1).flatten(1))))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", ["relu", "softmax"])
def test_diag_attention_is_its_formula(kernel, causal):
    subject = Subject({**DIAG, "kernel": kernel}, causal)
    mixer, x = subject.mixer, subject.inputs(1, 11)
    outputs = []
    for block in x[0].split(4):
        q, k, v = encoded(mixer, block)
        scores = q @ k.mT / 8**0.5
        future = torch.ones(len(block), len(block), dtype=torch.bool).triu(1)
        if causal:
            scores = scores.masked_fill(future, -torch.inf)
        o = ((scores.softmax(-1) if kernel == "softmax" else scores.relu()) @ v).transpose(0, 1).flatten(1)
        outputs.append(mixer.output_proj(o if kernel == "softmax" else rms_norm(o)))
    assert_close(subject(x)[0][0], torch.cat(outputs))


def test_blocks_are_independent():
    subject = Subject(DIAG, causal=False)
    x = subject.inputs(1, 12)
    changed = torch.cat([subject.inputs(1, 4), x[:, 4:8], subject.inputs(1, 4)], dim=1)
    assert torch.equal(subject(changed)[0][:, 4:8], subject(x)[0][:, 4:8])


def test_values_are_free_of_scale():
    subject = Subject({**NORM, "bias": False}, causal=True)
    x = subject.inputs(1, 9)
    y, _ = subject(x)
    subject.mixer.v_proj.weight.data *= 8
    assert_close(subject(x)[0], y, torch.float32)


@pytest.mark.parametrize("config", [NORM, {**DIAG, "kernel": "softmax"}, DIAG], ids=str)
def test_the_state_does_not_grow(config):
    subject = Subject(config, causal=True)
    sizes = {tuple(s.shape for s in subject(subject.inputs(2, length))[1]) for length in (1, 3, 4, 5, 30)}
    assert len(sizes) == 1


@pytest.mark.parametrize("config", [NORM, {**DIAG, "kernel": "softmax"}, DIAG], ids=str)
def test_padding_between_tokens(config):
    """Wherever padding stands, the row is that of its tokens."""
    subject = Subject(config, causal=True)
    x, mask = subject.inputs(2, 13), torch.rand(2, 13) < 0.6
    mask[:, 5] = True
    y, state = subject(x, mask=mask)
    for row in range(2):
        alone, end = subject(x[row : row + 1, mask[row]])
        assert_close(y[row, mask[row]], alone[0])
        for ours, theirs in zip(state, end, strict=True):
            assert_close(ours[row], theirs[0])


@pytest.mark.parametrize("config", [NORM, {**DIAG, "kernel": "softmax"}, DIAG], ids=str)
def test_one_padded_step_changes_no_state(config):
    subject = Subject(config, causal=True)
    x = subject.inputs(2, 6)
    _, state = subject(x[:, :5])
    _, after = subject(x[:, 5:], state, mask=torch.tensor([[False], [True]]))
    _, moved = subject(x[:, 5:], state)
    for before, now, expected in zip(state, after, moved, strict=True):
        assert_close(now[0], before[0])
        assert_close(now[1], expected[1])


def test_sums_beyond_float16():
    mixer = build_mixer({**NORM, "activation": "1+elu"}, 16).half()
    mixer.v_proj.weight.data *= 1000
    y, state = mixer(torch.randn(1, 400, 16, dtype=torch.float16))
    assert state[0].abs().max() > 65504
    assert torch.isfinite(y).all()


def test_dropout_acts_in_training_only():
    mixer, x = build_mixer({**DIAG, "dropout": 0.5}, 16), torch.randn(1, 8, 16)
    assert not torch.equal(mixer(x)[0], mixer(x)[0])
    mixer.eval()
    assert torch.equal(mixer(x)[0], mixer(x)[0])


def test_cutting_and_joining_are_transposes_of_each_other():
    x = torch.randn(2, 7, 3, 5, dtype=torch.float64, requires_grad=True)
    nowhere = 2**62
    places = torch.tensor([[nowhere, 0, 1, 2, nowhere, 3, 4], [11, 10, 9, 8, 7, 6, nowhere]])
    for chosen, blocks in ((None, 2), (places, 3)):
        cut = to_blocks(x, chosen, blocks, 4)
        back = from_blocks(cut, chosen, 2, 7, 3)
        here = torch.ones(2, 7, dtype=torch.bool) if chosen is None else chosen < nowhere
        assert torch.equal(back[here], x[here])
        assert not back[~here].any()
        weight = torch.randn_like(cut)
        (gradient,) = torch.autograd.grad((cut * weight).sum(), x)
        assert torch.equal(gradient, from_blocks(weight, chosen, 2, 7, 3))
        torch.library.opcheck(torch.ops.subquad.to_blocks.default, (x, chosen, blocks, 4))
        torch.library.opcheck(torch.ops.subquad.from_blocks.default, (cut.detach().requires_grad_(), chosen, 2, 7, 3))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**NORM, "num_heads": 3}, "must divide the 16 features, got 3"),
        ({**NORM, "positions": "lrp"}, "Did you mean 'lrpe'"),
        ({**NORM, "activation": "swish"}, "unknown activation 'swish'"),
        ({**NORM, "norm": "simplermsnorm"}, "Did you mean 'simple_rmsnorm'"),
        ({**DIAG, "block_size": 0}, "`block_size` must be positive, got 0"),
        ({**DIAG, "kernel": "relux"}, "unknown activation 'relux'"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=message):
        build_mixer(config, 16)


def test_hooks_of_the_norm_are_called():
    mixer, called = build_mixer(NORM, 8), []
    mixer.norm.register_forward_hook(lambda *arguments: called.append(True))
    mixer(torch.randn(2, 5, 8))
    assert called
