"""Whole runs of a tiny model: the same numbers however they are cut into devices, batches and pieces."""

import json
import math
import shutil
import signal
from itertools import chain
from pathlib import Path

import pytest
import torch
from support import assert_close
from training_runs import (
    assert_same,
    log_of,
    losses,
    numbers,
    state,
    tiny_run,
    train_in_two_processes,
    weights,
    write_recipe,
)

from subquad.evaluation import Run, evaluate_run
from subquad.training import checkpoints
from subquad.training.optimizer import FairseqAdam
from subquad.training.sampler import UpdateBatches
from subquad.training.tasks import CausalLM
from subquad.training.train import train
from subquad.training.trainer import DivergedError

METRICS = {
    "loss",
    "perplexity",
    "bits_per_byte",
    "word_perplexity",
    "tokens",
    "words",
    "bytes",
    "vocabulary",
    "parameters",
    "tokens_per_second",
    "unit",
    "peak_memory_bytes",
    "train_seconds",
    "steps",
    "tokens_trained",
    "split",
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("whole"))


def test_a_run_folder_is_complete(whole_run):
    run = Run(whole_run)
    assert run.metrics.keys() >= METRICS
    assert run.metrics["steps"] == 20
    assert run.metrics["tokens_trained"] == log_of(whole_run)[-2]["tokens"]
    assert run.metrics["split"] == "test"
    assert run.metrics["vocabulary"] == "byte"
    assert run.training_length == 64
    assert run.info["status"] == "finished"
    assert run.data_fingerprint
    assert {"version", "git", "command", "hardware", "started", "finished"} <= run.info.keys()
    result = evaluate_run(whole_run, progress=False)
    assert result.loss == pytest.approx(run.metrics["loss"], rel=1e-6)
    assert run.load_model().config.use_cache
    assert {path.name for path in whole_run.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "recipe.yaml",
        "run.json",
        "log.jsonl",
        "metrics.json",
        "checkpoints",
    }


def test_the_log_has_its_schema_and_the_model_learns(whole_run):
    lines = log_of(whole_run)
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, 21))
    keys = {"step", "time", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "epoch"}
    assert all(line.keys() == keys for line in training)
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [10, 20]
    assert all(line.keys() == {"step", "time", "eval_loss", "eval_perplexity"} for line in evaluations)
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert training[0]["learning_rate"] == 0.0
    assert training[5]["learning_rate"] == 1e-2
    assert evaluations[1]["eval_loss"] < evaluations[0]["eval_loss"] < math.log(260)


def test_beta1_follows_its_schedule(tmp_path, monkeypatch):
    seen, step = [], FairseqAdam.step
    monkeypatch.setattr(FairseqAdam, "step", lambda self, *_: (seen.append(self.param_groups[0]["betas"]), step(self)))
    cycle = "training.beta1_schedule={type: polynomial, peak: 0.8, warmup: 2, initial: 0.9, end: 0.9}"
    tiny_run(tmp_path, "run", cycle, "training.steps=4", "training.eval_steps=4")
    assert seen == [(pytest.approx(beta), 0.98) for beta in (0.9, 0.85, 0.8, 0.85)]
    with pytest.raises(ValueError, match="warmup"):
        tiny_run(tmp_path, "other", cycle.replace("warmup", "warmups"))


def test_evaluation_weighs_every_token_equally(whole_run):
    best = min(line["eval_loss"] for line in log_of(whole_run) if "eval_loss" in line)
    result = evaluate_run(whole_run, split="valid", length=64, progress=False)
    assert result.tokens % 64  # there is a short block
    assert result.loss == pytest.approx(best, rel=1e-6)


def test_the_last_and_the_best_checkpoints_are_kept_and_nothing_is_left_over(whole_run):
    names = {path.name for path in (whole_run / "checkpoints").iterdir()}
    assert names == {"checkpoint-15", "checkpoint-20"}
    assert not list(whole_run.rglob("training_args.bin"))
    assert_same(weights(whole_run), weights(whole_run / "checkpoints/checkpoint-20"))


def test_the_best_model_is_not_the_last(tmp_path):
    # A rate that grows without end: the model learns, then is ruined.
    schedule = "training.schedule={type: constant, peak: 100.0, warmup: 1000}"
    run = tiny_run(tmp_path, "run", schedule, "training.steps=24", "training.eval_steps=2", "training.max_grad_norm=0")
    evaluations = {line["step"]: line["eval_loss"] for line in log_of(run) if "eval_loss" in line}
    best = min(evaluations, key=evaluations.__getitem__)
    assert best < 20
    assert json.loads((run / "metrics.json").read_text())["best_step"] == best
    folders = {checkpoints.step_of(path) for path in checkpoints.checkpoints(run / "checkpoints")}
    assert folders == {best, 22, 24}
    assert_same(weights(run), weights(run / f"checkpoints/checkpoint-{best}"))


