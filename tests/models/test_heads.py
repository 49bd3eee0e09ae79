"""Masked language models and classifiers: what is scored, what is pooled, and what transformers promises of them."""

import pytest
import torch
import torch.nn.functional as F
from support import assert_close
from transformers import AutoModelForImageClassification, AutoModelForMaskedLM, AutoModelForSequenceClassification

from subquad import (
    SubquadConfig,
    SubquadForCausalLM,
    SubquadForImageClassification,
    SubquadForMaskedLM,
    SubquadForSequenceClassification,
)
from subquad.models.classification import DeepPairClassifier, PairClassifier, pool

BASE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "causal": False,
    "mixers": [{"type": "softmax", "num_heads": 2}, {"type": "tno"}],
    "num_labels": 3,
}
GRID = {"type": "tno_2d", "height": 2, "width": 3}
IMAGES = {"mixers": [GRID], "image_size": [8, 12], "patch_embedding": {"type": "linear", "patch_size": 4}}
MODELS = {
    "masked-lm": (SubquadForMaskedLM, AutoModelForMaskedLM, {}),
    "masked-lm-projected": (
        SubquadForMaskedLM,
        AutoModelForMaskedLM,
        {"embedding_size": 12, "output_size": 12, "embedding_norm": "layernorm", "norm_position": "post"},
    ),
    "masked-lm-untied": (SubquadForMaskedLM, AutoModelForMaskedLM, {"tie_word_embeddings": False}),
    "sequences": (SubquadForSequenceClassification, AutoModelForSequenceClassification, {}),
    "batch-norm": (
        SubquadForSequenceClassification,
        AutoModelForSequenceClassification,
        {"norm": "batchnorm", "final_norm": "batchnorm", "position_embedding": "interleaved_sinusoidal"},
    ),
    "roberta": (
        SubquadForSequenceClassification,
        AutoModelForSequenceClassification,
        {"classifier": "roberta", "pooling": "first", "position_embedding": "learned", "max_position_embeddings": 20},
    ),
    "mlp": (
        SubquadForSequenceClassification,
        AutoModelForSequenceClassification,
        {"classifier": "mlp", "classifier_hidden_size": 5, "classifier_activation": "relu"},
    ),
    "pairs": (SubquadForSequenceClassification, AutoModelForSequenceClassification, {"classifier": "pair"}),
    "deep-pairs": (
        SubquadForSequenceClassification,
        AutoModelForSequenceClassification,
        {"classifier": "deep_pair", "classifier_hidden_size": 6},
    ),
    "class-token": (
        SubquadForSequenceClassification,
        AutoModelForSequenceClassification,
        {"pooling": "class_token", "position_embedding": "learned", "max_position_embeddings": 20},
    ),
    "values": (SubquadForSequenceClassification, AutoModelForSequenceClassification, {"input_features": 2}),
    "images": (
        SubquadForImageClassification,
        AutoModelForImageClassification,
        {**IMAGES, "pooling_norm": "simple_rmsnorm", "final_norm": None, "position_embedding": "learned"},
    ),
    "images-class-token": (
        SubquadForImageClassification,
        AutoModelForImageClassification,
        {**IMAGES, "mixers": [{"type": "softmax"}], "pooling": "class_token", "position_embedding": "learned"},
    ),
    "images-conv": (
        SubquadForImageClassification,
        AutoModelForImageClassification,
        {**IMAGES, "image_size": [32, 48], "patch_embedding": {"type": "conv"}, "norm_position": "branch"},
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name, dtype=torch.float64, **changes):
    kind, _, options = MODELS[name]
    model = kind(SubquadConfig.from_options({**BASE, **options, **changes})).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def tokens(*shape):
    return torch.randint(3, 50, shape)


def example(model):
    """Inputs and labels of two examples; the second sequence is padded."""
    config, dtype = model.config, model.dtype
    if config.image_size is not None:
        return {"pixel_values": torch.randn(2, 3, *config.image_size, dtype=dtype), "labels": torch.tensor([0, 2])}
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    if config.input_features is not None:
        values = torch.randn(2, 9, 2, dtype=dtype)
        return {"input_values": values, "attention_mask": mask, "labels": torch.tensor([0, 2])}
    if isinstance(model, SubquadForMaskedLM):
        labels = torch.where(torch.arange(9) % 3 == 1, tokens(2, 9), -100)
        return {"input_ids": tokens(2, 9), "attention_mask": mask, "labels": labels}
    if config.is_of_pairs:
        pairs = torch.stack([mask, mask.flip(0)], dim=1)
        return {"input_ids": tokens(2, 2, 9), "attention_mask": pairs, "labels": torch.tensor([0, 2])}
    return {"input_ids": tokens(2, 9), "attention_mask": mask, "labels": torch.tensor([0, 2])}


@every_model
def test_saves_and_loads(name, tmp_path):
    model = build(name, torch.float32)
    model.save_pretrained(tmp_path)
    loaded = MODELS[name][1].from_pretrained(tmp_path, dtype="auto").eval()
    assert type(loaded) is type(model)
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    inputs = example(model)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert set(loaded.state_dict()) == set(model.state_dict())


@every_model
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model = build(name).train()
    inputs = example(model)
    model(**inputs).loss.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    assert all(g.any() for g in expected), "a parameter has no influence"
    model.zero_grad()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model(**inputs).loss.backward()
    for ours, theirs in zip((p.grad for p in model.parameters() if p.requires_grad), expected, strict=True):
        assert_close(ours, theirs)


@every_model
def test_the_loss_is_a_share_of_a_larger_batch(name):
    model = build(name)
    inputs = example(model)
    count = (inputs["labels"] != -100).sum()
    assert_close(model(**inputs, num_items_in_batch=7).loss, model(**inputs).loss * count / 7)


@every_model
def test_compiles_in_one_graph(name):
    torch.compiler.reset()
    model = build(name, torch.float32)
    inputs = {key: value for key, value in example(model).items() if key != "labels"}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ["masked-lm", "sequences", "batch-norm", "roberta", "class-token", "values"])
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(name, training):
    model = build(name).train(training)
    inputs = example(model)
    longer = {key: F.pad(x, (0, 0, 0, 4) if x.ndim == 3 else (0, 4)) for key, x in inputs.items() if key != "labels"}
    labels = inputs["labels"] if inputs["labels"].ndim == 1 else F.pad(inputs["labels"], (0, 4), value=-100)
    assert_close(model(**longer, labels=labels).loss, model(**inputs).loss)


