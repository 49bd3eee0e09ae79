"""Published modules: the numbers of the original implementations, and what is said of checkpoints that do not fit."""

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from support import SHARED, assert_close, error_ratio, shared
from transformers import AutoModelForCausalLM

from subquad import SubquadForCausalLM
from subquad.compat import from_reference
from subquad.compat.reference import FAMILIES


def family_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()["family"]


GOLDEN = SHARED / "golden"
FIXTURES = [path.name for path in sorted(GOLDEN.glob("*.safetensors")) if family_of(path) in FAMILIES] or ["none"]


def output(module, inputs, **kwargs):
    out = module(*inputs, **kwargs)
    if isinstance(out, torch.Tensor):
        return out
    return out.logits if hasattr(out, "logits") else out["y"]


@pytest.mark.parametrize("name", FIXTURES)
def test_golden(golden, name):
    golden.check(shared("golden", name), from_reference)


@pytest.mark.parametrize("name", FIXTURES)
def test_golden_in_float32(golden, load, name):
    family, config, state, inputs, y, kwargs = load(name.removesuffix(".safetensors"))
    module = from_reference(family, config, {key: value.float() for key, value in state.items()})
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    inputs = [x.float() if x.is_floating_point() else x for x in inputs]
    meta, _ = golden.load(shared("golden", name))
    module.train(meta["call"]["mode"] == "train")
    assert_close(output(module, inputs, **kwargs), y, torch.float32)


PLAIN = [
    "tnn-fairseq_lm-v2-pre",
    "hgrn-fairseq_lm-base-tied",
    "hgrn-fairseq_lm-project",
    "transformer-fairseq_lm-base-tied",
    "primal-fairseq_lm-base-tied",
    "transnormer-fairseq_lm-t1",
    "transnormer-fairseq_lm-t2-untied-w8",
]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_preset_is_our_model(load, name, tmp_path):
    family, config, state, (tokens,), _, _ = load(name)
    model = from_reference(family, config, state)
    assert type(model) is SubquadForCausalLM
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    for (key, expected), actual in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(actual, expected), key
    # Fairseq's own table of positions is float32 in a model of any precision, ours is not.
    dtype = torch.float32 if family in ("transformer.fairseq_lm", "primal.fairseq_lm") else torch.float64
    assert_close(again(tokens).logits, model(tokens).logits, dtype)


