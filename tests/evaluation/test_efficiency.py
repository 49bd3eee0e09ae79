import itertools

import pytest
import torch
from run_folders import write_run, write_text

from subquad import (
    SubquadConfig,
    SubquadForCausalLM,
    SubquadForImageClassification,
    SubquadForSequenceClassification,
)
from subquad.data import DataError
from subquad.evaluation import efficiency, generation_speed, measure_run, training_speed


def tiny(mixer, **options):
    return SubquadForCausalLM(
        SubquadConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, mixers=[{"type": mixer}], **options)
    )


@pytest.mark.parametrize("mixer", ["hgru", "tno", "softmax"])
def test_generation_speed(mixer):
    results = generation_speed(tiny(mixer), [4, 9], steps=3)
    assert [result.context for result in results] == [4, 9]
    assert all(result.ms_per_token > 0 and result.prefill_ms > 0 for result in results)


def test_contexts_beyond_the_positions_are_left_out():
    model = tiny("softmax", position_embedding="learned", max_position_embeddings=20)
    assert [result.context for result in generation_speed(model, [4, 19], steps=3)] == [4]
    assert generation_speed(model, [19], steps=3) == []


def test_training_speed_trains():
    model = tiny("hgru")
    before = model.lm_head.weight.clone()
    speed = training_speed(model, batch_size=2, length=8, steps=2)
    assert (speed.batch_size, speed.length) == (2, 8)
    assert speed.tokens_per_second > 0
    assert not torch.equal(model.lm_head.weight, before)


def test_training_speed_of_images_is_that_of_patches():
    config = SubquadConfig(
        image_size=[8, 12],
        patch_embedding={"type": "linear", "patch_size": 4},
        mixers=[{"type": "softmax", "num_heads": 2}],
        hidden_size=8,
        num_hidden_layers=1,
        causal=False,
        num_labels=3,
    )
    speed = training_speed(SubquadForImageClassification(config), batch_size=2, length=100, steps=1)
    assert (speed.batch_size, speed.length) == (2, 6)


def test_training_speed_of_grids_is_that_of_their_positions():
    mixer = {"type": "tno_2d", "height": 3, "width": 5}
    config = SubquadConfig(
        input_features=1, mixers=[mixer], hidden_size=8, num_hidden_layers=1, causal=False, num_labels=3
    )
    assert training_speed(SubquadForSequenceClassification(config), batch_size=2, length=100, steps=1).length == 15


def test_the_tokens_of_both_texts_of_a_pair_count(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(efficiency, "_now", lambda _: next(clock))
    config = SubquadConfig(
        vocab_size=9, mixers=[{"type": "hgru"}], hidden_size=8, num_hidden_layers=1, num_labels=2, classifier="pair"
    )
    model = SubquadForSequenceClassification(config)
    assert training_speed(model, batch_size=3, length=5, steps=1).tokens_per_second == 2 * 3 * 5


def test_a_run_is_measured_in_its_own_process(tmp_path):
    # 256 MB that only this process holds must not count.
    ballast = torch.ones(64 << 20)
    run = write_run(tmp_path / "run", write_text(tmp_path / "text"))
    efficiency = measure_run(run, contexts=[4, 8], batch_size=2, length=8)
    assert [result.context for result in efficiency.generation] == [4, 8]
    memory = efficiency.training.peak_memory_bytes
    if memory is not None and not torch.cuda.is_available():
        assert 0 < memory < ballast.numel() * 4
    with pytest.raises(DataError, match="no such run folder"):
        measure_run(tmp_path / "nothing")


@pytest.mark.gpu
def test_gpu_memory_is_what_torch_allocated():
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    model = tiny("softmax").cuda()
    peak = training_speed(model, batch_size=2, length=8, steps=2).peak_memory_bytes
    assert peak is not None
    assert peak >= 4 * sum(p.numel() for p in model.parameters())