@pytest.mark.parametrize("training", [False, True])
def test_a_masked_language_model_scores_the_hidden_tokens(training):
    model = build("masked-lm").train(training)
    inputs = example(model)
    labels = inputs.pop("labels")
    log_p = model(**inputs).logits.log_softmax(-1)
    scored = labels != -100
    expected = -log_p[scored].gather(-1, labels[scored][:, None]).mean()
    outputs = model(**inputs, labels=labels)
    assert_close(outputs.loss, expected)
    assert (outputs.logits is None) == training
    assert model(**inputs, labels=labels, return_logits=True).logits.shape == (2, 9, 50)
    nothing = model(**inputs, labels=torch.full_like(labels, -100)).loss
    assert nothing == 0
    nothing.backward()


@pytest.mark.parametrize("name", ["masked-lm", "sequences", "pairs", "values"])
def test_losses_of_mixers_are_added_in_training(name):
    changes = {"mixers": [{"type": "softmax", "num_heads": 2}, {"type": "primal", "num_heads": 2, "rank": 2}]}
    torch.manual_seed(5)
    model = build(name, **changes, auxiliary_loss_weights={"ksvd": 0.5})
    torch.manual_seed(5)
    without = build(name, **changes).train()
    inputs = example(model)
    labels = inputs["labels"]
    assert_close(model(**inputs).loss, without.eval()(**inputs).loss)
    calls = []
    model.train().model.register_forward_hook(lambda *call: calls.append(call[-1].auxiliary_losses["ksvd"]))
    without.train()
    assert_close(model(**inputs).loss, without(**inputs).loss + 0.5 * calls[-1])
    count = (labels != -100).sum()
    expected = without(**inputs, num_items_in_batch=10).loss + 0.5 * calls[-1] * count / 10
    assert_close(model(**inputs, num_items_in_batch=10).loss, expected)


def test_packed_sequences_are_separate():
    model = build("masked-lm")
    ids = tokens(1, 9)
    packed = model(ids, cu_seqlens=torch.tensor([0, 4, 9])).logits
    assert_close(packed, torch.cat([model(part).logits for part in ids.split([4, 5], dim=1)], dim=1))


