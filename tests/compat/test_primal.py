"""Primal-Attention as published: the objective's term and its gradients, padding, and what was never published."""

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from support import SHARED, assert_close, error_ratio, shared
from transformers import AutoModelForCausalLM

from subquad.compat import from_reference
from subquad.compat.reference import FAMILIES


def family_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()["family"]


PATHS = sorted((SHARED / "golden").glob("primal-*.safetensors"))
FIXTURES = [path.name for path in PATHS if family_of(path) in FAMILIES] or ["none"]


def training_loss(out, tensors, config):
    """What the published code minimises, under the name that the fixture gives it."""
    if "mean_loss" in tensors:
        errors = F.cross_entropy(out["y"], tensors["label"].flatten(), reduction="none")
        eta = config.get("eta", 0.2)
        return "mean_loss", (errors + eta * out.get("ksvd", 0.0)).mean()
    if "target" in tensors:
        errors = F.cross_entropy(out.logits.flatten(0, 1), tensors["target"].flatten(), ignore_index=1, reduction="sum")
        return "loss", errors + 0.1 * out.ksvd
    return "ksvd", out["ksvd"]


@pytest.mark.parametrize("name", FIXTURES)
def test_gradients_of_the_published_training_loss(golden, name):
    """The loss, its gradient by the inputs, and the two sums of those by the parameters that no renaming changes."""
    meta, tensors = golden.load(shared("golden", name))
    params = golden.part(tensors, "param.")
    module = from_reference(meta["family"], meta["config"], {**params, **golden.part(tensors, "buffer.")})
    inputs = golden.part(tensors, "input.")
    arguments = [inputs[argument] for argument in meta["call"]["args"]]
    for x in arguments:
        x.requires_grad_(x.is_floating_point())
    outputs = golden.part(tensors, "output.")
    kind, loss = training_loss(module(*arguments), {**inputs, **outputs}, meta["config"])
    assert_close(loss, outputs[kind])
    loss.backward()
    expected = golden.part(tensors, "lossgrad.")
    for argument, x in zip(meta["call"]["args"], arguments, strict=True):
        if f"input.{argument}" in expected:
            assert_close(x.grad, expected[f"input.{argument}"])
    gradients = golden.unique_parameters({p: params[p] for p in params if f"param.{p}" in expected})
    ours = [(p, p.grad) for p in module.parameters() if p.grad is not None]
    theirs = [(p, expected[f"param.{name}"]) for name, p in gradients.items()]
    for measure in (lambda p, g: g.square().sum(), lambda p, g: (p * g).abs().sum(), lambda p, g: (p * g).sum()):
        sums = [torch.stack([measure(p, g) for p, g in pairs]).sum() for pairs in (ours, theirs)]
        assert_close(*sums)


def language_model(load, **changes):
    family, config, state, (tokens,), _, _ = load("primal-fairseq_lm-pad-untied")
    return from_reference(family, {**config, **changes}, state), tokens


def test_the_language_model_is_a_hybrid(load):
    model, _ = language_model(load)
    assert [mixer["type"] for mixer in model.config.layer_mixers] == ["softmax", "primal"]
    assert model.config.auxiliary_loss_weights == {"ksvd": 0.1}
    assert model.config.layer_types == ["full_attention", "hybrid"]


def test_padding_is_ignored_until_the_model_is_saved_and_read_back(load, tmp_path):
    """Padding at the end changes nothing, padding at the start leaks into the published primal layer, not into ours."""
    model, tokens = language_model(load)
    model.save_pretrained(tmp_path)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    text = tokens[:1, :6]
    right, left = F.pad(text, (0, 3), value=1), F.pad(text, (3, 0), value=1)
    for candidate in (model, ours):
        alone = candidate(text).logits
        assert_close(candidate(right, attention_mask=right != 1).logits[:, :6], alone)
    assert_close(ours(left, attention_mask=left != 1).logits[:, 3:], alone)
    assert error_ratio(model(left).logits[:, 3:], alone) > 1e-3


def test_training_minimises_the_mean_error_and_the_objective(load):
    model, tokens = language_model(load, dropout=0.0)
    errors = model(tokens, labels=tokens).loss
    outputs = model.train()(tokens, labels=tokens)
    assert_close(outputs.loss, errors + 0.1 * outputs.ksvd)


