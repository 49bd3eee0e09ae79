import csv
import json
import subprocess
import sys
import types

import pytest
from run_folders import write_run, write_text
from typer.testing import CliRunner

from subquad import __version__, cli
from subquad.data import DataError
from subquad.evaluation import evaluate_run, report


@pytest.fixture
def call():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", write_text(tmp_path / "text"))


@pytest.fixture
def training(monkeypatch, tmp_path):
    """Stands in for the training, and notes how it was called."""
    calls = []
    train = types.ModuleType("subquad.training.train")
    train.train = lambda recipe, **options: calls.append((recipe, options)) or tmp_path / "made"
    monkeypatch.setitem(sys.modules, "subquad.training.train", train)
    recipe = types.ModuleType("subquad.training.recipe")
    recipe.list_recipes = lambda: ["hgrn-tiny", "tnn-tiny"]
    recipe.recipe_text = lambda name: f"# about {name}\n"
    monkeypatch.setitem(sys.modules, "subquad.training.recipe", recipe)
    return calls


def fits_a_terminal(text):
    return all(len(line) <= 80 for line in text.splitlines())


COMMANDS = (
    *("train", "evaluate", "extrapolate", "generate", "compare", "convert", "data", "glue", "info", "lra", "recipes"),
)


def test_help_of_every_command(call):
    text = call("--help").output
    assert all(command in text for command in COMMANDS)
    assert fits_a_terminal(text)
    assert not any(line.endswith("...") for line in text.splitlines()[1:]), "a command whose line is cut off"
    for command in COMMANDS:
        result = call(command, "--help")
        assert result.exit_code == 0
        assert fits_a_terminal(result.output)


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['subquad', '--help']\n"
        "try:\n    from subquad.cli import main; main()\n"
        "finally:\n    print('heavy:', {'torch', 'transformers', 'numpy', 'matplotlib', 'rich'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: set()" in result.stdout


def test_version(call):
    assert call("--version").output == f"subquad {__version__}\n"


def test_evaluate(call, run, tmp_path):
    file, table = tmp_path / "result.json", tmp_path / "result.csv"
    result = call("evaluate", run, "--length", "32", "--context-window", "8", "--json", file, "--csv", table)
    assert result.exit_code == 0, result.output
    expected = evaluate_run(run, length=32, context_window=8, progress=False)
    content = json.loads(file.read_text())
    assert content == {"run": str(run), "data": None, "split": "test", **expected.to_dict()}
    with table.open(newline="") as lines:
        (row,) = csv.DictReader(lines)
    assert row == {name: "" if value is None else str(value) for name, value in content.items()}
    assert f"{expected.perplexity:,.2f}" in result.stdout
    assert "a token is: byte" in result.stdout
    assert f"{expected.tokens:,} tokens, none skipped" in result.stdout
    assert fits_a_terminal(result.stdout)


def test_evaluate_other_data(call, run, tmp_path):
    text, table = tmp_path / "text" / "valid.txt", tmp_path / "result.csv"
    result = call("evaluate", run, "--data", text, "--split", "valid", "--csv", table)
    assert result.exit_code == 0, result.output
    assert table.read_text().splitlines()[1].startswith(f"{run},{text},valid,")
    assert f"{(tmp_path / 'text' / 'valid.txt').stat().st_size:,} bytes" in result.stdout


def test_extrapolate(call, run):
    result = call("extrapolate", run, "--lengths", "16,32, 64")
    assert result.exit_code == 0, result.output
    assert (run / "extrapolation.png").is_file()
    assert [line.split()[0] for line in result.stdout.splitlines()[2:5]] == ["16", "32", "64"]
    assert "a token is: byte" in result.stdout


