"""Runs of the Long Range Arena in the table of papers."""

import csv
import json

import pytest
from run_folders import write_run, write_text
from typer.testing import CliRunner

from subquad import cli
from subquad.data import DataError
from subquad.evaluation.lra import TITLES, lra_cells, lra_notes, lra_table, published_results
from subquad.training.recipe import list_recipes, load_recipe


def lra_run(folder, recipe, *overrides, accuracy=0.5, **metrics):
    """A finished run without its weights."""
    resolved = load_recipe(recipe, overrides)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["SubquadForSequenceClassification"]}')
    (folder / "recipe.yaml").write_text(resolved.to_yaml())
    (folder / "run.json").write_text(json.dumps({"status": "finished", "data": {"fingerprint": resolved.data.task}}))
    results = {
        "accuracy": accuracy,
        "examples": 2000,
        "validation": "as in the files",
        "steps": resolved.training.steps,
    }
    (folder / "metrics.json").write_text(json.dumps(results | metrics))
    return folder


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_the_table_has_ours_beside_what_was_published(tmp_path):
    runs = [
        lra_run(tmp_path / "a", "transnormer-t2-lra-text", accuracy=0.6543),
        lra_run(tmp_path / "b", "tnn-lra-listops", accuracy=0.375),
        lra_run(tmp_path / "c", "transnormer-t2-lra-listops", "training.steps=300"),
        lra_run(tmp_path / "d", "primal-trans-lra-listops", accuracy=0.3),
    ]
    result = call("lra", *runs, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    head, rows = lra_table(lra_cells(runs))
    assert head == ["model", "pipeline", *TITLES.values(), "average"]
    assert rows == [
        ["TransNormer T2", "s4", "50.00", "65.43", "–", "–", "–", "–", "–"],
        ["  published", "s4", "41.60*", "72.20*", "83.82*", "49.60*", "76.80", "–", "64.80 (5)"],
        ["TNN", "s4", "37.50", "–", "–", "–", "–", "–", "–"],
        ["  published", "s4", "61.04*", "87.90", "90.97", "88.24", "93.00", "96.10", "86.21 (6)"],
        ["Primal.+Trans.", "byte", "30.00", "–", "–", "–", "–", "–", "–"],
        ["  published", "byte", "37.30", "65.40", "81.00", "43.90", "74.30", "–", "60.38 (5)"],
    ]
    assert "300 of the published 15,000 updates" in result.stdout
    content = json.loads((tmp_path / "out" / "lra.json").read_text())
    cell = next(cell for cell in content["cells"] if cell["model"] == "TNN")
    assert cell["published"] == {
        "recipe": "tnn-lra-listops",
        "model": "TNN",
        "accuracy": 61.04,
        "origin": "recalled, verify against the paper",
        "steps": 30000,
    }
    with (tmp_path / "out" / "lra.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["task"], float(line["accuracy"])) for line in lines][:2] == [
        ("listops", 50.0),
        ("text", pytest.approx(65.43)),
    ]
    assert (tmp_path / "out" / "lra.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_says_what_its_number_is_of(tmp_path):
    metrics = {"validation": "the test set, as published", "last_accuracy": 0.25, "steps": 7}
    changed = ("training.steps=7", "model.padding=masked", "training.num_workers=0")
    (cell,) = lra_cells([lra_run(tmp_path / "run", "hgrn-lra-text", *changed, **metrics)])
    assert cell.differences == ["model.padding", "training.steps"]
    line = cell.describe()
    assert "50.00 % of 2,000 test examples; chosen by validation: the test set, as published" in line
    assert "last weights 25.00 %; 7 of the published 24,992 updates" in line
    assert line.endswith("other entries than the recipe hgrn-lra-text: model.padding")


def test_runs_that_differ_in_the_seed_share_a_cell(tmp_path):
    runs = [
        lra_run(tmp_path / f"run{seed}", "tnn-lra-listops", f"training.seed={seed}", accuracy=accuracy)
        for seed, accuracy in ((1, 0.1), (2, 0.2), (3, 0.6))
    ]
    (cell,) = lra_cells(runs)
    assert (cell.accuracy, cell.seeds) == (pytest.approx(20), [1, 2, 3])
    assert "median of the seeds 1, 2, 3" in cell.describe()
    other = lra_run(tmp_path / "other", "tnn-lra-listops", "model.padding=masked")
    with pytest.raises(DataError, match=r"are both TNN on listops, and differ in model\.padding: a cell"):
        lra_cells([*runs, other])
    (tmp_path / "run3" / "run.json").write_text('{"data": {"fingerprint": "f00d"}}')
    with pytest.raises(DataError, match="not of the same data"):
        lra_cells(runs)


def test_models_that_nobody_published_have_the_names_of_their_mixers(tmp_path):
    mixers = "model.mixers=[{type: hgru}, {type: softmax, num_heads: 4}, {type: hgru}, {type: softmax, num_heads: 4}]"
    (cell,) = lra_cells([lra_run(tmp_path / "run", "tnn-lra-listops", mixers)])
    assert (cell.model, cell.published) == ("hgru + softmax", None)
    assert "nothing like it was published" in cell.describe()
    assert lra_table([cell])[1] == [["hgru + softmax", "s4", "50.00", *["–"] * 6]]


def test_notes(tmp_path):
    runs = [
        lra_run(tmp_path / "a", "hgrn-lra-image"),
        lra_run(tmp_path / "b", "tnn-lra-image"),
        lra_run(tmp_path / "c", "primal-lra-image"),
    ]
    assert lra_notes(lra_cells(runs)) == ["HGRN (s4), Image + colour + augment: not the images of the task"]
    (tmp_path / "b" / "run.json").write_text('{"data": {"fingerprint": "f00d"}}')
    assert lra_notes(lra_cells(runs))[1:] == ["Image (s4): the runs are not of the same data"]


def test_other_runs_are_named(tmp_path):
    text = write_run(tmp_path / "sparrows", write_text(tmp_path / "text"))
    run = lra_run(tmp_path / "run", "tnn-lra-listops")
    result = call("lra", run, text, "--output", tmp_path / "out")
    assert result.exit_code == 2
    message = " ".join(result.output.split())
    assert "sparrows: the table of the Long Range Arena needs a model of the task sequence-classification" in message
    with pytest.raises(DataError, match="one run is given twice"):
        lra_cells([run, run])
    (run / "metrics.json").unlink()
    with pytest.raises(DataError, match=r"has no result yet \(metrics\.json\); its status is finished"):
        lra_cells([run])


def test_every_recipe_of_the_arena_says_its_published_number():
    results = [result for task in TITLES for result in published_results(task)]
    assert sorted(result.recipe for result in results) == [name for name in list_recipes() if "-lra-" in name]
    assert {result.origin for result in results} == {
        "as later papers cite it",
        "read from the paper's table",
        "recalled, verify against the paper",
    }
