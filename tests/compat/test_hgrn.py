"""HGRN as published, beyond what the numbers of the original implementations cover."""

import pytest
import torch
import torch.nn.functional as F
from support import assert_close, error_ratio
from transformers import AutoModelForCausalLM

from subquad import SubquadForCausalLM
from subquad.compat import from_reference
from subquad.layers.norms import EpsilonRMSNorm

DIM, HIDDEN, VOCAB = 6, 8, 9
CONFIG = {"vocab_size": VOCAB, "hidden_size": DIM, "num_hidden_layers": 2, "intermediate_size": HIDDEN}


def fla_weights(layers=2):
    shapes = {
        "model.embeddings.weight": (VOCAB, DIM),
        "model.lower_bounds": (layers, DIM),
        "lm_head.weight": (VOCAB, DIM),
    }
    for layer in range(layers):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.attn.{kind}_proj.weight": (DIM, DIM) for kind in "ifgo"}
        shapes |= {f"{block}.mlp.{kind}_proj.weight": (HIDDEN, DIM) for kind in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj.weight": (DIM, HIDDEN)}
        shapes |= {f"{block}.{norm}.weight": (DIM,) for norm in ("attn_norm", "attn.g_norm", "mlp_norm")}
    shapes["model.norm.weight"] = (DIM,)
    return {
        name: torch.rand(shape, dtype=torch.float64) + (0.5 if "norm" in name else -0.5)
        for name, shape in shapes.items()
    }


def norm(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def fla_logits(weights, tokens, swapped_gate=False, eps=1e-6):
    """The formulas of the model, written out."""
    x = weights["model.embeddings.weight"][tokens]
    shares = weights["model.lower_bounds"].softmax(0)
    for layer, bound in enumerate(shares.cumsum(0) - shares[0]):
        w = {k.removeprefix(f"model.layers.{layer}."): v for k, v in weights.items() if f".layers.{layer}." in k}
        y = norm(x, w["attn_norm.weight"], eps)
        i, f, g = (y @ w[f"attn.{kind}_proj.weight"].T for kind in "ifg")
        decay = bound + (1 - bound) * f.sigmoid()
        inputs = F.silu(i) * (1 - decay)
        h, states = torch.zeros_like(x[:, 0]), []
        for t in range(tokens.shape[1]):
            h = decay[:, t] * h + inputs[:, t]
            states.append(h)
        h = torch.stack(states, 1)
        gated, gate = (g, h) if swapped_gate else (h, g)
        x = x + norm(gated, w["attn.g_norm.weight"], eps) * F.silu(gate) @ w["attn.o_proj.weight"].T
        y = norm(x, w["mlp_norm.weight"], eps)
        branches = F.silu(y @ w["mlp.gate_proj.weight"].T) * (y @ w["mlp.up_proj.weight"].T)
        x = x + branches @ w["mlp.down_proj.weight"].T
    return norm(x, weights["model.norm.weight"], eps) @ weights["lm_head.weight"].T


@pytest.fixture
def tokens():
    return torch.randint(VOCAB, (2, 7))


@pytest.mark.parametrize("options", [{}, {"swapped_gate": True}, {"norm_eps": 0.1}, {"rms_norm_eps": 1e-5}], ids=str)
def test_fla_computes_its_formulas(options, tokens):
    weights = fla_weights()
    model = from_reference("hgrn.fla", CONFIG | options, weights)
    eps = next((value for key, value in options.items() if "eps" in key), 1e-6)
    expected = fla_logits(weights, tokens, options.get("swapped_gate", False), eps)
    assert_close(model(tokens).logits, expected, torch.float32)
    assert error_ratio(fla_logits(weights, tokens, not options.get("swapped_gate", False)), expected) > 1e-3


def test_a_fla_checkpoint_is_our_model(tokens, tmp_path):
    model = from_reference("hgrn.fla", CONFIG, fla_weights())
    assert type(model) is SubquadForCausalLM
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    generated = model.generate(tokens, max_new_tokens=5, do_sample=False, eos_token_id=None)
    for t in range(7, 12):
        assert torch.equal(generated[:, t], model(generated[:, :t]).logits[:, -1].argmax(-1))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"swapped_gate": True}, "a norm of the output gate"),
        ({"use_short_conv": True}, "short convolutions"),
        ({"norm_eps": 0.1}, "epsilon 0.1 in the norms"),
    ],
)
def test_what_no_configuration_describes_is_not_saved(options, part, tmp_path):
    weights = fla_weights()
    if "use_short_conv" in options:
        for layer in range(2):
            weights |= {f"model.layers.{layer}.attn.{kind}_conv1d.weight": torch.rand(DIM, 1, 4) for kind in "if"}
    model = from_reference("hgrn.fla", CONFIG | options, weights)
    with pytest.raises(ValueError, match=part):
        model.save_pretrained(tmp_path)
    prompt = torch.randint(VOCAB, (1, 3))
    generated = model.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None)
    for t in range(3, 7):
        assert torch.equal(generated[:, t], model(generated[:, :t]).logits[:, -1].argmax(-1))


