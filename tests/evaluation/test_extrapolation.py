import csv
import json

import pytest
from run_folders import TRAINING_LENGTH, write_run, write_text

from subquad.data import DataError
from subquad.evaluation import Run, evaluate_perplexity, extrapolate, extrapolate_run

PNG = b"\x89PNG\r\n\x1a\n"


def test_files_of_a_run(tmp_path):
    run = write_run(tmp_path / "run", write_text(tmp_path / "text"), mixer="tno")
    results = extrapolate_run(run, [64, 16, 32, 16], progress=False)
    assert [result.length for result in results] == [16, 32, 64]
    opened = Run(run)
    model, stream = opened.load_model("cpu"), opened.open_data(progress=False)
    for result in results:
        expected = evaluate_perplexity(model, stream, length=result.length, batch_size=1, progress=False)
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)
        assert result.tokens == stream.num_tokens
    content = opened.extrapolation
    assert content["training_length"] == TRAINING_LENGTH
    assert content["split"] == "test"
    assert [row["perplexity"] for row in content["results"]] == [result.perplexity for result in results]
    rows = list(csv.DictReader((run / "extrapolation.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [result.loss for result in results]
    assert rows[0]["vocabulary"] == "byte"
    assert (run / "extrapolation.png").read_bytes().startswith(PNG)
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_a_second_time_replaces_the_first(tmp_path):
    run = write_run(tmp_path / "run", write_text(tmp_path / "text"))
    extrapolate_run(run, [16, 32], progress=False)
    extrapolate_run(run, [8], split="valid", progress=False)
    content = json.loads((run / "extrapolation.json").read_text())
    assert (content["split"], len(content["results"])) == ("valid", 1)


def test_figure_marks_the_training_length(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    marked = []
    monkeypatch.setattr(Axes, "axvline", lambda self, x, **kwargs: marked.append(x))
    extrapolate_run(write_run(tmp_path / "run", write_text(tmp_path / "text")), [16, 32], progress=False)
    assert marked == [TRAINING_LENGTH]


def test_errors_come_before_work(tmp_path, monkeypatch):
    data = write_text(tmp_path / "text")
    run = Run(
        write_run(tmp_path / "run", data, mixer="softmax", position_embedding="learned", max_position_embeddings=32)
    )
    model, stream = run.load_model("cpu"), run.open_data(progress=False)
    monkeypatch.setattr("subquad.evaluation.extrapolation.evaluate_perplexity", None)
    with pytest.raises(ValueError, match=r"positive numbers, got \[\]"):
        extrapolate(model, stream, [])
    with pytest.raises(ValueError, match="positive numbers"):
        extrapolate(model, stream, [16, 0])
    with pytest.raises(ValueError, match="length 64 exceeds the 32 learned positions"):
        extrapolate(model, stream, [16, 64])
    with pytest.raises(ValueError, match=rf"length 1000 exceeds the text, which has {stream.num_tokens} tokens"):
        extrapolate(model, stream, [16, 1000])
    with pytest.raises(DataError, match="no split 'tset'"):
        extrapolate_run(run.folder, [16], split="tset", progress=False)


def test_needs_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'subquad\[plots\]'"):
        extrapolate_run(tmp_path, [16])
