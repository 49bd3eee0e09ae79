"""Losses that mixers add in training, from the mixer to the loss of a model: the kernel SVD of a hybrid."""

import pytest
import torch
from support import assert_close

from subquad import SubquadConfig, SubquadForCausalLM

WEIGHT = 0.1
OPTIONS = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "mixers": [{"type": "softmax", "num_heads": 4}, *[{"type": "primal", "num_heads": 2, "rank": 3}] * 2],
    "channel_mixer": {"type": "ffn", "hidden_size": 32},
    "auxiliary_loss_weights": {"ksvd": WEIGHT},
}


def build(**changes):
    model = SubquadForCausalLM(SubquadConfig(**{**OPTIONS, **changes})).double().train()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def tokens(*shape):
    return torch.randint(50, shape)


def terms(model, ids, **kwargs):
    """The loss without the term, and the term itself: the mean over the two primal layers."""
    model.config.auxiliary_loss_weights = None
    error = model(ids, labels=ids, **kwargs).loss
    model.config.auxiliary_loss_weights = {"ksvd": WEIGHT}
    kept = []
    hooks = [
        layer.token_mixer.register_forward_hook(lambda mixer, *_: kept.append(mixer._auxiliary["ksvd"]))
        for layer in model.model.layers[1:]
    ]
    model(ids, **kwargs)
    for hook in hooks:
        hook.remove()
    assert len(kept) == 2
    return error, torch.stack(kept).mean()


def test_the_training_loss_is_the_error_and_the_weighted_term():
    model = build()
    ids = tokens(2, 9)
    error, term = terms(model, ids)
    assert term > 1e-3
    assert_close(model(ids, labels=ids).loss, error + WEIGHT * term)
    assert_close(model.model(ids).auxiliary_losses["ksvd"], term)


def test_padding_is_no_part_of_the_term():
    model = build()
    ids = tokens(3, 9)
    mask = torch.arange(9) < torch.tensor([[9], [4], [6]])
    padded = model.model(ids, attention_mask=mask).auxiliary_losses["ksvd"]
    cu_seqlens = torch.tensor([0, 9, 13, 19])
    packed = model.model(ids[mask].unsqueeze(0), cu_seqlens=cu_seqlens).auxiliary_losses["ksvd"]
    assert_close(padded, packed)


def test_the_loss_in_evaluation_has_no_term():
    model = build().eval()
    ids = tokens(2, 9)
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    assert_close(model(ids, labels=ids).loss, torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))
    assert model.model(ids).auxiliary_losses is None


def test_a_part_of_a_batch_weighs_the_term_with_its_share():
    """Accumulated over two unequal parts, each part's term counts as many tokens as it has."""
    model = build()
    ids = tokens(2, 9)
    error, term = terms(model, ids)
    assert_close(model(ids, labels=ids, num_items_in_batch=40).loss, (error + WEIGHT * term) * 16 / 40)
    labels = ids.clone()
    labels[1, 4:] = -100
    assert_close(model(ids, labels=labels, num_items_in_batch=40).loss, model(ids, labels=labels).loss * 11 / 40)


def test_gradient_checkpointing_keeps_the_term_and_its_gradients():
    model = build()
    ids = tokens(2, 9)
    loss = model(ids, labels=ids).loss
    loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert all(gradient.any() for gradient in expected.values())
    model.zero_grad()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    again = model(ids, labels=ids).loss
    assert_close(again, loss)
    again.backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name], name=name)


def test_without_a_weight_the_spectrum_learns_nothing():
    model = build(auxiliary_loss_weights=None)
    ids = tokens(2, 9)
    model(ids, labels=ids).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == [
        "model.layers.1.token_mixer.spectrum",
        "model.layers.2.token_mixer.spectrum",
    ]


def test_the_weight_is_part_of_the_configuration(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    again = SubquadForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).train()
    ids = tokens(2, 9)
    assert_close(again(ids, labels=ids).loss, model(ids, labels=ids).loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auxiliary_loss_weights": {"kvsd": 0.1}}, "unknown auxiliary loss 'kvsd'. Did you mean 'ksvd'"),
        ({"mixers": [{"type": "softmax", "num_heads": 4}]}, "unknown auxiliary loss 'ksvd'. Valid:  .what the mixers"),
    ],
)
def test_a_loss_that_no_mixer_adds_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        SubquadConfig(**{**OPTIONS, **changes})
