"""The backbone with every mixer: what transformers promises of a causal language model."""

import pytest
import torch
from laws import is_grid
from support import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

from subquad import SubquadConfig, SubquadForCausalLM
from subquad.mixers import MIXERS

MODELS = {
    "tno": {"mixers": [{"type": "tno"}]},
    "hgru": {"mixers": [{"type": "hgru"}], "norm": "layernorm", "scale_embedding": True},
    "hgru-positions": {"mixers": [{"type": "hgru", "complex": False}], "position_embedding": "sinusoidal"},
    "softmax": {
        "mixers": [{"type": "softmax", "num_heads": 4}],
        "norm": "layernorm",
        "norm_position": "post",
        "final_norm": None,
        "position_embedding": "sinusoidal",
        "position_offset": 2,
        "channel_mixer": {"type": "ffn", "hidden_size": 32},
    },
    "learned-positions": {
        "mixers": [{"type": "softmax", "num_heads": 2}],
        "position_embedding": "learned",
        "max_position_embeddings": 64,
    },
    "primal": {"mixers": [{"type": "primal", "num_heads": 2, "rank": 4}], "auxiliary_loss_weights": {"ksvd": 0.1}},
    "rotary": {"mixers": [{"type": "softmax", "num_heads": 4, "rotary": True}], "tie_word_embeddings": False},
    "hybrid": {
        "mixers": [{"type": "hgru"}, {"type": "softmax", "num_heads": 4}, {"type": "hgru"}, {"type": "tno"}],
        "norm_position": "branch",
    },
    "projected": {"mixers": [{"type": "hgru"}], "embedding_size": 12, "output_size": 12, "embedding_norm": "layernorm"},
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name, dtype=torch.float64, **changes):
    options = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 4 if name == "hybrid" else 2,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        **MODELS[name],
        **changes,
    }
    model = SubquadForCausalLM(SubquadConfig.from_options(options)).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def tokens(*shape):
    return torch.randint(3, 50, shape)


@every_model
def test_cache_in_any_pieces_equals_the_whole(name):
    model = build(name)
    ids = tokens(2, 12)
    whole = model(ids, use_cache=True)
    for sizes in ([1] * 12, [5, 1, 6], [11, 1]):
        cache, logits = None, []
        for piece in ids.split(sizes, dim=1):
            outputs = model(piece, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            logits.append(outputs.logits)
        assert_close(torch.cat(logits, dim=1), whole.logits, name=f"pieces {sizes}")
        assert cache.get_seq_length() == 12


@every_model
def test_greedy_generation_equals_full_recomputation(name):
    model = build(name)
    ids = tokens(2, 7)
    with torch.no_grad():
        generated = model.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None)
        expected = ids
        for _ in range(10):
            expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, expected)
    chunked = model.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None, prefill_chunk_size=3)
    assert torch.equal(chunked, expected)


@every_model
def test_left_padded_batches_generate_as_if_alone(name):
    model = build(name)
    prompts = [tokens(1, n) for n in (3, 8, 5)]
    ids = torch.cat([torch.nn.functional.pad(p, (8 - p.shape[1], 0), value=1) for p in prompts])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(p), (8 - p.shape[1], 0)) for p in prompts])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    batch = model.generate(ids, attention_mask=mask, **options)
    for row, prompt in enumerate(prompts):
        assert torch.equal(batch[row, 8:], model.generate(prompt, **options)[0, prompt.shape[1] :])


@every_model
def test_beam_search_and_sampling(name):
    model = build(name)
    ids = tokens(2, 5)
    options = {"max_new_tokens": 6, "eos_token_id": None}
    beams = {
        use_cache: model.generate(ids, num_beams=3, do_sample=False, use_cache=use_cache, **options)
        for use_cache in (True, False)
    }
    assert torch.equal(beams[True], beams[False])
    samples = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        samples.append(model.generate(ids, do_sample=True, top_k=20, use_cache=use_cache, **options))
    assert torch.equal(*samples)


@every_model
def test_saves_and_loads(name, tmp_path):
    model = build(name, torch.float32)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert type(loaded) is SubquadForCausalLM
    ids = tokens(2, 9)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    tied = model.config.tie_word_embeddings
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert AutoConfig.from_pretrained(tmp_path).to_dict()["mixers"] == model.config.mixers
    backbone = AutoModel.from_pretrained(tmp_path, dtype="auto").eval()
    assert torch.equal(backbone(ids).last_hidden_state, model.model(ids).last_hidden_state)
    for (key, ours), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs), key


@every_model
def test_packed_rows_are_separate_texts(name):
    model = build(name)
    lengths = [4, 1, 7]
    ids = tokens(1, sum(lengths))
    packed = model(ids, cu_seqlens=torch.tensor([0, 4, 5, 12])).logits
    alone = torch.cat([model(part).logits for part in ids.split(lengths, dim=1)], dim=1)
    assert_close(packed, alone)


@every_model
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model = build(name).train()
    ids = tokens(2, 9)
    model(ids, labels=ids).loss.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    # transformers renamed it after 5.17, the oldest version that is supported
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model(ids, labels=ids).loss.backward()
    for ours, theirs in zip((p.grad for p in model.parameters() if p.grad is not None), expected, strict=True):
        assert_close(ours, theirs)