def test_normformer_switches(load):
    """A post-norm layer with all four switches, around the published attention."""
    family, config, state, (x,), _, _ = load("primal-decoder_layer-post")
    double = {"dtype": torch.float64}
    switches = {
        "c_attn": torch.rand(2, **double) + 0.5,
        "w_resid": torch.rand(16, **double) + 0.5,
        "attn_ln.weight": torch.rand(16, **double) + 0.5,
        "attn_ln.bias": torch.randn(16, **double),
        "ffn_layernorm.weight": torch.rand(24, **double) + 0.5,
        "ffn_layernorm.bias": torch.randn(24, **double),
    }
    names = ("scale_heads", "scale_attn", "scale_fc", "scale_resids")
    layer = from_reference(family, {**config, **dict.fromkeys(names, True)}, state | switches)
    inside = {name.removeprefix("self_attn."): t for name, t in state.items() if name.startswith("self_attn.")}
    attention = from_reference("primal.PrimalAttention", {"embed_dim": 16, "num_heads": 2}, inside)
    state |= switches

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    expected = attention(x)
    mixed = norm("attn_ln", expected["y"] * state["c_attn"].repeat_interleave(8))
    y = norm("self_attn_layer_norm", x + mixed)
    ffn = linear("fc2", norm("ffn_layernorm", linear("fc1", y).relu()))
    y = norm("final_layer_norm", state["w_resid"] * y + ffn)
    out = layer(x)
    assert_close(out["y"], y)
    assert_close(out["ksvd"], expected["ksvd"])


def test_normformer_switches_in_the_language_model(load):
    """Factors of one and the norm of what is normed already change nothing."""
    family, config, state, (tokens,), y, _ = load("primal-fairseq_lm-base-tied")
    for i in range(2):
        state[f"decoder.layers.{i}.c_attn"] = torch.ones(2, dtype=torch.float64)
        state[f"decoder.layers.{i}.w_resid"] = torch.ones(16, dtype=torch.float64)
    model = from_reference(family, {**config, "scale_heads": True, "scale_resids": True}, state)
    assert_close(model(tokens).logits, y, torch.float32)
    with pytest.raises(ValueError, match="NormFormer switches scale_heads, scale_resids"):
        model.save_pretrained("nowhere")


def test_a_class_token_takes_the_place_of_the_mean(load):
    """It is the last token of the vocabulary, in front of the text, whose own last token falls off."""
    family, config, state, (tokens, mask), _, _ = load("primal-lra_former-base")
    model = from_reference(family, {**config, "pooling_mode": "CLS"}, state)
    shifted = torch.cat([torch.full((2, 1), 12), tokens[:, :-1]], dim=1)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 13
    assert torch.equal(model(tokens, mask)["y"], model(changed, mask)["y"])
    mean = from_reference(family, config, state)
    ones = torch.ones_like(mask)
    assert_close(model(tokens, ones)["ksvd"], mean(shifted, ones)["ksvd"])


def test_tied_layers_are_one(load):
    family, config, state, inputs, _, _ = load("primal-lra_former-base")
    first = {name: tensor for name, tensor in state.items() if "transformer_1" not in name}
    tied = {name.replace("transformer_0", "transformer"): tensor for name, tensor in first.items()}
    twice = first | {name.replace("_0.", "_1."): t for name, t in first.items() if "transformer_0" in name}
    ours = from_reference(family, {**config, "tied_weights": True}, tied)(*inputs)
    expected = from_reference(family, config, twice)(*inputs)
    assert_close(ours["y"], expected["y"])
    assert_close(ours["ksvd"], expected["ksvd"])


def test_tied_layers_of_the_hybrid_are_two_of_other_names(load):
    family, config, state, inputs, y, _ = load("primal-lra_trans-base")
    renamed = {name.replace("transformer_", "transformer"): tensor for name, tensor in state.items()}
    assert_close(from_reference(family, {**config, "tied_weights": True}, renamed)(*inputs)["y"], y)


def test_fixed_positions_of_series_are_not_trained(load):
    family, config, state, inputs, y, _ = load("primal-ts_trans-base")
    model = from_reference(family, {**config, "pos_encoding": "fixed"}, state)
    assert_close(model(*inputs)["y"], y)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["positions"]


def test_softmax_baselines(load):
    """Every folder of the published code trains one: series with the layer that the hybrid has below a primal one."""
    _, config, state, (x, mask), _, _ = load("primal-ts_trans-base")
    layer, other = "encoder.attn_layers.0.", "encoder.attn_layers.1."
    state = {name: t for name, t in state.items() if not name.startswith(other)}
    state |= {name.replace(layer, other): t for name, t in state.items() if name.startswith(layer)}
    config |= {"attn_type": "softmax"}
    hybrid, former = (from_reference(f"primal.ts_{kind}", config, state) for kind in ("trans", "former"))
    assert list(hybrid(x, mask)) == ["y"]
    assert_close(hybrid(x, mask)["y"], former(x, mask)["y"])
    _, config, state, inputs, y, _ = load("primal-lra_former-tied-softmax")
    config |= {"learn_pos_emb": False}
    assert_close(from_reference("primal.lra_trans", config, state)(*inputs)["y"], y)


def test_images_need_not_be_square(load):
    """The same patches in one row, and in three."""
    family, config, state, (images,), _, _ = load("primal-cv_vit-base")
    row = torch.cat(images.split(4, dim=2), dim=3)
    wide = from_reference(family, {**config, "img_size": [4, 36]}, state)
    assert_close(wide(row)["y"], from_reference(family, config, state)(images)["y"])