def test_short_convolutions_do_not_cross_padding_or_packed_sequences():
    weights = fla_weights()
    for layer in range(2):
        weights |= {f"model.layers.{layer}.attn.{kind}_conv1d.weight": torch.rand(DIM, 1, 4) for kind in "if"}
    model = from_reference("hgrn.fla", CONFIG | {"use_short_conv": True}, weights)
    first, second = torch.randint(VOCAB, (1, 5)), torch.randint(VOCAB, (1, 8))
    packed = model(torch.cat([first, second], dim=1), cu_seqlens=torch.tensor([0, 5, 13])).logits
    assert_close(packed, torch.cat([model(first).logits, model(second).logits], dim=1))
    padded = torch.cat([torch.randint(VOCAB, (1, 3)), first], dim=1)
    mask = torch.arange(8).unsqueeze(0) >= 3
    assert_close(model(padded, attention_mask=mask).logits[:, 3:], model(first).logits)
    with pytest.raises(ValueError, match="no state of short convolutions is kept"):
        model(second, past_key_values=model(first, use_cache=True).past_key_values)


def test_both_branches_of_old_files_are_one_matrix(tokens):
    weights = fla_weights()
    expected = from_reference("hgrn.fla", CONFIG, weights)(tokens).logits
    for layer in range(2):
        mlp = f"model.layers.{layer}.mlp"
        weights[f"{mlp}.gate_proj.weight"] = torch.cat(
            [weights[f"{mlp}.gate_proj.weight"], weights.pop(f"{mlp}.up_proj.weight")]
        )
    assert torch.equal(from_reference("hgrn.fla", CONFIG, weights)(tokens).logits, expected)


def test_norms_without_weights(tokens):
    weights = fla_weights()
    for layer in range(2):
        weights[f"model.layers.{layer}.attn.g_norm.weight"] = torch.ones(DIM, dtype=torch.float64)
    expected = fla_logits(weights, tokens)
    without = {name: weight for name, weight in weights.items() if "g_norm" not in name}
    model = from_reference("hgrn.fla", CONFIG | {"elementwise_affine": False}, without)
    assert_close(model(tokens).logits, expected, torch.float32)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == sum(weight.numel() for weight in without.values())


def test_tied_weights_and_default_width(tokens):
    weights = fla_weights()
    weights["lm_head.weight"] = weights["model.embeddings.weight"]
    model = from_reference("hgrn.fla", CONFIG | {"tie_word_embeddings": True}, weights)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert_close(model(tokens).logits, fla_logits(weights, tokens), torch.float32)
    with pytest.raises(ValueError, match=r"gate_proj.weight \(8, 6\), expected \(256, 6\)"):
        from_reference("hgrn.fla", CONFIG | {"intermediate_size": None}, weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expand_ratio": 2}, "needs `use_lower_bound` = False"),
        ({"attn": {"layers": [0]}}, "no published HGRN has attention layers"),
        ({"hidden_act": "gelu"}, "must be 'swish' or 'silu'"),
    ],
)
def test_configurations_that_were_never_published(options, message):
    with pytest.raises(ValueError, match=message):
        from_reference("hgrn.fla", CONFIG | options, fla_weights())