@every_model
def test_every_trainable_parameter_gets_a_gradient(name):
    model = build(name).train()
    ids = tokens(3, 11)
    model(ids, labels=ids).loss.backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert unused == []


@pytest.mark.parametrize("name", ["tno", "hgru", "softmax", "primal", "hybrid"])
def test_compiles_in_one_graph(name):
    torch.compiler.reset()
    model = build(name, torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (10, 14):
        ids = tokens(2, length)
        assert_close(compiled(ids, use_cache=False).logits, model(ids).logits)


def test_loss_is_nats_per_scored_token():
    model = build("hgru")
    ids = tokens(2, 8)
    labels = ids.clone()
    labels[0, 5:] = -100
    logits = model(ids).logits
    log_p = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    kept = labels[:, 1:] != -100
    assert_close(model(ids, labels=labels).loss, -log_p[kept].mean())
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    assert_close(model(ids, shift_labels=shifted).loss, -log_p[kept].mean())
    assert_close(model(ids, shift_labels=shifted, num_items_in_batch=100).loss, -log_p[kept].sum() / 100)
    with pytest.raises(ValueError, match="either `labels` or `shift_labels`"):
        model(ids, labels=labels, shift_labels=shifted)


def test_state_size_of_recurrent_models_does_not_grow():
    model = build("hgru")
    sizes = []
    for length in (5, 50):
        cache = model(tokens(1, length), use_cache=True).past_key_values
        tensors = [t for layer in cache.layers for t in (layer.keys, layer.values, *layer.recurrent_states.values())]
        sizes.append(sum(t.untyped_storage().nbytes() for t in tensors))
    assert sizes[0] == sizes[1]


def test_gradients_flow_through_the_cache():
    model = build("hybrid")
    ids = tokens(1, 10)
    whole = torch.autograd.grad(model(ids).logits[:, -1].sum(), list(model.lm_head.parameters()))[0]
    first = model(ids[:, :6], use_cache=True)
    second = model(ids[:, 6:], past_key_values=first.past_key_values, use_cache=True)
    assert_close(torch.autograd.grad(second.logits[:, -1].sum(), list(model.lm_head.parameters()))[0], whole)


def test_a_cache_made_by_the_user():
    model = build("hybrid")
    cache = DynamicCache(config=model.config)
    ids = tokens(2, 6)
    model(ids[:, :4], past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 4
    cache.reset()
    if cache.get_seq_length():  # transformers 5.17 fills a reset cache with zeros, newer ones empty it
        cache = DynamicCache(config=model.config)
    assert_close(model(ids, past_key_values=cache, use_cache=True).logits, model(ids).logits)


def test_learned_positions_end():
    with pytest.raises(ValueError, match="beyond the 64 learned positions"):
        build("learned-positions")(tokens(1, 65))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixers": [{"type": "softmx"}]}, "unknown mixer 'softmx'. Did you mean 'softmax'"),
        ({"mixers": [{"type": "tno"}] * 3, "num_hidden_layers": 4}, "one entry for each of the 4 layers"),
        ({"hiden_size": 8}, "unknown model option 'hiden_size'. Did you mean 'hidden_size'"),
        ({"norm": "layer_norm"}, "unknown norm 'layer_norm'. Did you mean 'layernorm'"),
        ({"norm_position": "before"}, "unknown norm position"),
        ({"position_embedding": "learned"}, "max_position_embeddings"),
        ({"dropout": 1.0}, "`dropout` must be in"),
        ({"embedding_size": 8}, "tied embeddings need equal widths"),
        ({"hidden_size": 0}, "`hidden_size` must be positive"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        SubquadConfig.from_options(options)


def test_a_misspelt_option_is_not_ignored():
    with pytest.raises(ValueError, match=r"unknown model option 'hiden_size'\. Did you mean 'hidden_size'"):
        SubquadConfig(hiden_size=8)
    assert SubquadConfig(entry_of_another_library=1).entry_of_another_library == 1


def test_a_bidirectional_configuration_is_no_causal_model():
    with pytest.raises(ValueError, match="causal: true"):
        SubquadForCausalLM(SubquadConfig(causal=False))


@pytest.mark.parametrize("mixer", [name for name in MIXERS if not is_grid(name)])
def test_bidirectional_backbone(mixer):
    model = AutoModel.from_config(
        SubquadConfig(hidden_size=16, num_hidden_layers=2, mixers=[{"type": mixer}], causal=False)
    )
    ids = tokens(2, 6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    outputs = model.eval()(ids, attention_mask=mask)
    assert outputs.past_key_values is None
    assert_close(outputs.last_hidden_state[1:, :4], model(ids[1:, :4]).last_hidden_state)


def test_a_value_of_the_wrong_type_is_named():
    with pytest.raises(ValueError, match="'hidden_size' expected int, got str"):
        SubquadConfig.from_options({"hidden_size": "large"})


def test_mixers_set_the_initial_values_of_their_maps():
    options = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 1, "mixers": [{"type": "softmax"}]}
    attention = SubquadForCausalLM(SubquadConfig(**options)).model.layers[0].token_mixer
    bound = (6 / 128) ** 0.5
    assert 0.95 * bound < attention.output_proj.weight.abs().max() <= bound
    assert attention.output_proj.bias.eq(0).all()