def test_patches_are_averaged_before_the_norm(load):
    """The norm is that of the class token, under another name."""
    family, config, state, (image,), _, _ = load("primal-cv_former-base")
    plain = from_reference(family, config, state)
    average = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t for name, t in state.items()}
    model = from_reference(family, {**config, "global_pool": "avg"}, average)
    last = []
    plain.layers[-1].register_forward_hook(lambda block, args, out: last.append(out[0]))
    plain(image)
    features = F.layer_norm(last[0][:, 1:].mean(1), (16,), state["norm.weight"], state["norm.bias"], 1e-6)
    assert_close(model(image)["y"], F.linear(features, state["head.weight"], state["head.bias"]))


LRA = {
    "embedding_dim": 64,
    "transformer_dim": 64,
    "transformer_hidden_dim": 128,
    "num_layers": 2,
    "num_head": 2,
    "head_dim": 32,
    "trace_no_x": True,
}
LISTOPS = {**LRA, "vocab_size": 32, "num_classes": 10, "max_seq_len": 2048}
LM = {
    "decoder_embed_dim": 512,
    "decoder_ffn_embed_dim": 2048,
    "decoder_layers": 6,
    "decoder_attention_heads": 8,
    "share_decoder_input_output_embed": True,
}
RETRIEVAL = {**LRA, "vocab_size": 512, "num_classes": 2, "max_seq_len": 4096, "model_class": "ModelForSCDual"}


@pytest.mark.parametrize(
    ("family", "config", "count"),
    [
        ("primal.lra_former", {**LISTOPS, "attn_type": "softmax"}, 209_802),
        ("primal.lra_former", {**LISTOPS, "low_rank": 20}, 236_186),
        ("primal.lra_trans", {**LISTOPS, "low_rank": 30}, 243_654),
        ("primal.lra_former", {**RETRIEVAL, "low_rank": 30}, 462_842),
        ("primal.lra_trans", {**RETRIEVAL, "low_rank": 20}, 408_330),
        ("primal.fairseq_lm", {**LM, "vocab_size": 64}, 18_719_280),
        ("primal.cv_vit", {"embed_dim": 384, "num_heads": 6, "low_rank": 96}, 22_142_696),
    ],
)
def test_published_sizes(family, config, count):
    with torch.device("meta"):
        module = FAMILIES[family]({}, **config).module
    assert sum(parameter.numel() for parameter in module.parameters()) == count


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("primal-PrimalAttention-base", {"add_bias_kv": True}, "the published code fails"),
        ("primal-PrimalAttention-base", {"low_rnak": 3}, "Did you mean 'low_rank'"),
        ("primal-PrimalAttention-base", {"low_rank": 4}, "Of another shape: We"),
        ("primal-lra-base", {"head_dim": 4}, "must be `transformer_dim` 16, got 2 · 4"),
        ("primal-lra-base", {"attn_type": "softmax"}, "unknown attn_type 'softmax'"),
        ("primal-lra_former-base", {"pooling_mode": "mean"}, "unknown pooling_mode"),
        ("primal-lra_former-base", {"low_rank": None}, "must have low_rank"),
        ("primal-lra_former-base", {"embedding_dim": 8}, "must be `transformer_dim` 16, got 8"),
        ("primal-fairseq_lm-base-tied", {"decoder_layers": None}, "must have decoder_layers"),
        ("primal-timeseries-base", {"attn_type": "softmax"}, "unknown attn_type 'softmax'"),
        ("primal-ts_former-base", {"attn_type": "linear"}, "unknown attn_type 'linear'"),
        ("primal-ts_former-base", {"pos_encoding": "learned"}, "unknown pos_encoding 'learned'"),
        ("primal-ts_former-base", {"activation": "silu"}, "unknown activation 'silu'"),
        ("primal-cv_vit-base", {"num_ksvd_layer": 4}, "must be 1 … 3, the depth, got 4"),
        ("primal-cv_former-base", {"low_rank": [3]}, "one rank for each of the 2 layers"),
        ("primal-cv_former-base", {"global_pool": "max"}, "unknown global_pool 'max'"),
    ],
)
def test_what_was_never_published(load, name, changes, message):
    family, config, state, _, _, _ = load(name)
    with pytest.raises(ValueError, match=message):
        from_reference(family, {**config, **changes}, state)


def test_one_text_where_a_pair_is_wanted(load):
    family, config, state, (tokens, mask, *_), _, _ = load("primal-lra_former-dual")
    with pytest.raises(ValueError, match="two texts and their masks"):
        from_reference(family, config, state)(tokens, mask)


def test_series_of_another_length(load):
    family, config, state, (x, mask), _, _ = load("primal-ts_former-base")
    with pytest.raises(ValueError, match="series of 14 positions, got 13"):
        from_reference(family, config, state)(x[:, :13], mask[:, :13])