def greedy(model, tokens, steps):
    for _ in range(steps):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in PLAIN),
        ("tnn-fairseq_lm-v1-decay", {}),
        ("tnn-fairseq_lm-v2-ada", {}),
        ("tnn-fairseq_lm-v2-pre", {"par_type": 2}),
        ("tnn-fairseq_lm-v2-pre", {"normalize": True}),
    ],
)
def test_generation_is_full_recomputation(load, name, changes):
    family, config, state, (tokens,), _, _ = load(name)
    model = from_reference(family, {**config, **changes}, state)
    tokens = tokens[:, :5]
    generated = model.generate(tokens, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(generated, greedy(model, tokens, 6))


def test_padding_is_read_off_the_tokens_unless_a_mask_is_given(load):
    family, config, state, (tokens,), _, _ = load("transformer-fairseq_lm-pad-untied")
    model = from_reference(family, config, state)
    masked = model(tokens).logits
    assert torch.equal(model(tokens, attention_mask=tokens != 1).logits, masked)
    short = model(tokens[2:, :2]).logits
    assert_close(masked[2:, :2], short)
    assert error_ratio(model(tokens, torch.ones_like(tokens)).logits, masked) > 1e-3


def test_padding_has_a_learned_position_of_its_own(load):
    family, config, state, (tokens,), _, _ = load("transformer-fairseq_lm-pre-learnedpos")
    tokens = tokens.clone()
    tokens[0, -3:] = 1
    state["decoder.embed_positions.weight"][1] = 0
    plain = from_reference(family, config, state)
    vector = torch.randn(16, dtype=torch.float64)
    state["decoder.embed_positions.weight"][1] = vector
    padded = from_reference(family, config, state)
    assert type(plain) is SubquadForCausalLM
    assert_close(padded(tokens).logits[1], plain(tokens).logits[1])
    assert_close(padded(tokens).logits[0, :-3], plain(tokens).logits[0, :-3])
    # The same vector in the token embedding of padding does the same, as long as nothing else reads that row.
    state["decoder.embed_positions.weight"][1] = 0
    state["decoder.output_projection.weight"] = state["decoder.embed_tokens.weight"].clone()
    state["decoder.embed_tokens.weight"][1] += vector / 4
    config = {**config, "share_decoder_input_output_embed": False}
    assert_close(padded(tokens).logits, from_reference(family, config, state)(tokens).logits)


def test_names_of_old_fairseq_versions(load):
    family, config, state, (tokens,), y, _ = load("transformer-fairseq_lm-pre-learnedpos")
    old = {"decoder.embed_positions._float_tensor": torch.zeros(1)}
    for name, tensor in state.items():
        if "q_proj" in name:
            stacked = torch.cat([state[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"])
            old[name.replace("q_proj.", "in_proj_")] = stacked
        elif "k_proj" not in name and "v_proj" not in name and "output_projection" not in name:
            name = name.replace("self_attn_layer_norm", "layer_norms.0").replace("final_layer_norm", "layer_norms.2")
            old[name] = tensor
    assert_close(output(from_reference(family, config, old), [tokens]), y)

    untied = {**config, "share_decoder_input_output_embed": False}
    old["decoder.embed_out"] = state["decoder.output_projection.weight"]
    assert_close(output(from_reference(family, untied, old), [tokens]), y)


def test_the_first_versions_have_no_final_norm(load):
    family, config, state, (tokens,), _, _ = load("tnn-fairseq_lm-v2-pre")
    old = from_reference(family, config, {**state, "decoder.version": torch.tensor([2.0])})
    without = {name: tensor for name, tensor in state.items() if "decoder.layer_norm" not in name}
    new = from_reference(family, {**config, "no_decoder_final_norm": True}, without)
    assert torch.equal(old(tokens).logits, new(tokens).logits)


def test_untied_adaptive_softmax(load):
    """The same numbers as the tied one from copies of its weights, in the untied layout."""
    family, config, state, (tokens,), y, _ = load("tnn-fairseq_lm-v2-ada")
    softmax = "decoder.adaptive_softmax"
    head = [state.pop(f"{softmax}.head.{part}.weight") for part in ("word_proj", "class_proj")]
    state[f"{softmax}.head.weight"] = torch.cat(head)
    for i in range(2):
        state[f"{softmax}.tail.{i}.0.weight"] = state[f"{softmax}.tail.{i}.0.weight"].T.contiguous()
    untied = {**config, "tie_adaptive_weights": False, "tie_adaptive_proj": False}
    model = from_reference(family, untied, state)
    assert_close(model(tokens).logits, y)
    assert_close(model(tokens).logits.exp().sum(-1), torch.ones(tokens.shape, dtype=torch.float64))


def test_adaptive_input_alone(load):
    """Bands of the embedding are slices of one table where all maps are the same."""
    family, config, state, (tokens,), _, _ = load("tnn-fairseq_lm-v2-pre")
    table = state.pop("decoder.embed_tokens.weight")
    identity = torch.eye(32, dtype=torch.float64)
    for i, (start, end) in enumerate([(0, 10), (10, 30), (30, 50)]):
        state[f"decoder.embed_tokens.embeddings.{i}.0.weight"] = table[start:end]
        state[f"decoder.embed_tokens.embeddings.{i}.1.weight"] = identity
    changes = {"adaptive_input": True, "adaptive_input_cutoff": "10,30", "adaptive_input_factor": 1}
    adaptive = from_reference(family, {**config, **changes, "share_decoder_input_output_embed": False}, state)
    assert_close(adaptive(tokens).logits, output(from_reference(*load("tnn-fairseq_lm-v2-pre")[:3]), [tokens]))


@pytest.mark.parametrize("pre_norm", [True, False])
def test_normformer_switches(load, pre_norm):
    """A layer with all four switches, against the formulas written out."""
    family, config, state, (x,), _, _ = load("transformer-decoder_layer-post")
    double = {"dtype": torch.float64}
    state |= {
        "c_attn": torch.rand(2, **double) + 0.5,
        "w_resid": torch.rand(16, **double) + 0.5,
        "attn_ln.weight": torch.rand(16, **double) + 0.5,
        "attn_ln.bias": torch.randn(16, **double),
        "ffn_layernorm.weight": torch.rand(24, **double) + 0.5,
        "ffn_layernorm.bias": torch.randn(24, **double),
    }
    switches = {"scale_heads": True, "scale_attn": True, "scale_fc": True, "scale_resids": True}
    layer = from_reference(family, {**config, **switches, "decoder_normalize_before": pre_norm}, state)

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def attention(x):
        q, k, v = (linear(f"self_attn.{p}_proj", x).unflatten(-1, (2, 8)).transpose(1, 2) for p in "qkv")
        scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
        y = linear("self_attn.out_proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return norm("attn_ln", y * state["c_attn"].repeat_interleave(8))

    def ffn(x):
        return linear("fc2", norm("ffn_layernorm", linear("fc1", x).relu()))

    y = x.transpose(0, 1)
    if pre_norm:
        y = y + attention(norm("self_attn_layer_norm", y))
        y = state["w_resid"] * y + ffn(norm("final_layer_norm", y))
    else:
        y = norm("self_attn_layer_norm", y + attention(y))
        y = norm("final_layer_norm", state["w_resid"] * y + ffn(y))
    assert_close(layer(x), y.transpose(0, 1))


def test_fairseq_exp_subtracts_the_maximum_of_each_head(load):
    """Two heads: the largest coefficient of each, at every lag, is one."""
    family, config, state, _, _, _ = load("tnn-fairseq_lm-v2-acttype-exp")
    for name in state:
        if name.endswith("gamma"):
            state[name] = state[name].reshape(2, 1, 24)
    model = from_reference(family, {**config, "decoder_attention_heads": 2}, state)
    tno = model.model.layers[0].token_mixer.operator
    raw = tno.rpe(tno.positions(7)) * tno.decay ** tno.lags(7).unsqueeze(-1)
    first, second = (half - half.amax(-1, keepdim=True) for half in raw.chunk(2, dim=-1))
    assert_close(tno.kernel(7), torch.cat([first, second], dim=-1).exp())


def test_a_toeplitz_operator_along_another_axis(load):
    family, config, state, (x,), _, _ = load("tnn-Tno-noncausal")
    tno = from_reference(family, config, state)
    image = torch.randn(2, 2, 5, *x.shape[-2:], dtype=torch.float64)
    rows = torch.stack([tno(image[:, :, i]) for i in range(5)], dim=2)
    assert_close(tno(image), rows)
    assert_close(tno(image.transpose(2, 3), dim=-3), rows.transpose(2, 3))


class TestErrors:
    def test_everything_that_does_not_fit_is_listed_at_once(self, load):
        family, config, state, _, _, _ = load("hgrn-fairseq_lm-base-tied")
        del state["decoder.lower_bounds"]
        state["decoder.layers.0.glu.l1.weight"] = torch.zeros(3, 3)
        state["decoder.layers.1.glu.l3.bias"][2] = torch.nan
        state["decoder.layers.7.surprise"] = torch.zeros(1)
        with pytest.raises(ValueError, match="do not fit") as error:
            from_reference(family, config, state)
        for part in (
            "Missing: decoder.lower_bounds (3, 8)",
            "unexpected: decoder.layers.7.surprise",
            "of another shape: decoder.layers.0.glu.l1.weight (3, 3), expected (16, 8)",
            "not finite: decoder.layers.1.glu.l3.bias",
        ):
            assert part in str(error.value)

    def test_no_empty_module_is_returned_for_no_weights(self):
        with pytest.raises(ValueError, match=r"Missing: scale \(4,\)"):
            from_reference("tnn.norm", {"norm_type": "rmsnorm", "d": 4}, {})

    def test_unknown_family(self):
        with pytest.raises(ValueError, match=r"reference family 'tnn.fairseq'. Did you mean 'tnn.fairseq_lm'\?"):
            from_reference("tnn.fairseq", {}, {})

    @pytest.mark.parametrize(
        ("family", "config", "message"),
        [
            ("tnn.norm", {"norm_type": "rmsnorm"}, "must have d"),
            ("tnn.norm", {"norm_type": "rmsnorm", "d": 4, "biass": True}, "Did you mean 'bias'"),
            ("tnn.norm", {"norm_type": "rmsnorm", "d": 4, "p": 0.1}, "measures none of the 4 entries"),
            ("tnn.Tno", {"use_decay": True, "use_multi_decay": True}, "exclude each other"),
            ("tnn.Tno", {"par_type": 3, "causal": False}, "not defined for negative lags"),
            ("tnn.Tno", {"par_type": 4}, "must be 1, 2 or 3, got 4"),
            ("tnn.Gtu", {"embed_dim": 8, "num_heads": 1, "resi_param": True}, "cannot be true"),
            ("tnn.Gtu", {"embed_dim": 8, "num_heads": 1, "expand_ration": 2}, "Did you mean 'expand_ratio'"),
            ("tnn.Gtu", {"embed_dim": 8, "num_heads": 30}, "leaves no channel"),
            ("tnn.Gtu", {"embed_dim": 8}, "must have num_heads"),
            ("tnn.fairseq_lm", {"model": "tnn_v2_lm"}, "must have decoder_embed_dim, decoder_attention_heads"),
        ],
    )
    def test_contradictory_or_unknown_options(self, family, config, message):
        if family == "tnn.Tno":
            config = {"h": 1, "dim": 4, "rpe_dim": 4, **config}
        with pytest.raises(ValueError, match=message):
            from_reference(family, config, {})

    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("tnn-fairseq_lm-v2-pre", {"model": "tnn_v3_lm"}, "unknown model 'tnn_v3_lm'"),
            ("tnn-fairseq_lm-v2-pre", {"use_multi_decay": True}, "exclude each other"),
            ("tnn-fairseq_lm-v2-pre", {"no_token_positional_embeddings": False}, "positional embeddings"),
            ("tnn-fairseq_lm-v2-pre", {"vocab_size": None}, "must have vocab_size"),
            ("tnn-fairseq_lm-v2-pre", {"base_layers": 2}, "no published model"),
            ("tnn-fairseq_lm-v2-gluv2-gtuv3", {"glu_dropout": 0.1}, "the published code fails"),
            ("tnn-fairseq_lm-v2-ada", {"adaptive_input_cutoff": "10,25"}, "the same cutoffs"),
            ("tnn-fairseq_lm-v2-ada", {"adaptive_softmax_cutoff": "20,10"}, "must be increasing"),
            ("hgrn-fairseq_lm-base-tied", {"use_glu": False}, "GLU"),
            ("transformer-fairseq_lm-base-tied", {"activation_fn": "gelu_acurate"}, "Did you mean 'gelu_accurate'"),
        ],
    )
    def test_language_models_that_were_never_published(self, load, name, changes, message):
        family, config, state, _, _, _ = load(name)
        with pytest.raises(ValueError, match=message):
            from_reference(family, {**config, **changes}, state)

    def test_tied_weights_that_differ(self, load):
        family, config, state, _, _, _ = load("tnn-fairseq_lm-v2-pre")
        state["decoder.output_projection.weight"][0, 0] += 1
        with pytest.raises(ValueError, match="the two differ"):
            from_reference(family, config, state)

    def test_what_no_configuration_describes_is_not_saved(self, load, tmp_path):
        family, config, state, _, _, _ = load("tnn-fairseq_lm-v2-ada")
        with pytest.raises(ValueError, match="adaptive input, adaptive softmax, which no `SubquadConfig` describes"):
            from_reference(family, config, state).save_pretrained(tmp_path)

    def test_only_tensors(self):
        with pytest.raises(ValueError, match="these are none: scale"):
            from_reference("tnn.norm", {"norm_type": "rmsnorm", "d": 4}, {"scale": [1.0]})
