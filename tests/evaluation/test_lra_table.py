"""Runs of the Long Range Arena in the table of papers."""

import csv
import json
import sys
from typing import Any

import pytest
import yaml
from run_folders import write_run, write_text
from typer.testing import CliRunner

from subquad import cli
from subquad.data import DataError
from subquad.data.splits import random_split
from subquad.evaluation import Run
from subquad.evaluation.accuracy import open_arena
from subquad.evaluation.lra import TITLES, lra_cells, lra_notes, lra_table, published_results, save_lra
from subquad.training.recipe import list_recipes, load_recipe

TEST_SIZES = {"listops": 2000, "text": 25_000, "retrieval": 17_437, "image": 10_000, "pathfinder": 20_000}


def lra_run(folder, recipe, *overrides, accuracy=0.5, **metrics):
    """A finished run without its weights."""
    resolved = load_recipe(recipe, overrides)
    section: Any = resolved.data
    folder.mkdir(parents=True)
    config = {"architectures": ["SubquadForSequenceClassification"], "mixers": resolved.model["mixers"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "recipe.yaml").write_text(resolved.to_yaml())
    (folder / "run.json").write_text(json.dumps({"status": "finished", "data": {"fingerprint": section.task}}))
    results = {
        "accuracy": accuracy,
        "examples": TEST_SIZES[section.task],
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
        lra_run(tmp_path / "e", "transformer-lra-image-google", accuracy=0.4),
        lra_run(tmp_path / "f", "transformer-lra-image", accuracy=0.41),
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
        ["Transformer", "google", "–", "–", "–", "40.00", "–", "–", "–"],
        ["  published", "google", "36.37", "64.27", "57.46", "42.44", "71.40", "–", "54.39 (5)"],
        ["Transformer", "s4", "–", "–", "–", "41.00", "–", "–", "–"],
        ["  published", "s4", "38.37*", "61.95", "80.69", "40.57", "65.26", "–", "57.37 (5)"],
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


def test_without_matplotlib_there_is_no_picture_but_all_numbers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(UserWarning, match=r"lra\.png is not drawn: .* pip install 'subquad\[plots\]'"):
        save_lra(lra_cells([lra_run(tmp_path / "run", "tnn-lra-listops")]), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lra.csv", "lra.json"]


def test_a_cell_says_what_its_number_is_of(tmp_path):
    metrics = {"validation": "the test set, as published", "last_accuracy": 0.25, "steps": 7}
    changed = ("training.steps=7", "model.padding=masked", "training.num_workers=0")
    (cell,) = lra_cells([lra_run(tmp_path / "run", "hgrn-lra-text", *changed, **metrics)])
    assert cell.differences == ["model.padding", "training.steps"]
    line = cell.describe()
    assert "50.00 % of 25,000 test examples; chosen by validation: the test set, as published" in line
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
    longer = lra_run(tmp_path / "longer", "tnn-lra-listops", "training.seed=4", steps=31_000)
    with pytest.raises(DataError, match="are both TNN on listops, and differ in steps: a cell"):
        lra_cells([*runs, longer])
    again = lra_run(tmp_path / "again", "tnn-lra-listops", "training.seed=3")
    with pytest.raises(DataError, match="are all TNN on listops, with the seeds 1, 2, 3, 3: give one run of each seed"):
        lra_cells([*runs, again])
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
    changed = [
        "HGRN (s4), Image + colour + augment: not the images of the task",
        "HGRN (s4), Image + colour + augment, as published: not the images of the task",
    ]
    assert lra_notes(lra_cells(runs)) == changed
    _, rows = lra_table(lra_cells(runs))
    assert [row[5] for row in rows[:4]] == ["50.00†", "88.69*†", "50.00", "88.24"]
    (tmp_path / "b" / "run.json").write_text('{"data": {"fingerprint": "f00d"}}')
    assert lra_notes(lra_cells(runs))[2:] == ["Image (s4): the runs are not of the same data"]


def test_notes_of_what_the_published_row_is_of_and_of_small_data(tmp_path):
    runs = [lra_run(tmp_path / "a", "hgrn-lra-listops", examples=500), lra_run(tmp_path / "b", "tnn-lra-pathfinder")]
    assert lra_notes(lra_cells(runs)) == [
        "HGRN (s4), ListOps: 500 test examples; the published data has 2,000",
        "HGRN (s4), Image + colour + augment, as published: not the images of the task",
    ]


def recorded(folder, train, longest):
    """What training writes into `run.json` of the data."""
    record = {"fingerprint": "f", "examples": {"train": train, "valid": 9, "test": 9}, "longest_input": longest}
    (folder / "run.json").write_text(json.dumps({"status": "finished", "data": record}))
    return folder


@pytest.mark.parametrize(
    ("recipe", "train", "longest", "expected"),
    [
        ("tnn-lra-listops", 96_000, 2000, []),
        ("tnn-lra-listops", 96_000, 1990, []),
        ("tnn-lra-listops", 96_000, 65, ["inputs of up to 65 tokens; those of the published runs have up to 2,000"]),
        (
            "transformer-lra-listops-google",
            10_000,
            900,
            [
                "10,000 training examples; the published data has 96,000",
                "inputs of up to 900 tokens; those of the published runs have up to 1,999",
            ],
        ),
        ("tnn-lra-text", 25_000, 4096, []),
        ("tnn-lra-text", 25_000, 1024, ["inputs of up to 1,024 tokens; those of the published runs have up to 4,096"]),
        ("tnn-lra-text", 22_500, 4096, ["22,500 training examples; the published data has 25,000"]),
        ("primal-lra-retrieval", 147_086, 4000, []),
        ("tnn-lra-image", 45_000, 1024, []),
        ("tnn-lra-pathfinder", 160_000, 1024, []),
        ("tnn-lra-pathfinder", 80, 1024, ["80 training examples; the published data has 160,000"]),
    ],
)
def test_data_that_is_not_the_published_one_is_marked_and_named(tmp_path, recipe, train, longest, expected):
    (cell,) = lra_cells([recorded(lra_run(tmp_path / "run", recipe), train, longest)])
    own = [note.removeprefix(f"{cell.title}: ") for note in lra_notes([cell]) if note.startswith(f"{cell.title}: ")]
    assert own == expected
    assert ("50.00†" in lra_table([cell])[1][0]) == bool(expected)


def test_a_recipe_may_leave_the_mixers_to_the_configuration(tmp_path):
    run = lra_run(tmp_path / "run", "tnn-lra-listops")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    del recipe["model"]["mixers"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (cell,) = lra_cells([run])
    assert cell.model == "TNN"
    assert "model.mixers.0.decay" in cell.differences


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", {"accuracy": "high", "examples": 9, "steps": 1, "validation": ""}, "has no result yet"),
        *(
            ("metrics.json", {"examples": 9, "steps": 1, "validation": "", **wrong}, "has no result yet")
            for wrong in (
                *({"accuracy": value} for value in (float("nan"), 10**400, True, -0.5, None)),
                {"accuracy": 0.5, "examples": 0},
                {"accuracy": 0.5, "split": "valid"},
            )
        ),
        ("config.json", {"architectures": ["SubquadForSequenceClassification"]}, "has no list of mixers"),
        ("config.json", {"mixers": ["tno"]}, "has no list of mixers"),
    ],
)
def test_files_of_others_that_say_nothing(tmp_path, file, content, message):
    run = lra_run(tmp_path / "run", "tnn-lra-listops")
    (run / file).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        lra_cells([run])


def test_recipes_of_others(tmp_path):
    run = lra_run(tmp_path / "run", "tnn-lra-listops")
    (run / "recipe.yaml").write_text("task: sequence-classification\ndata: &d {task: image, pipeline: s4, x: *d}\n")
    with pytest.raises(DataError, match="not a recipe"):
        lra_cells([run])
    with pytest.raises(ValueError, match="the seed must be a whole number"):
        random_split([8, 2], "seven")
    (run / "recipe.yaml").write_text("training: {device_batch_size: -1}\n")
    with pytest.raises(DataError, match="device_batch_size must be positive, got -1"):
        _ = Run(run).device_batch_size


def test_a_recipe_does_not_say_where_files_are_written(tmp_path):
    run = lra_run(tmp_path / "run", "tnn-lra-listops")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"]["cache_dir"] = str(tmp_path / "elsewhere")
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(DataError, match=r"not a recipe of the Long Range Arena .*cache_dir"):
        open_arena(Run(run), tmp_path)


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
        "from the leaderboard of the released code",
        "read from the paper's table",
        "recalled, verify against the paper",
    }