def test_the_output_layer_is_the_embedding_if_tied():
    tied, free = build("masked-lm"), build("masked-lm-untied")
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert free.get_output_embeddings().weight is not free.get_input_embeddings().weight
    tied.resize_token_embeddings(60)
    assert tied(tokens(1, 4)).logits.shape == (1, 4, 60)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", lambda x: [x[0].mean(0), x[1, 1:3].mean(0)]),
        ("sum", lambda x: [x[0].sum(0), x[1, 1:3].sum(0)]),
        ("first", lambda x: [x[0, 0], x[1, 1]]),
        ("last", lambda x: [x[0, 4], x[1, 2]]),
        ("padded_mean", lambda x: [x[0].mean(0), x[1, 1:3].sum(0) / 5]),
    ],
)
def test_pooling_is_over_real_tokens(pooling, expected):
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0]])
    assert_close(pool(x, mask, pooling), torch.stack(expected(x)))
    assert_close(pool(x, None, pooling)[0], expected(x)[0])


def test_pooling_in_half_precision_counts_long_sequences():
    x = torch.zeros(1, 1001, 1, dtype=torch.bfloat16)
    x[0, -1] = 1
    assert pool(x, None, "last").item() == 1
    assert pool(x, None, "first").item() == 0


def test_a_classifier_with_a_hidden_layer():
    model = build("mlp")
    inputs = example(model)
    features = pool(
        model.model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state, inputs["attention_mask"], "mean"
    )
    head = model.classifier
    assert head.dense.weight.shape == (5, 16)
    assert_close(model(**inputs).logits, head.output_proj(head.dense(features).relu()))


def test_pairs_are_compared():
    model = build("pairs")
    inputs = example(model)
    both = [
        pool(model.model(ids, mask).last_hidden_state, mask, "mean")
        for ids, mask in zip(inputs["input_ids"].unbind(1), inputs["attention_mask"].unbind(1), strict=True)
    ]
    a, b = both
    head = model.classifier
    assert isinstance(head, PairClassifier)
    expected = head.output_proj(F.gelu(head.dense(torch.cat([a, b, a - b, a * b], dim=-1))))
    assert_close(model(**inputs).logits, expected)
    with pytest.raises(ValueError, match=r"`input_ids` of shape \(batch, 2, length, ...\), got \(2, 9\)"):
        model(tokens(2, 9))


def test_pairs_in_a_deeper_network():
    classifier = DeepPairClassifier(4, 3, 6, "relu").double()
    a, b = torch.randn(2, 5, 4, dtype=torch.float64)
    second, last = classifier.network.dense, classifier.network.output_proj
    assert [tuple(m.weight.shape) for m in (classifier.dense, second, last)] == [(6, 8), (3, 6), (3, 3)]
    expected = last(second(classifier.dense(torch.cat([a, b], dim=1)).relu()).relu())
    assert_close(classifier(torch.stack([a, b], dim=1).flatten(0, 1)), expected)


def test_a_class_token_is_one_more_vector_before_the_sequence():
    model = build("class-token")
    assert not SubquadForSequenceClassification(model.config).model.class_token.weight.any()
    ids, positions = tokens(2, 7), torch.arange(7).expand(2, 7) + 3
    vectors = model.model.embed_tokens(ids)
    longer = torch.cat([model.model.class_token.weight.expand(2, 1, -1), vectors], dim=1)
    plain = build("class-token", pooling="first")
    plain.load_state_dict(model.state_dict(), strict=False)
    assert_close(model(ids).logits, plain(inputs_embeds=longer).logits)
    moved = torch.cat([torch.zeros(2, 1, dtype=torch.long), positions + 1], dim=1)
    expected = plain(inputs_embeds=longer, position_ids=moved).logits
    assert_close(model(ids, position_ids=positions).logits, expected)
    assert model.model(ids).last_hidden_state.shape == (2, 8, 16)
    with pytest.raises(ValueError, match="before whole sequences"):
        model.model(ids[:1], cu_seqlens=torch.tensor([0, 3, 7]))


def test_labels_of_classes_and_probabilities():
    model = build("sequences")
    ids = tokens(4, 6)
    logits = model(ids).logits
    labels = torch.tensor([2, -100, 0, 1])
    assert_close(model(ids, labels=labels).loss, F.cross_entropy(logits[[0, 2, 3]], labels[[0, 2, 3]]))
    soft = torch.rand(4, 3, dtype=torch.float64).softmax(-1)
    expected = -(soft * logits.log_softmax(-1)).sum(-1)
    assert_close(model(ids, labels=soft).loss, expected.mean())
    assert_close(model(ids, labels=soft, num_items_in_batch=12).loss, expected.sum() / 12)
    with pytest.raises(ValueError, match="4 class numbers or probabilities"):
        model(ids, labels=torch.rand(4))


def test_one_label_is_regression():
    model = build("sequences", num_labels=1)
    ids = tokens(4, 6)
    targets = torch.randn(4, dtype=torch.float64)
    assert_close(model(ids, labels=targets).loss, (model(ids).logits.squeeze(-1) - targets).square().mean())


