"""The moving average of the weights: what it is, and that nothing is lost when a run is resumed."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support import assert_close
from training_runs import assert_same, numbers, state, tiny_run, weights

from subquad.evaluation import Run, evaluate_run
from subquad.training import checkpoints
from subquad.training.train import train

AVERAGE = "training.ema_decay=0.8"


def average(run, step):
    return load_file(run / "checkpoints" / f"checkpoint-{step}" / "ema.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("whole"), "run", AVERAGE)


def test_the_average_follows_its_formula(tmp_path):
    folders = [tiny_run(tmp_path, f"{n}", AVERAGE, f"training.steps={n}", "training.save_steps=1") for n in (2, 4)]
    before, after = average(folders[0], 2), average(folders[1], 4)
    third, fourth = (weights(folders[1] / "checkpoints" / f"checkpoint-{step}") for step in (3, 4))
    first, second = (weights(folders[0] / "checkpoints" / f"checkpoint-{step}") for step in (1, 2))
    assert before.keys() == first.keys() == after.keys()
    name = "model.embed_tokens.weight"
    # The rate of the first update is 0: after it the weights are still the initial ones.
    assert_close(before[name], 0.8 * first[name] + 0.2 * second[name])
    for name in after:
        assert_close(after[name], 0.64 * before[name] + 0.16 * third[name] + 0.2 * fourth[name])


def test_the_average_changes_nothing_in_the_training(run, tmp_path):
    assert numbers(run) == numbers(tiny_run(tmp_path))


def test_a_resumed_average_is_the_same_to_the_bit(run, tmp_path, stop_after):
    stop_after(8)
    stopped = tiny_run(tmp_path, "run", AVERAGE)
    assert not (stopped / "metrics.json").exists()
    train(None, resume=stopped)
    assert_same(state(stopped, 20), state(run, 20))
    assert_same(average(stopped, 20), average(run, 20))
    assert_same(weights(stopped / "ema"), weights(run / "ema"))


def test_both_models_are_published_and_told_apart(run):
    metrics = Run(run).metrics
    assert (metrics["weights"], Run(run / "ema").metrics["weights"]) == ("raw", "moving average")
    step = metrics["best_step"]
    assert_same(weights(run / "ema"), average(run, step))
    assert_same(weights(run), weights(run / "checkpoints" / f"checkpoint-{step}"))
    for folder, found in ((run, metrics), (run / "ema", metrics["ema"])):
        assert evaluate_run(folder, progress=False).loss == pytest.approx(found["loss"], rel=1e-6)
    assert metrics["loss"] != metrics["ema"]["loss"] == Run(run / "ema").metrics["loss"]


def test_a_checkpoint_without_its_average_is_damaged(run, tmp_path):
    last = run / "checkpoints" / "checkpoint-20"
    path = last / "ema.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    assert not checkpoints.is_complete(last)
    path.write_bytes(content)
    assert checkpoints.is_complete(last)


def test_a_run_without_an_average_has_none(tmp_path):
    run = tiny_run(tmp_path, "run", "training.steps=2")
    assert not (run / "ema").exists()
    assert not {"ema", "weights"} & json.loads((run / "metrics.json").read_text()).keys()


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none(tmp_path, decay):
    with pytest.raises(ValueError, match=r"ema_decay must be in \[0, 1\)"):
        tiny_run(tmp_path, "run", f"training.ema_decay={decay}")


def test_statistics_of_batch_norms_are_averaged():
    from subquad.training.ema import MovingAverage

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    ema = MovingAverage(0.5)
    ema.on_train_begin(None, None, None, model=model)  # pyright: ignore[reportArgumentType]
    model[1].running_mean += 4  # pyright: ignore
    model[1].num_batches_tracked += 3  # pyright: ignore
    ema.on_step_end(None, None, None, model=model)  # pyright: ignore[reportArgumentType]
    assert ema.average["1.running_mean"].tolist() == [2, 2]
    assert ema.average["1.num_batches_tracked"] == 3
