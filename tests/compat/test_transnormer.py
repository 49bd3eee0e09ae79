"""Published TransNormers: what differs from our mixers, against the formulas written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import assert_close, error_ratio

from subquad import SubquadForCausalLM
from subquad.compat import from_reference

DOUBLE = {"dtype": torch.float64}


def urpe(options, dim, **weights):
    config = {"core_matrix": 1, "embedding_dim": dim, **options}
    return from_reference("transnormer.Urpe", config, {k: v for k, v in weights.items() if v is not None})


def rotated(x, theta):
    """Interleaved pairs of `x` (length, dim) turned by position · theta, written as a loop."""
    y = x.clone()
    for t in range(x.shape[0]):
        for m, angle in enumerate((t * theta).tolist()):
            a, b = x[t, 2 * m], x[t, 2 * m + 1]
            y[t, 2 * m] = a * math.cos(angle) - b * math.sin(angle)
            y[t, 2 * m + 1] = b * math.cos(angle) + a * math.sin(angle)
    return y


@pytest.mark.parametrize("dim", [6, 7, 1])
@pytest.mark.parametrize(
    ("theta_type", "formula"),
    [
        ("a", lambda m, half, n: 10000 ** (-m / half)),
        ("b", lambda m, half, n: math.pi / 2 / n / half * (m + 1)),
        ("c", lambda m, half, n: math.pi / 2 / n / (m + 1)),
    ],
)
def test_fixed_angles(theta_type, formula, dim):
    x = torch.randn(2, 5, dim, **DOUBLE)
    half = dim // 2
    theta = torch.tensor([formula(m, half, 5) for m in range(half)], **DOUBLE)
    y = urpe({"p_matrix": 1, "theta_type": theta_type}, dim)(x)
    for row in range(2):
        assert_close(y[row], rotated(x[row], theta))


@pytest.mark.parametrize("learned", [True, False])
def test_reflections(learned):
    x, theta, v = torch.randn(5, 6, **DOUBLE), torch.rand(1, 1, 3, **DOUBLE), torch.randn(6, **DOUBLE)
    options = {"p_matrix": 3, "theta_learned": True, "householder_learned": learned}
    module = urpe(options, 6, theta=theta, v=v)
    assert module.positions.reflection.requires_grad is learned
    unit = v / (v.norm() + 1e-6) if learned else v
    reflected = x - 2 * torch.outer(x @ unit, unit)
    assert_close(module(x), rotated(reflected, theta.flatten()))


def mixer_weights(dim):
    return {
        f"{name}_proj.{part}": torch.randn(*shape, **DOUBLE)
        for name in ("q", "k", "v", "out")
        for part, shape in (("weight", (dim, dim)), ("bias", (dim,)))
    }


def heads(weights, name, x, num_heads):
    """(heads, length, head_dim) of `x` (length, dim)."""
    y = F.linear(x, weights[f"{name}_proj.weight"], weights[f"{name}_proj.bias"])
    return y.unflatten(-1, (num_heads, -1)).transpose(0, 1)


def finish(weights, o):
    o = o.transpose(0, 1).flatten(1)
    o = o / (o.square().mean(-1, keepdim=True).sqrt() + 1e-8)
    return F.linear(o, weights["out_proj.weight"], weights["out_proj.bias"])


DIAG = {"embed_dim": 8, "num_heads": 2, "chunk_size": 4, "norm_type": "simplermsnorm", "causal": True}


def test_activations_of_masked_scores_that_are_not_zero():
    weights, x = mixer_weights(8), torch.randn(7, 1, 8, **DOUBLE)
    module = from_reference("transnormer.DiagAttention", {**DIAG, "act_fun": "1+elu"}, weights)
    q, k, v = (heads(weights, name, x[:, 0], 2) for name in "qkv")
    blocks = []
    for block in (slice(0, 4), slice(4, 7)):
        scores = (q[:, block] / 2 @ k[:, block].mT).tril()
        blocks.append((1 + F.elu(scores)) @ v[:, block])
    assert_close(module(x)[:, 0], finish(weights, torch.cat(blocks, dim=1)))


@pytest.mark.parametrize("causal", [True, False])
def test_linear_attention_inside_blocks(causal):
    weights, x = mixer_weights(8), torch.randn(7, 1, 8, **DOUBLE)
    config = {**DIAG, "causal": causal, "act_fun": "1+elu", "group_type": "linear_chunk"}
    module = from_reference("transnormer.DiagAttention", config, weights)
    q, k, v = (heads(weights, name, x[:, 0], 2) for name in "qkv")
    q, k = 1 + F.elu(q / 2), 1 + F.elu(k)
    blocks = []
    for block in (slice(0, 4), slice(4, 7)):
        scores = q[:, block] @ k[:, block].mT
        blocks.append((scores.tril() if causal else scores) @ v[:, block])
    assert_close(module(x)[:, 0], finish(weights, torch.cat(blocks, dim=1)))


@pytest.mark.parametrize("causal", [True, False])
def test_linear_attention_inside_blocks_with_a_denominator(causal):
    """Zero rows fill the last block before the feature map: bidirectional, they count."""
    weights, x = mixer_weights(8), torch.randn(7, 1, 8, **DOUBLE)
    config = {**DIAG, "causal": causal, "act_fun": "1+elu", "group_type": "vanilla_linear_chunk"}
    module = from_reference("transnormer.DiagAttention", config, weights)
    q, k, v = (F.pad(heads(weights, name, x[:, 0], 2), (0, 0, 0, 1)) for name in "qkv")
    q, k = 1 + F.elu(q / 2), 1 + F.elu(k)
    blocks = []
    for block in (slice(0, 4), slice(4, 8)):
        scores = q[:, block] @ k[:, block].mT
        scores = scores.tril() if causal else scores
        blocks.append(scores / scores.sum(-1, keepdim=True) @ v[:, block])
    assert_close(module(x)[:, 0], finish(weights, torch.cat(blocks, dim=1)[:, :7]))


@pytest.mark.parametrize("group_type", ["chunk", "linear_chunk"])
def test_norms_without_use_are_in_files(group_type):
    """With `use_softmax` the published code has a norm and applies none, whatever the group."""
    weights, x = mixer_weights(8), torch.randn(7, 1, 8, **DOUBLE)
    norm = {"norm.weight": torch.randn(8, **DOUBLE), "norm.bias": torch.randn(8, **DOUBLE)}
    config = {**DIAG, "norm_type": "layernorm", "act_fun": "1+elu", "use_softmax": True, "group_type": group_type}
    module = from_reference("transnormer.DiagAttention", config, weights | norm)
    q, k, v = (heads(weights, name, x[:, 0], 2) for name in "qkv")
    if group_type == "linear_chunk":
        q, k = 1 + F.elu(q / 2), 1 + F.elu(k)
    blocks = []
    for block in (slice(0, 4), slice(4, 7)):
        scores = q[:, block] @ k[:, block].mT
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        softmax = (scores / 2).masked_fill(later, -torch.inf).softmax(-1)
        blocks.append((softmax if group_type == "chunk" else scores.tril()) @ v[:, block])
    o = torch.cat(blocks, dim=1).transpose(0, 1).flatten(1)
    assert_close(module(x)[:, 0], F.linear(o, weights["out_proj.weight"], weights["out_proj.bias"]))


def test_arguments_that_are_never_read():
    weights, x = mixer_weights(8), torch.randn(7, 1, 8, **DOUBLE)
    module = from_reference("transnormer.DiagAttention", {**DIAG, "max_l": 512, "mem_use_grad": True}, weights)
    assert_close(module(x), from_reference("transnormer.DiagAttention", DIAG, weights)(x))
    with pytest.raises(ValueError, match="unknown option of a TransNormer mixer 'weight_type'"):
        from_reference("transnormer.DiagAttention", {**DIAG, "weight_type": 1}, weights)


@pytest.mark.parametrize("name", ["exp", "sine", "swish"])
def test_published_activations(name):
    functions = {"exp": lambda x: (x - x.amax(-1, keepdim=True)).exp(), "sine": torch.sin, "swish": lambda x: x}
    weights, x = mixer_weights(8), torch.randn(5, 1, 8, **DOUBLE)
    config = {"embed_dim": 8, "num_heads": 1, "act_fun": name, "norm_type": "simplermsnorm", "causal": True}
    module = from_reference("transnormer.NormAttention", config, weights)
    q, k, v = (heads(weights, part, x[:, 0], 1) for part in "qkv")
    q, k = functions[name](q), functions[name](k)
    assert_close(module(x)[:, 0], finish(weights, (q @ k.mT).tril() @ v))


@pytest.fixture
def language_model(load):
    def language_model(name="transnormer-fairseq_lm-t1-pads-w8", **changes):
        family, config, state, (tokens,), y, _ = load(name)
        return from_reference(family, {**config, **changes}, state), tokens, y

    return language_model


def test_padding_is_mixed_but_not_counted_unless_a_mask_is_given(language_model):
    model, tokens, y = language_model()
    assert type(model) is SubquadForCausalLM
    padding = tokens == 1
    assert padding.any()
    assert_close(model(tokens).logits, y, torch.float32)
    masked = model(tokens, attention_mask=(~padding).long()).logits
    for row in range(len(tokens)):
        alone = model(tokens[row : row + 1, ~padding[row]]).logits
        assert_close(masked[row, ~padding[row]], alone[0])
    assert error_ratio(masked, y) > 1e-3


@pytest.mark.parametrize("name", ["transnormer-fairseq_lm-t1", "transnormer-fairseq_lm-t2-untied-w8"])
def test_generation_continues_blocks_and_sums(language_model, name):
    model, tokens, _ = language_model(name)
    for start in (1, 7, 8, 15):
        generated = model.generate(tokens[:, :start], max_new_tokens=10, do_sample=False, eos_token_id=None)
        expected = tokens[:, :start]
        for _ in range(10):
            expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(generated, expected)


def test_what_no_configuration_describes_is_not_saved(language_model, tmp_path):
    model, _, _ = language_model(linear_act_fun="sine")
    with pytest.raises(ValueError, match="token mixers with activation 'sine'"):
        model.save_pretrained(tmp_path)


def test_missing_arguments_have_the_published_defaults(load):
    """No activation of the gated linear units is the identity, as "swish" is; no mixer inside blocks has a norm."""
    family, config, state, (tokens,), y, _ = load("transnormer-fairseq_lm-t2-untied-w8")
    state["decoder.layers.0.self_attn.norm.scale"] = torch.randn(12, **DOUBLE)
    state["decoder.layers.0.self_attn.norm.gate"] = torch.randn(12, **DOUBLE)
    lacking = {key: value for key, value in config.items() if key not in ("glu_act", "local_norm_type", "group_type")}
    assert_close(from_reference(family, lacking, state)(tokens).logits, y, torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_type": 1}, "`weight_type` = 1: no published TransNormer"),
        ({"decoder_attention_types": [2, 3, 1, 1]}, "must be 1 .* or 2 .* got 3"),
        ({"group_type": "window"}, "'window' mixes rows of a batch"),
        ({"decoder_core_matrix": 2}, "`core_matrix` must be 1"),
        ({"decoder_p_matrix": 2}, "`p_matrix` must be 1"),
        ({"decoder_learned_pos": True}, "no published TransNormer language model"),
        ({"linear_act_fun": None}, "must have linear_act_fun"),
    ],
)
def test_models_that_were_never_published(language_model, changes, message):
    with pytest.raises(ValueError, match=message):
        language_model(**changes)