def test_padding_of_published_models():
    ids = tokens(2, 7)
    ids[1, 4:] = 1
    mask = (ids != 1).long()
    models = {padding: build("masked-lm", padding=padding) for padding in ("masked", "zeroed", "ordinary")}
    for model in models.values():
        model.load_state_dict(models["masked"].state_dict())
    # An ordinary token is not hidden at all; a zeroed one is an embedding of zeros, and not hidden after that.
    assert_close(models["ordinary"](ids, mask).logits, models["masked"](ids).logits)
    embeddings = models["masked"].get_input_embeddings()(ids) * mask.unsqueeze(-1)
    assert_close(models["zeroed"](ids, mask).logits, models["masked"](inputs_embeds=embeddings).logits)
    assert_close(models["masked"](ids, mask).logits[1:, :4], models["masked"](ids[1:, :4]).logits)


def test_pooling_ignores_padding_that_the_backbone_sees():
    model = build("sequences", padding="ordinary")
    ids = tokens(2, 7)
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    hidden = model.model(ids).last_hidden_state
    expected = model.classifier(torch.stack([hidden[0].mean(0), hidden[1, :4].mean(0)]))
    assert_close(model(ids, mask).logits, expected)


def test_interleaved_positions():
    model = SubquadConfig.from_options({**BASE, "position_embedding": "interleaved_sinusoidal"})
    backbone = SubquadForMaskedLM(model).double().model
    p, i = torch.arange(6, dtype=torch.float64), torch.arange(8, dtype=torch.float64)
    angles = p[:, None] / 10000 ** (2 * i / 16)
    vectors = backbone.positions(torch.arange(6), torch.float64)
    assert_close(vectors[:, 0::2], angles.sin())
    assert_close(vectors[:, 1::2], angles.cos())


def test_initial_values_of_bert():
    options = {**BASE, "vocab_size": 2000, "hidden_size": 64, "mixers": [{"type": "softmax"}, {"type": "tno"}]}
    model = SubquadForMaskedLM(SubquadConfig.from_options({**options, "initializer_range": 0.5}))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert 0.4 < module.weight.std() < 0.6
            assert module.bias is None or not module.bias.any()
    table = model.get_input_embeddings().weight
    assert 0.45 < table.std() < 0.55
    assert not table[1].any()
    assert torch.equal(model.lm_head.norm.weight, torch.ones(64))
    classifier = SubquadForSequenceClassification(SubquadConfig.from_options({**options, "initializer_range": 0.5}))
    assert classifier.classifier.output_proj.weight.abs().max() <= 64**-0.5
    wide = SubquadForMaskedLM(SubquadConfig.from_options({**options, "embedding_initializer_range": 1.0}))
    assert 0.9 < wide.get_input_embeddings().weight.std() < 1.1
    assert wide.lm_head.dense.weight.abs().max() <= 64**-0.5