def test_a_fla_checkpoint_of_hgrn2_is_our_model(tokens, tmp_path):
    weights = fla_weights()
    for layer in range(2):
        weights[f"model.layers.{layer}.attn.q_proj.weight"] = weights.pop(f"model.layers.{layer}.attn.g_proj.weight")
    model = from_reference("hgrn2.fla", CONFIG | {"expand_ratio": 3}, weights)
    by_heads = from_reference("hgrn2.fla", CONFIG | {"expand_ratio": None, "num_heads": 2}, weights)
    assert torch.equal(by_heads(tokens).logits, model(tokens).logits)
    assert type(model) is SubquadForCausalLM
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    other = from_reference("hgrn2.fla", CONFIG | {"expand_ratio": 3, "norm_eps": 0.1}, weights)
    assert {module.eps for module in other.modules() if isinstance(module, EpsilonRMSNorm)} == {0.1, 1e-5}
    with pytest.raises(ValueError, match="3 heads of 3 are no `hidden_size` = 6"):
        from_reference("hgrn2.fla", CONFIG | {"expand_ratio": 3, "num_heads": 3}, weights)
    with pytest.raises(ValueError, match="no published HGRN2 has short convolutions"):
        from_reference("hgrn2.fla", CONFIG | {"use_short_conv": True}, weights)


def long_range_weights(dim, layers):
    shapes = {"lower_bounds": (layers, dim), "norm.norm.weight": (dim,), "norm.norm.bias": (dim,)}
    maps = {"input_proj": 2 * dim, "lambda_proj": dim, "gate": 2 * dim}
    for j in range(2 * layers):
        shapes |= {f"layers.{j}.norm.norm.{kind}": (dim,) for kind in ("weight", "bias")}
    for j in range(0, 2 * layers, 2):
        hgru = f"layers.{j}.layer.hgru"
        for name, width in maps.items():
            shapes |= {f"{hgru}.{name}.weight": (width, dim), f"{hgru}.{name}.bias": (width,)}
        shapes |= {f"{hgru}.out_proj.weight": (dim, 2 * dim), f"{hgru}.out_proj.bias": (dim,)}
        shapes |= {f"{hgru}.norm.{kind}": (2 * dim,) for kind in ("weight", "bias")}
        shapes |= {f"{hgru}.theta_{direction}": (1, 1, dim) for direction in ("forward", "reverse")}
        glu = f"layers.{j + 1}.layer"
        shapes |= {
            f"{glu}.l{i}.{kind}": (dim,) * (1 + (kind == "weight")) for i in (1, 2, 3) for kind in ("weight", "bias")
        }
    return {name: torch.rand(shape, dtype=torch.float64) - 0.3 for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", ["hgru1d", "hgru2d"])
def test_a_whole_long_range_model_is_its_parts(kind):
    layer = [{"_name_": kind, "param_share": False}, {"_name_": "glu", "glu_expand_ratio": 1}]
    model = {"d_model": DIM, "n_layers": 2, "layer": layer, "norm": "layer", "dropout": 0.1}
    weights = long_range_weights(DIM, 2)
    table, head = torch.randn(VOCAB, DIM, dtype=torch.float64), torch.randn(3, DIM, dtype=torch.float64)
    whole = {f"model.{name}": weight for name, weight in weights.items()}
    whole |= {"encoder.weight": table, "decoder.output_transform.weight": head}
    whole |= {"decoder.output_transform.bias": torch.zeros(3, dtype=torch.float64)}
    classifier = from_reference(
        "hgrn.lra",
        {
            "dataset": {"n_tokens": VOCAB, "d_output": 3},
            "encoder": "embedding",
            "model": model,
            "decoder": {"_name_": "sequence", "mode": "pool"},
        },
        whole,
    )
    backbone = from_reference("hgrn.lra", model, weights)
    tokens = torch.randint(VOCAB, (2, 12))
    assert_close(classifier(tokens), backbone(table[tokens]).mean(1) @ head.T)
    with pytest.raises(ValueError, match="Did you mean 'hgru1d'"):
        from_reference("hgrn.lra", model | {"layer": [{"_name_": "hgrn1d"}, layer[1]]}, weights)


@pytest.mark.parametrize("family", ["hgrn.Hgru1dV2", "hgrn.Hgru1dV3"])
def test_options_of_the_later_versions(family):
    with pytest.raises(ValueError, match="Did you mean 'gate_dim'"):
        from_reference(family, {"embed_dim": 8, "gate_dims": 4}, {})
    with pytest.raises(ValueError, match="must have embed_dim"):
        from_reference(family, {}, {})
