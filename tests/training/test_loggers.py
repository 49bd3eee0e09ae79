"""What loggers get: every line of the log once, also of a run that is resumed; and what is said when one is missing."""

import json
import re
import shutil
import sys
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
from training_runs import log_of, tiny_run

from subquad.training import loggers
from subquad.training.train import train

# What a logger is asked for by, and a curve of it, of what the log calls so.
CURVES = {
    "train/loss": "loss",
    "train/learning_rate": "learning_rate",
    "train/grad_norm": "grad_norm",
    "train/tokens": "tokens",
    "eval/loss": "eval_loss",
    "eval/perplexity": "eval_perplexity",
}


def curve(run, name):
    """The points of a curve, from the log."""
    return [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in log_of(run) if name in line]


@pytest.fixture
def recorder(monkeypatch):
    """A logger that keeps what it gets, by the name of a package that is installed."""
    record = SimpleNamespace(lines=[], events=[], recipes=[])

    @contextmanager
    def opened(folder, recipe, run_id):
        record.events.append(("opened", folder.name, run_id))
        record.recipes.append(recipe)
        yield lambda figures, step: record.lines.append((step, figures))
        record.events.append(("closed", folder.name, run_id))

    monkeypatch.setitem(loggers.LOGGERS, "numpy", opened)
    return record


def of_recorder(record, name):
    return [(step, figures[name]) for step, figures in record.lines if name in figures]


def test_a_logger_gets_every_line_of_the_log(tmp_path, recorder):
    run = tiny_run(tmp_path, "run", "training.report_to=[numpy]")
    assert [step for step, _ in recorder.lines] == [line["step"] for line in log_of(run)]
    for name, key in CURVES.items():
        assert of_recorder(recorder, name) == curve(run, key)
    assert recorder.recipes[0]["training"]["schedule"]["peak"] == 1e-2


def test_a_resumed_run_goes_on_with_the_same_curve(tmp_path, recorder, stop_after):
    tiny_run(tmp_path, "whole", "training.report_to=[numpy]")
    expected = {name: of_recorder(recorder, name) for name in CURVES}
    recorder.lines.clear()
    recorder.events.clear()
    stop_after(13)
    run = tiny_run(tmp_path, "run", "training.report_to=[numpy]")
    # As after a crash: the last checkpoint is of update 10, and updates 11 to 14 are done again.
    for checkpoint in (run / "checkpoints").glob("checkpoint-1[1-4]"):
        shutil.rmtree(checkpoint)
    train(None, resume=run)
    assert {name: of_recorder(recorder, name) for name in CURVES} == expected
    assert len({event[2] for event in recorder.events}) == 1


def test_trainings_in_one_process_are_runs_of_their_own(tmp_path, recorder):
    for name in ("a", "b"):
        tiny_run(tmp_path, name, "training.report_to=[numpy]", "training.steps=2", "training.eval_steps=2")
    assert [event[:2] for event in recorder.events] == [
        ("opened", "a"),
        ("closed", "a"),
        ("opened", "b"),
        ("closed", "b"),
    ]
    assert len({event[2] for event in recorder.events}) == 2


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_logger_that_is_not_installed_is_named_before_the_training(tmp_path, monkeypatch, name):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(loggers, "distribution", missing)
    with pytest.raises(ValueError, match=rf"{name} is not installed: pip install {name}, .*'subquad\[loggers\]'"):
        tiny_run(tmp_path, "run", f"training.report_to=[{name}]")
    assert not (tmp_path / "run").exists()


def test_a_missing_key_is_named_before_the_training(tmp_path, monkeypatch):
    class UsageError(Exception):
        pass

    def login():
        raise UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(login=login, Error=UsageError))
    monkeypatch.setattr(loggers, "distribution", str)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(ValueError, match=r"wandb: No API key configured\..*WANDB_MODE=offline"):
        tiny_run(tmp_path, "run", "training.report_to=[wandb]")
    assert not (tmp_path / "run").exists()


# The loggers themselves


def test_tensorboard(tmp_path, stop_after):
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'subquad[loggers]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stop_after(13)
    run = tiny_run(tmp_path, "run", "training.report_to=[tensorboard]")
    train(None, resume=run)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for name, key in CURVES.items():
        assert [(point.step, point.value) for point in events.Scalars(name)] == curve(run, key)
    assert "recipe/text_summary" in events.Tags()["tensors"]


def test_trackio(tmp_path, monkeypatch, capsys, stop_after):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read once, at its import
    pytest.importorskip("trackio", reason="needs trackio: pip install 'subquad[loggers]'")
    from trackio.sqlite_storage import SQLiteStorage

    stop_after(13)
    run = tiny_run(tmp_path, "run", "training.report_to=[trackio]")
    train(None, resume=run)
    name = f"run-{json.loads((run / 'run.json').read_text())['id']}"
    assert SQLiteStorage.get_runs("subquad") == [name]
    lines = SQLiteStorage.get_logs("subquad", name)
    for figure, key in CURVES.items():
        assert [(line["step"], line[figure]) for line in lines if figure in line] == curve(run, key)
    assert capsys.readouterr().out == ""


def test_wandb(tmp_path, monkeypatch, stop_after):
    pytest.importorskip("wandb.sdk", reason="needs wandb: pip install 'subquad[loggers]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    stop_after(13)
    run = tiny_run(tmp_path, "run", "training.report_to=[wandb]")
    train(None, resume=run)
    identity = json.loads((run / "run.json").read_text())["id"]
    stored = sorted((run / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(stored) == 2  # of the run, and of the resumed one
    for name, key in (CURVES | {"_step": "step"}).items():
        values = [value for path in stored for value in numbers_of(path, name)]
        assert values == list(dict.fromkeys(line[key] for line in log_of(run) if key in line))


def numbers_of(path, name):
    """What an offline run of Weights & Biases holds under a name, each number once."""
    content = path.read_bytes()
    starts = [match.end() for match in re.finditer(re.escape(name.encode()) + rb"\x82\x01", content)]
    found = [content[start + 1 : start + 1 + content[start]] for start in starts]  # a byte for the length is before it
    return list(dict.fromkeys(map(float, found)))