PUBLISHED = {
    "roberta_tnn_v2_decay_99": (
        SubquadForMaskedLM,
        {
            "vocab_size": 50265,
            "hidden_size": 768,
            "mixers": [{"type": "tno", "rpe_hidden_size": 64, "rpe_layers": 6}],
            "norm_position": "post",
            "embedding_norm": "layernorm",
        },
        126_400_089,
        126_372_441,
    ),
    "tnn_vit_e3g1_tiny_rpe_l1_90_prenorm": (
        SubquadForImageClassification,
        {
            "image_size": 224,
            "hidden_size": 192,
            "mixers": [{"type": "tno_2d", "height": 14, "width": 14, "rpe_hidden_size": 48, "rpe_layers": 1}],
            "num_labels": 1000,
        },
        6_422_056,
        6_408_232,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_published_models(name):
    kind, options, expected, trainable = PUBLISHED[name]
    config = SubquadConfig.from_options({"num_hidden_layers": 12, "final_norm": None, "causal": False, **options})
    with torch.device("meta"):
        model = kind(config)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable


@pytest.mark.parametrize("name", ["masked-lm", "batch-norm", "roberta", "class-token"])
def test_exports_with_any_length(name):
    model = build(name, torch.float32)
    length = torch.export.Dim("length", min=2, max=20)
    inputs = {key: value for key, value in example(model).items() if key != "labels"}
    shapes = {key: {1: length} for key in inputs}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False).module()
    longer = {"input_ids": tokens(2, 17), "attention_mask": (torch.arange(17) < 15).long().expand(2, 17)}
    assert_close(exported(**longer).logits, model(**longer).logits)


@pytest.mark.parametrize("name", ["masked-lm", "batch-norm", "pairs", "images-conv"])
def test_half_precision_stays_near(name):
    model = build(name, torch.float32).train()
    inputs = example(model)
    expected = model(**inputs).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    assert_close(loss, expected, torch.bfloat16)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_dropout_of_embeddings_alone():
    model = build("sequences", embedding_dropout=0.5).train()
    first = model.model(tokens(1, 50), output_hidden_states=True).hidden_states[0]
    assert 0.3 < (first == 0).double().mean() < 0.7
    assert model.model.layers[0].dropout.p == 0


def test_stochastic_depth_skips_whole_branches():
    model = build("sequences", drop_path=0.5, num_hidden_layers=4).train()
    assert [block.drop_path for block in model.model.layers] == pytest.approx([0, 0.5 / 3, 1 / 3, 0.5])
    block = model.model.layers[-1]
    branch = torch.ones(400, 2, 3)
    kept = block._skip(branch)
    assert set(kept.flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    assert 0.35 < (kept[:, 0, 0] > 0).double().mean() < 0.65
    assert torch.equal(block.eval()._skip(branch), branch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"pooling": "max"},
            "unknown pooling 'max'. Did you mean 'mean'? Valid: class_token, first, last, mean, padded_mean, sum",
        ),
        ({"classifier": "linaer"}, "unknown classifier 'linaer'. Did you mean 'linear'"),
        ({"pooling": "class_token", "causal": True}, '"class_token" needs `causal` false'),
        ({"padding": "zero"}, "unknown padding 'zero'. Did you mean 'zeroed'"),
        ({"position_embedding": "sinusoid"}, "unknown position embedding 'sinusoid'. Did you mean 'sinusoidal'"),
        ({"pooling_norm": "rms"}, "unknown norm 'rms'"),
        ({"initializer_range": 0}, "`initializer_range` must be positive"),
        ({"embedding_dropout": 1}, "`embedding_dropout` must be in [0, 1)"),
        ({"input_features": 0}, "`input_features` must be positive"),
        ({"patch_embedding": {"type": "conv"}}, "`patch_embedding` needs an `image_size`"),
        ({"image_size": 8, "input_features": 1}, "exclude each other"),
        ({"image_size": 10}, "images of 10 × 10 pixels cannot be cut into patches of 16 × 16"),
        ({"image_size": 16, "patch_embedding": {"type": "lineer"}}, "unknown patch embedding 'lineer'"),
        (
            {"image_size": 32, "causal": False, "mixers": [{"type": "hgru_2d", "height": 4, "width": 2}]},
            "`hgru_2d` mixes a grid of 4 × 2 positions, and the inputs have 4:",
        ),
    ],
)
def test_impossible_configurations(options, message):
    for escaped in ".[()?":
        message = message.replace(escaped, f"\\{escaped}")
    with pytest.raises(ValueError, match=message):
        SubquadConfig.from_options({**BASE, **options})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SubquadForMaskedLM, {"causal": True}, "causal: false"),
        (SubquadForCausalLM, {"causal": True, "norm": "batchnorm"}, "batch norm sees later tokens"),
        (SubquadForMaskedLM, {"input_features": 1}, "reads tokens: leave `input_features` out"),
        (SubquadForCausalLM, {**IMAGES, "causal": True, "mixers": [{"type": "tno"}]}, "leave `image_size` out"),
        (SubquadForMaskedLM, {"pooling": "class_token"}, "has no class token"),
        (
            SubquadForSequenceClassification,
            {"classifier": "deep_pair", "classifier_hidden_size": 1},
            "at least 2, got 1",
        ),
        (SubquadForImageClassification, {}, "needs an `image_size`"),
        (SubquadForImageClassification, {**IMAGES, "classifier": "pair"}, "is for sequences"),
        (SubquadForSequenceClassification, IMAGES, "use `SubquadForImageClassification`"),
    ],
)
def test_models_that_a_configuration_does_not_fit(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(SubquadConfig.from_options({**BASE, **options}))


def test_inputs_that_a_model_does_not_take():
    values = build("values")
    with pytest.raises(ValueError, match="pass either `input_values` or `inputs_embeds`"):
        values(tokens(2, 5))
    with pytest.raises(ValueError, match="pass either `input_ids` or `inputs_embeds`"):
        build("sequences")(tokens(2, 5), inputs_embeds=torch.zeros(2, 5, 16))
    with pytest.raises(ValueError, match=r"`pixel_values` must be \(batch, 3, 8, 12\), got \(1, 3, 12, 8\)"):
        build("images")(torch.zeros(1, 3, 12, 8))
