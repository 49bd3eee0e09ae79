"""The command line: each command parses, calls one function of the library, and prints.

Imports stand inside the commands, so that `--help` does not wait for torch.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from subquad import memory
from subquad._version import __version__

USER_ERROR = 2


class _Group(TyperGroup):
    """Errors that a user can cause become one line and exit code 2; `--debug` shows where they come from."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of our output has gone; closing it again at exit would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (ValueError, OSError, ImportError) as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"error: {_message(error)}", err=True)
            raise typer.Exit(USER_ERROR) from None


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error).strip()
    if text.startswith(f"Caught {type(error).__name__} in DataLoader worker"):
        # The traceback of a process that reads data stands before its message, as the last line has it.
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__


app = typer.Typer(
    name="subquad",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, as `subquad train` writes it.")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DATA",
        help="Text file (.txt, .jsonl, .parquet …), folder, glob, hf:DATASET or python-docs; repeat for several files. "
        "Of images, GLUE and the Long Range Arena: their folder. Default: as in the recipe.",
    ),
]
Split = Annotated[str, typer.Option(help="Part of the data: train, valid or test.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … Default: a GPU if there is one.")]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"subquad {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    """Train, evaluate and compare sequence models whose cost grows slower than the square of the length."""
    memory.keep_freed_memory()


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Name of a recipe (see `subquad recipes`) or a YAML file.")
    ] = None,
    data: Data = None,
    output: Annotated[Path | None, typer.Option(help="Run folder to write. Default: runs/RECIPE.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change an entry of the recipe; may be repeated."),
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue this run; needs no recipe.")] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with the model of this run, or finetune it.")
    ] = None,
) -> None:
    """Train a model from a recipe; prints the run folder."""
    if (recipe is None) == (resume is None):
        raise ValueError("give either a recipe or --resume RUN")
    from subquad.training.train import train

    typer.echo(
        train(
            recipe,
            data=_one_or_several(data),
            output=output,
            overrides=tuple(overrides or ()),
            resume=resume,
            init=init,
        )
    )


@app.command()
def evaluate(
    run: RunFolder,
    data: Data = None,
    split: Annotated[
        str | None, typer.Option(help="Part of the data: train, valid or test. Default: test, of GLUE valid.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens in a block. Default: the training length.")] = None,
    context_window: Annotated[
        int, typer.Option(help="Tokens of a block that repeat earlier text and are not scored.")
    ] = 0,
    device: Device = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the result here.")] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write it here, as names and one row of values.")
    ] = None,
) -> None:
    """Evaluate a model as its task asks.

    The perplexity of a text, every token scored (of masked models every masked one), or the accuracy of a classifier,
    whose confusion matrix goes into the run folder.
    """
    from subquad.evaluation import Run, evaluate_run
    from subquad.evaluation.files import csv_text, written

    split = split or Run(run).evaluated_split
    result = evaluate_run(
        run, _one_or_several(data), split=split, length=length, context_window=context_window, device=device
    )
    about, figures = {"run": str(run), "data": data, "split": split}, result.to_dict()
    if json is not None:
        import json as format

        with written(json) as path:
            path.write_text(format.dumps(about | figures, indent=2) + "\n", encoding="utf-8")
    if csv is not None:
        row = about | {"data": " ".join(data or [])} | figures
        with written(csv) as path:
            path.write_text(csv_text(list(row), [row.values()]), encoding="utf-8")
    _print_table(["figure", "value", "over"], result.table())


@app.command()
def glue(
    run: RunFolder,
    output: Annotated[Path, typer.Option(help="Folder for a run of each task and seed, glue.json and glue.csv.")],
    data: Annotated[
        str | None,
        typer.Option(help="Folder with the official files of all tasks, or hf:DATASET. Default: hf:nyu-mll/glue."),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Tasks, as in mrpc,rte. Default: all eight.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of each task; the table has their median.")] = "1,2,3,4,5",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change an entry of every recipe; may be repeated."),
    ] = None,
) -> None:
    """Finetune on all tasks of GLUE; prints one table.

    What is finished is not done again, what was interrupted goes on.
    """
    from subquad.data.glue import GLUE_TASKS
    from subquad.evaluation.glue import glue_note
    from subquad.training.glue import finetune_suite

    names = list(GLUE_TASKS) if tasks is None else tasks.replace(",", " ").split()
    head, rows = finetune_suite(
        run,
        output,
        data=data,
        tasks=names,
        seeds=_positive_numbers("--seeds", seeds),
        overrides=tuple(overrides or ()),
    )
    _print_table(head, rows)
    typer.echo(glue_note(names))
    typer.echo(output / "glue.json")


@app.command()
def lra(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders of the Long Range Arena.")],
    output: Annotated[Path, typer.Option(help="Folder to write lra.json, lra.csv and lra.png to.")],
) -> None:
    """Print the table of the Long Range Arena.

    Runs stand in the table of papers, beside what was published.
    """
    from subquad.evaluation.lra import lra_cells, lra_notes, lra_table, save_lra

    cells = lra_cells(runs)
    save_lra(cells, output)
    _print_table(*lra_table(cells))
    typer.echo("accuracy × 100 on the test set; average (number of tasks)")
    typer.echo("* recalled, verify against the paper; † not the published data, see below\n")
    for line in [*lra_notes(cells), *(cell.describe() for cell in cells)]:
        typer.echo(line)
    typer.echo(output / "lra.json")


@app.command()
def extrapolate(
    run: RunFolder,
    lengths: Annotated[str, typer.Option(help="Lengths to evaluate at, as in 256,512,1024.")],
    data: Data = None,
    split: Split = "test",
    device: Device = None,
) -> None:
    """Evaluate a language model at many lengths.

    Writes extrapolation.json, .csv and .png into the run folder.
    """
    from subquad.evaluation import extrapolate_run

    results = extrapolate_run(
        run, _positive_numbers("--lengths", lengths), _one_or_several(data), split=split, device=device
    )
    _print_table(
        ["length", "perplexity", "per word", "bits/byte", "loss"],
        [
            [
                f"{r.length:,}",
                _number(r.perplexity, ",.2f"),
                _number(r.word_perplexity, ",.2f"),
                _number(r.bits_per_byte, ".4f"),
                f"{r.loss:.4f}",
            ]
            for r in results
        ],
    )
    typer.echo(f"a token is: {results[0].vocabulary}; {results[0].tokens:,} tokens at each length, none skipped")
    typer.echo(run / "extrapolation.png")


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Largest number of tokens to add.")] = 200,
    temperature: Annotated[
        float, typer.Option(help="Below 1 more likely text, above 1 more varied; 0: no chance at all.")
    ] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many most likely tokens.")] = None,
    top_p: Annotated[
        float, typer.Option(help="Draw from the most likely tokens with this probability together.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes the text repeatable.")] = None,
    device: Device = None,
) -> None:
    """Continue a text, printed as it is made."""
    from subquad.evaluation import Run
    from subquad.generation import generate_text

    opened = Run(run)
    opened.require_task("causal-lm", "generation")
    model, tokenizer = opened.load_model(device), opened.load_tokenizer()
    typer.echo(prompt, nl=False)
    generate_text(
        model,
        tokenizer,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stream=lambda text: typer.echo(text, nl=False),
    )
    typer.echo()


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    output: Annotated[Path, typer.Option(help="Folder to write comparison.html and comparison.csv to.")],
    measure: Annotated[
        bool, typer.Option(help="Measure speed and memory of all runs here, one after the other, with equal shapes.")
    ] = True,
) -> None:
    """Put runs side by side on one page that works offline."""
    import csv

    from subquad.evaluation import compare

    page = compare(runs, output, measure=measure, progress=lambda text: typer.echo(text, err=True))
    with page.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        results = list(csv.DictReader(file))
    figures = [key for key in results[0] if key not in ("run", "folder", "task", "vocabulary", "data_fingerprint")]
    rows = [[key, *(_figure(result[key]) for result in results)] for key in figures]
    _print_table(["", *(result["run"] for result in results)], rows)
    typer.echo(page)


@app.command()
def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="File of fairseq, Lightning or torch, or a Hugging Face folder."),
    ],
    output: Annotated[Path, typer.Option(help="Run folder to write.")],
    family: Annotated[str | None, typer.Option(help="Published family. Default: recognised from the weights.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Of a classifier: glue-NAME or lra-NAME. Default: what the checkpoint tells."),
    ] = None,
    dictionary: Annotated[
        Path | None, typer.Option(metavar="FILE", help="dict.txt of fairseq that was used in training.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="word, gpt2-bpe:FOLDER or one of Hugging Face. Default: word with a dictionary.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON with options that the checkpoint does not store.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set such an option; may be repeated."),
    ] = None,
) -> None:
    """Turn a published checkpoint into a run folder.

    Nothing that is in the checkpoint is executed.
    """
    from subquad.compat.convert import convert

    made = convert(
        checkpoint,
        output,
        family=family,
        task=task,
        config=config,
        overrides=overrides or (),
        dictionary=dictionary,
        tokenizer=tokenizer,
    )
    rows = [["family", made.family], ["preset", made.preset or "–"], ["task", made.task]]
    rows += [["parameters", f"{made.parameters:,}"], ["tokens", _number(made.vocabulary, ",")]]
    if made.unit or made.task in ("causal-lm", "masked-lm"):
        rows.append(["a token is", made.unit or "not known (no --dictionary, no --tokenizer)"])
    for name, value in rows:
        typer.echo(f"{name:<12}{value}")
    typer.echo(made.folder)


recipes = typer.Typer(invoke_without_command=True, rich_markup_mode=None, help="List the recipes, or show one.")
app.add_typer(recipes, name="recipes")


@recipes.callback()
def _recipes(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes()


@recipes.command("list")
def list_recipes() -> None:
    """List the recipes of the package, and what each is."""
    import shutil

    from subquad.training.recipe import list_recipes, recipe_text

    names = list_recipes()
    width = max(map(len, names))
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for name in names:
        about = recipe_text(name).partition("\n")[0].removeprefix("# ")
        typer.echo(f"{name:<{width}}  {about}"[:columns])


@recipes.command("show")
def show_recipe(name: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe.")]) -> None:
    """Print a recipe.

    One that extends another is followed by all of its entries.
    """
    from subquad.training.recipe import recipe_text

    text = recipe_text(name)
    typer.echo(text, nl=False)
    if "\nextends:" in text:
        from subquad.training.recipe import load_recipe

        typer.echo("\n---\n" + load_recipe(name).to_yaml(), nl=False)


data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Generate data sets of the Long Range Arena.")
app.add_typer(data, name="data")

Seed = Annotated[int, typer.Option(help="The files depend on it alone, not on the workers.")]
Workers = Annotated[int | None, typer.Option(help="Processes that share the work. Default: one for each core.", min=1)]


@data.command("listops")
def generate_listops(
    output: Annotated[Path, typer.Option(help="Folder to write basic_{train,val,test}.tsv to.")],
    seed: Seed = 0,
    train: Annotated[int, typer.Option(help="Expressions for training.")] = 96_000,
    valid: Annotated[int, typer.Option(help="Expressions for validation.")] = 2_000,
    test: Annotated[int, typer.Option(help="Expressions for the test.")] = 2_000,
    min_length: Annotated[int, typer.Option(help="Expressions have more tokens than this.")] = 500,
    max_length: Annotated[int, typer.Option(help="Expressions have fewer tokens than this.")] = 2_000,
    max_depth: Annotated[int, typer.Option(help="Nodes from the root to the deepest digit.")] = 10,
    max_args: Annotated[int, typer.Option(help="Largest number of arguments.")] = 10,
    workers: Workers = None,
) -> None:
    """Make ListOps: random nested expressions.

    Their values stand beside them, in the release's format.
    """
    from subquad.data.lra import ListOpsLimits, generate_listops

    limits = ListOpsLimits(min_length, max_length, max_depth, max_args)
    files = generate_listops(output, train=train, valid=valid, test=test, limits=limits, seed=seed, num_workers=workers)
    for file in files:
        typer.echo(file)


@data.command("pathfinder")
def generate_pathfinder(
    resolution: Annotated[int, typer.Option(help="Height and width: 32, 64, 128 (Path-X) or 256.")],
    output: Annotated[Path, typer.Option(help="Folder to write pathfinder<RESOLUTION>/ to.")],
    count: Annotated[int, typer.Option(help="Number of images.")],
    difficulty: Annotated[str, typer.Option(help="hard, as in the Long Range Arena, intermediate or easy.")] = "hard",
    seed: Seed = 0,
    workers: Workers = None,
) -> None:
    """Make Pathfinder or Path-X: random dashed paths.

    The images and their list have the release's format.
    """
    from subquad.data.lra import generate_pathfinder

    made = generate_pathfinder(output, resolution, count, difficulty=difficulty, seed=seed, num_workers=workers)
    typer.echo(f"{made.attempts / count:,.1f} attempts for each image, {made.most_attempts:,} at most")
    typer.echo(made.folder)


@data.command("stand-ins")
def make_stand_ins(
    output: Annotated[Path, typer.Option(help="Folder to write aclImdb/, tsv_data/ and cifar-10-batches-py/ to.")],
    train: Annotated[int, typer.Option(help="Examples of each for training.")] = 200,
    test: Annotated[int, typer.Option(help="Examples of each for the test.")] = 50,
    seed: Annotated[int, typer.Option(help="The files depend on it alone.")] = 0,
) -> None:
    """Make small stand-ins for Text, Retrieval and Image.

    They show that a recipe runs and learns, before the real data is there; their numbers compare with nothing.
    """
    from subquad.data.lra import make_stand_ins

    for folder in make_stand_ins(output, train=train, test=test, seed=seed):
        typer.echo(folder)


@app.command()
def info() -> None:
    """Versions, devices, and what each op runs on and why."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from subquad.ops import explain

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    packages = ("torch", "transformers", "tokenizers", "triton", "numba", "accelerate", "datasets", "matplotlib")
    rows = [["subquad", __version__], ["python", platform.python_version()], *([p, installed(p)] for p in packages)]
    rows.append(["system", platform.platform()])
    rows.append(["cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"])
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices[1:]:
        properties = torch.cuda.get_device_properties(device)
        rows.append([device, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"])
    if len(devices) == 1:
        rows.append(["cuda", "not available"])
    _print_table(["", ""], rows)
    for device in devices:
        typer.echo(f"\nops on {device}: what runs, and why nothing faster")
        _print_table(["", ""], [[f"  {op}", reason] for op, reason in explain(device).items()])


def _one_or_several(values: list[str] | None) -> str | list[str] | None:
    return values[0] if values and len(values) == 1 else values or None


def _positive_numbers(option: str, text: str) -> list[int]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option} must be positive numbers with commas, as in 1,2,3, got {text!r}")
    return [int(part) for part in parts]


def _number(value: float | None, format: str) -> str:
    return "–" if value is None else f"{value:{format}}"


def _figure(text: str) -> str:
    value = float(text) if text else None
    return _number(value, ",.0f" if value is not None and value >= 1000 else ".4g")


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as they must be: numbers to the right, other text to the left."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    numeric = [all(row[column][:1].isdecimal() or row[column] == "–" for row in rows) for column in range(len(head))]
    if any(head):
        rows = [head, ["─" * width for width in widths], *rows]
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def main() -> None:
    """Run the command line."""
    # Text of any model can be printed, whatever the terminal's encoding.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    app()
