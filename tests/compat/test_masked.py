"""Published masked language models: what comes back, padding, classifiers, and options beyond the presets."""

import pytest
import torch
from support import assert_close, error_ratio
from transformers import AutoModelForMaskedLM

from subquad import SubquadForMaskedLM
from subquad.compat import from_reference


def test_a_plain_preset_is_our_model(load, tmp_path):
    family, config, state, (tokens,), y, _ = load("tnn-fairseq_roberta-v2-pad")
    model = from_reference(family, config, state)
    assert type(model) is SubquadForMaskedLM
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64)
    for (key, expected), actual in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(actual, expected), key
    # Padding is read off the tokens by the published model, and told by a mask after saving.
    assert_close(again(tokens, attention_mask=tokens != 1).logits, y)
    assert error_ratio(again(tokens).logits, y) > 1e-3


def test_padding_is_zero_once_and_seen_after_that(load):
    family, config, state, (tokens,), _, _ = load("tnn-fairseq_roberta-v2-pad")
    model = from_reference(family, config, state)
    padded = model(torch.nn.functional.pad(tokens[:1], (0, 3), value=1)).logits[:, : tokens.shape[1]]
    assert error_ratio(padded, model(tokens[:1]).logits) > 1e-3
    assert torch.equal(model(tokens, torch.ones_like(tokens)).logits[:2], model(tokens).logits[:2])


def test_classifiers_of_a_finetuned_model(load, tmp_path):
    family, config, state, (tokens,), y, kwargs = load("tnn-fairseq_roberta-v2-head")
    model = from_reference(family, config, state)
    assert_close(model(tokens, **kwargs).logits, y)
    assert model(tokens).logits.shape == (*tokens.shape, config["vocab_size"])
    with pytest.raises(ValueError, match="unknown classification head 'mnli'"):
        model(tokens, classification_head_name="mnli")
    with pytest.raises(ValueError, match="has the classifiers sst, which no `SubquadConfig` describes"):
        model.save_pretrained(tmp_path)
    silent = {key: value for key, value in config.items() if key != "classification_heads"}
    assert_close(from_reference(family, silent, state)(tokens, **kwargs).logits, y)
    relu = from_reference(family, {**config, "pooler_activation_fn": "relu"}, state)
    assert error_ratio(relu(tokens, **kwargs).logits, y) > 1e-3


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"activation_fn": "relu"}, "activation 'relu' in its output layer"),
        ({"causal": True}, "no sight of later positions"),
        ({"par_type": 2}, "`par_type` 2"),
        ({"model": "roberta_tnn"}, "a shortcut of its own"),
        ({"glu_act": "sine"}, "activation 'sine' in the channel mixer"),
    ],
)
def test_options_that_only_published_models_have(load, tmp_path, changes, part):
    family, config, state, (tokens,), y, _ = load("tnn-fairseq_roberta-v2")
    model = from_reference(family, {**config, **changes}, state)
    assert error_ratio(model(tokens).logits, y) > 1e-6
    with pytest.raises(ValueError, match=part):
        model.save_pretrained(tmp_path)


def test_an_encoder_may_be_causal(load):
    family, config, state, (tokens,), _, _ = load("tnn-fairseq_roberta-v2")
    model = from_reference(family, {**config, "causal": True}, state)
    assert_close(model(tokens[:, :5]).logits, model(tokens).logits[:, :5])


def test_missing_arguments_have_the_defaults_of_the_published_code(load):
    family, config, state, (tokens,), y, _ = load("tnn-fairseq_roberta-v2")
    stored = ("vocab_size", "model", "encoder_embed_dim", "encoder_layers", "encoder_attention_heads")
    stored += ("use_decay", "rpe_embedding", "rpe_layers", "norm_type")
    model = from_reference(family, {name: config[name] for name in stored}, state)
    assert_close(model(tokens).logits, y)


def test_names_of_old_fairseq_versions(load):
    family, config, state, (tokens,), y, _ = load("tnn-fairseq_roberta-v2")
    old = {
        name.replace("encoder.", "decoder.", 1).replace("layernorm_embedding", "emb_layer_norm"): tensor
        for name, tensor in state.items()
    }
    assert_close(from_reference(family, config, old)(tokens).logits, y)


def test_learned_and_sinusoidal_positions(load):
    family, config, state, (tokens,), y, _ = load("tnn-fairseq_roberta-v2")
    config = {**config, "no_token_positional_embeddings": False, "max_positions": 20}
    sinusoidal = from_reference(family, {**config, "encoder_learned_pos": False}, state)
    table = sinusoidal.model.positions(torch.arange(22), torch.float64)
    state = {**state, "encoder.sentence_encoder.embed_positions.weight": table}
    learned = from_reference(family, config, state)
    assert_close(learned(tokens).logits, sinusoidal(tokens).logits)
    assert error_ratio(learned(tokens).logits, y) > 1e-3
    with pytest.raises(ValueError, match="beyond the 20 learned positions"):
        learned(torch.full((1, 21), 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "roberta_tnn_v3"}, "unknown model 'roberta_tnn_v3'. Did you mean 'roberta_tnn_v2'"),
        ({"encoder_layers": None}, "must have encoder_layers"),
        ({"adaptive_input": True}, "no published model"),
        ({"activation_fn": "gleu"}, "unknown activation_fn 'gleu'. Did you mean 'gelu'"),
        (
            {"untie_weights_roberta": True, "vocab_size": 51},
            "Of another shape: encoder.sentence_encoder.embed_tokens.weight",
        ),
    ],
)
def test_models_that_were_never_published(load, changes, message):
    family, config, state, _, _, _ = load("tnn-fairseq_roberta-v2")
    with pytest.raises(ValueError, match=message):
        from_reference(family, {**config, **changes}, state)