@pytest.mark.parametrize("step", [8, 10])
def test_a_resumed_run_is_the_same_run_to_the_bit(whole_run, tmp_path, stop_after, capsys, step):
    stop_after(step)
    run = tiny_run(tmp_path)
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert f"--resume {run}" in capsys.readouterr().err
    stopped = checkpoints.last_complete(run / "checkpoints")
    assert stopped is not None
    assert step <= checkpoints.step_of(stopped) < 20
    assert not (run / "metrics.json").exists()

    torch.manual_seed(99)
    assert train(None, resume=run) == run
    assert_same(state(run, 20), state(whole_run, 20))
    assert numbers(run) == numbers(whole_run)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_ctrl_c_saves_and_the_handlers_are_put_back(tmp_path, stop_after):
    before = signal.getsignal(signal.SIGINT)
    stop_after(3, signal.SIGINT)
    run = tiny_run(tmp_path)
    assert checkpoints.last_complete(run / "checkpoints")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_damaged_checkpoint_is_passed_over(whole_run, tmp_path):
    run = tiny_run(tmp_path, "run", "training.steps=15")
    last = run / "checkpoints" / "checkpoint-15"
    for name in ("optimizer.pt", "model.safetensors", "trainer_state.json"):
        path = last / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert not checkpoints.is_complete(last), name
        path.write_bytes(content)
        assert checkpoints.is_complete(last)
    path = last / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:100])
    train(None, resume=run, overrides=["training.steps=20"])
    assert_same(state(run, 20), state(whole_run, 20))


def test_a_resumed_run_takes_its_new_intervals(tmp_path):
    run = tiny_run(tmp_path, "run", "training.steps=10")
    train(None, resume=run, overrides=["training.steps=20", "training.eval_steps=4", "training.log_steps=1"])
    steps = [line["step"] for line in log_of(run) if "eval_loss" in line and line["step"] > 10]
    assert steps == [12, 16, 20]
    assert [line["step"] for line in log_of(run) if "loss" in line and line["step"] > 10] == [*range(11, 21)]


def test_a_run_stops_when_its_time_is_over(tmp_path):
    run = tiny_run(tmp_path, "run", "training.max_seconds=1e-3")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["steps"] == 1
    assert log_of(run)[-1]["step"] == 1
    assert "eval_loss" in log_of(run)[-1]


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_a_good_checkpoint(tmp_path, monkeypatch):
    build = CausalLM.build_model

    def poisoned(self):
        model = build(self)
        forward = model.forward
        calls = []

        def diverging(*args, **kwargs):
            outputs = forward(*args, **kwargs)
            if model.training:
                calls.append(1)
                if len(calls) == 8:
                    outputs.loss = outputs.loss * torch.nan
            return outputs

        monkeypatch.setattr(model, "forward", diverging)
        return model

    monkeypatch.setattr(CausalLM, "build_model", poisoned)
    with pytest.raises(DivergedError, match="nan at update 8"):
        tiny_run(tmp_path)
    run = tmp_path / "run"
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    last = checkpoints.last_complete(run / "checkpoints")
    assert last is not None
    assert last.name == "checkpoint-5"
    assert all(value.isfinite().all() for value in state(run, 5).values())


def test_a_run_that_ended_before_its_metrics_is_finished(whole_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    (run / "metrics.json").unlink()
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"status": "running"}))
    train(None, resume=run)
    assert Run(run).metrics["loss"] == Run(whole_run).metrics["loss"]
    assert Run(run).info["status"] == "finished"


@pytest.fixture
def uneven(tmp_path) -> tuple[str, ...]:
    """Overrides for blocks of 2 to 31 tokens, where a mean of means is not the mean."""
    lines = [" ".join(["word", "another"] * 15)[: 5 * size - 1] for size in range(1, 25)]
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("\n".join(lines) + "\n")
    source = f"data.source={[str(tmp_path / f'{split}.txt') for split in ('train', 'valid', 'test')]}"
    return (source, "data.tokenizer=word", "data.block_size=24", "data.block_mode=eos", "model.dropout=0")