def test_generate(call, run):
    options = ("--prompt", "The café", "--max-new-tokens", "20", "--seed", "3", "--top-k", "20")
    result = call("generate", run, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("The café")
    assert result.stdout.endswith("\n")
    assert call("generate", run, *options).stdout == result.stdout


def test_compare(call, run, tmp_path, monkeypatch):
    other = write_run(tmp_path / "other", tmp_path / "text", seed=1)
    monkeypatch.setattr(report, "measure_run", None)
    result = call("compare", run, other, "--output", tmp_path / "page", "--no-measure")
    assert result.exit_code == 0, result.output
    *table, page = result.stdout.splitlines()
    assert page == str(tmp_path / "page" / "comparison.html")
    assert table[0].split() == ["run", "other"]
    assert any(line.startswith("perplexity ") for line in table)
    assert (tmp_path / "page" / "comparison.csv").is_file()


def test_train(call, training, tmp_path):
    result = call("train", "tnn-tiny", "--set", "training.steps=3", "--set", "seed=1", "--output", tmp_path / "made")
    assert result.stdout.strip() == str(tmp_path / "made")
    call("train", "tnn-tiny", "--data", "a.txt", "--data", "b.txt")
    call("train", "--resume", tmp_path / "made")
    defaults = {"data": None, "output": None, "overrides": (), "resume": None, "init": None}
    assert training == [
        ("tnn-tiny", defaults | {"overrides": ("training.steps=3", "seed=1"), "output": tmp_path / "made"}),
        ("tnn-tiny", defaults | {"data": ["a.txt", "b.txt"]}),
        (None, defaults | {"resume": tmp_path / "made"}),
    ]


def test_recipes(call, training):
    listed = "hgrn-tiny  about hgrn-tiny\ntnn-tiny   about tnn-tiny\n"
    assert call("recipes").output == call("recipes", "list").output == listed
    assert call("recipes", "show", "tnn-tiny").output == "# about tnn-tiny\n"


def test_info(call):
    result = call("info")
    assert result.exit_code == 0, result.output
    assert __version__ in result.output
    assert "toeplitz" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "{tmp}/nothing"], "error: {tmp}/nothing: no such run folder"),
        (["evaluate", "{tmp}"], "not a run folder"),
        (["evaluate", "{run}", "--data", "{tmp}/nothing"], "{tmp}/nothing: no such file"),
        (["evaluate", "{run}", "--split", "tset"], "no split 'tset'"),
        (["evaluate", "{run}", "--context-window", "16"], "context_window must be in"),
        (["evaluate", "{run}", "--length", "0"], "length must be at least 1, got 0"),
        (["evaluate", "{run}", "--json", "{tmp}/no/folder.json"], "No such file or directory"),
        (["extrapolate", "{run}", "--lengths", "256,x"], "--lengths must be positive numbers with commas"),
        (["extrapolate", "{run}", "--lengths", ""], "--lengths must be positive numbers with commas"),
        (["generate", "{run}", "--temperature", "-1"], "temperature must be 0 or more, got -1.0"),
        (["compare", "{run}", "{run}", "--output", "{tmp}/page"], "one run is given twice"),
        (["train"], "give either a recipe or --resume RUN"),
    ],
)
def test_errors_are_one_line(call, run, tmp_path, arguments, message):
    def fill(text):
        return text.replace("{run}", str(run)).replace("{tmp}", str(tmp_path))

    result = call(*map(fill, arguments))
    assert result.exit_code == 2
    assert fill(message) in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.output


def test_errors_of_processes_that_read_data_are_one_line():
    from torch._utils import ExceptionWrapper

    try:
        raise DataError("1.png: not a readable image (OSError: cut off)")
    except DataError:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(DataError, match="Traceback") as error:
        wrapper.reraise()
    assert cli._message(error.value) == "1.png: not a readable image (OSError: cut off)"


def test_debug_shows_the_traceback(call, tmp_path):
    result = call("--debug", "evaluate", tmp_path / "nothing")
    assert isinstance(result.exception, ValueError)


def test_errors_of_usage(call, run):
    assert call("evaluate").exit_code == 2
    assert call("evaluate", run, "--length", "many").exit_code == 2
    assert call("unheard").exit_code == 2


def test_module_as_a_program(run, tmp_path):
    def program(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "subquad", *map(str, arguments)], capture_output=True, encoding="utf-8"
        )

    result = program("--version")
    assert (result.returncode, result.stdout) == (0, f"subquad {__version__}\n")
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(weights[:1000])
    result = program("generate", run, "--max-new-tokens", "3")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert "corrupt or cut off" in result.stderr