def test_accumulation_changes_nothing_though_lengths_differ(tmp_path, uneven):
    one = tiny_run(tmp_path, "one", *uneven, "training.steps=6")
    four = tiny_run(tmp_path, "four", *uneven, "training.steps=6", "training.device_batch_size=1")
    targets = [line["tokens"] for line in log_of(one) if "loss" in line]
    assert len(set(torch.tensor(targets).diff().tolist())) > 1
    assert_close(losses(four), losses(one), torch.float32)
    flat = [torch.cat([value.flatten() for value in weights(run).values()]) for run in (four, one)]
    assert_close(*flat)


def test_two_processes_compute_what_one_does(tmp_path, uneven):
    options = (*uneven, "training.steps=6", "training.eval_steps=3", "training.device_batch_size=1")
    one = tiny_run(tmp_path, "one", *options)
    two = train_in_two_processes(tmp_path / "tiny.yaml", tmp_path / "two", *options)
    assert_close(losses(two), losses(one), torch.float32)
    assert [line["tokens"] for line in log_of(two) if "loss" in line] == [
        line["tokens"] for line in log_of(one) if "loss" in line
    ]
    evaluations = [[line["eval_loss"] for line in log_of(run) if "eval_loss" in line] for run in (two, one)]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-5)
    assert json.loads((two / "run.json").read_text())["devices"] == 2


def test_bfloat16_autocast_keeps_float32_weights(tmp_path):
    options = ("training.precision=bf16", "training.steps=2", "training.gradient_checkpointing=true")
    run = tiny_run(tmp_path, "run", *options)
    assert all(value.dtype == torch.float32 for value in weights(run).values())


def test_the_folder_of_another_run_is_left_alone(whole_run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}
    with pytest.raises(ValueError, match="holds a run already"):
        train(write_recipe(tmp_path), output=whole_run)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        train(write_recipe(tmp_path), output=tmp_path / "other")
    assert {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")} == before


def test_what_cannot_be_resumed_says_so(whole_run, tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        train(None, resume=tmp_path)
    with pytest.raises(ValueError, match="finished after 20 updates"):
        train(None, resume=whole_run)
    with pytest.raises(ValueError, match="another one"):
        train(None, resume=whole_run, overrides=["training.seed=2"])
    (tmp_path / "text.txt").write_text("Another text.\n" * 200)
    with pytest.raises(ValueError, match="not the data"):
        train(None, data=tmp_path / "text.txt", resume=whole_run, overrides=["training.steps=30"])


def test_data_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="the train split has"):
        tiny_run(tmp_path, "run", "data.block_size=100000")
    with pytest.raises(ValueError, match="no such file"):
        tiny_run(tmp_path, "run", f"data.source={tmp_path / 'nothing.txt'}")
    assert not (tmp_path / "run").exists()


def test_the_order_of_the_data_does_not_depend_on_the_devices():
    options = {"steps": 5, "batch_size": 12, "device_batch_size": 3}
    one = list(UpdateBatches(10, 7, **options))
    assert len(one) == len(UpdateBatches(10, 7, **options)) == 20
    two = [list(UpdateBatches(10, 7, device=device, num_devices=2, **options)) for device in range(2)]
    for update in range(5):
        expected = list(chain(*one[4 * update : 4 * update + 4]))
        found = list(chain(*(batches[i] for i in (2 * update, 2 * update + 1) for batches in two)))
        assert sorted(found) == sorted(expected)
    epochs, string = zip(*chain(*one), strict=True)
    assert list(epochs) == [epoch for epoch in range(6) for _ in range(10)]
    assert all(sorted(string[start : start + 10]) == list(range(10)) for start in range(0, 60, 10))
    assert string[:10] != string[10:20]
    assert list(UpdateBatches(10, 8, **options)) != one


def test_repeated_examples_go_to_different_devices_and_are_changed_differently():
    options = {"steps": 6, "batch_size": 12, "device_batch_size": 4, "num_devices": 3, "repeats": 3}
    devices = [list(UpdateBatches(14, 7, device=device, **options)) for device in range(3)]
    # Dealt out again in turn, the batches are the string of all epochs.
    string = [
        example for batches in zip(*devices, strict=True) for dealt in zip(*batches, strict=True) for example in dealt
    ]
    epochs = [string[start : start + 14] for start in range(0, 72 - 14, 14)]
    for number, epoch in enumerate(epochs):
        first, second, third = epoch[0:12:3], epoch[1:12:3], epoch[2:12:3]
        assert [index for _, index in first] == [index for _, index in second] == [index for _, index in third]
        assert len({index for _, index in epoch}) == 5
        assert [view for view, _ in epoch] == [3 * number + copy % 3 for copy in range(14)]
    assert len({index for epoch in epochs for _, index in epoch}) > 5
