"""The Long Range Arena (arXiv 2011.04006): the table of papers, from run folders, beside what was published.

The published numbers are those of the recipes' first lines, with what these say of where each comes from.
"""

import dataclasses
import io
import json
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from subquad.data import DataError
from subquad.data.lra import ListOpsLimits
from subquad.data.lra.datasets import RULES, TASKS
from subquad.data.lra.readers import SIZES
from subquad.evaluation.accuracy import arena_options
from subquad.evaluation.files import csv_text, written
from subquad.evaluation.plots import can_draw
from subquad.evaluation.runs import Run
from subquad.training.recipe import list_recipes, load_recipe, recipe_text

TITLES = {
    "listops": "ListOps",
    "text": "Text",
    "retrieval": "Retrieval",
    "image": "Image",
    "pathfinder": "Pathfinder",
    "pathx": "Path-X",
}
CHANCE = {"listops": 17.0, "text": 50.0, "retrieval": 50.0, "image": 10.0, "pathfinder": 50.0, "pathx": 50.0}
"""Accuracy in per cent of the most frequent class, about."""
RECALLED, NOTED = "*", "†"

# Entries of a recipe that its result does not depend on.
_NEUTRAL = {
    "data.source",
    "training.device_batch_size",
    "training.gradient_checkpointing",
    "training.log_steps",
    "training.max_seconds",
    "training.num_workers",
    "training.report_to",
    "training.save_steps",
    "training.seed",
}
_FIRST_LINE = re.compile(r"# (?P<model>[^,]+), .*; accuracy (?P<accuracy>[\d.]+) % \((?P<origin>[^)]+)\);")


@dataclass(frozen=True)
class Published:
    """A published result.

    Args:
        recipe: Name of the recipe that reproduces it.
        model: Name of the model.
        accuracy: In per cent.
        origin: Where the number comes from.
    """

    recipe: str
    model: str
    accuracy: float
    origin: str

    @property
    def steps(self) -> int:
        """Updates of the published run."""
        return _shipped(self.recipe)["training"]["steps"]

    @property
    def pipeline(self) -> str:
        """The code base that it comes from."""
        return _shipped(self.recipe)["data"]["pipeline"]

    @property
    def changes(self) -> list[str]:
        """What its images have that those of the task have not; see `Cell`."""
        return _changes(_shipped(self.recipe)["data"])


@dataclass(frozen=True)
class Cell:
    """The result of a model on a task: that of a run, or the median of runs with different seeds.

    Of a converted checkpoint it is what `evaluate_run` found; its training is not known.

    Args:
        model: Name of the model: the published one, or its mixers; of a checkpoint "converted" before it.
        pipeline: Whose tokens and pixels the data has; see `subquad.data.lra.open_lra`.
        task: Name of the task.
        changes: What the images have that those of the task have not: "colour", "augment", an order of pixels.
        accuracy: In per cent, on the test set, of the model that did best in validation.
        last_accuracy: The same of the last weights; None where a run has not recorded it.
        examples: Number of test examples.
        validation: How the examples came about that chose the model; None where that is not known.
        steps: Updates; None likewise.
        seeds: Of each run; empty likewise.
        runs: Their folders.
        data: Fingerprint of the data.
        num_train: Number of training examples; None for runs that have not recorded it.
        longest: Tokens of the longest text, or pixels; None likewise.
        published: The result that the runs are to reproduce; None where nothing like it was published.
        differences: Entries in which their recipe differs from that of the published result.
    """

    model: str
    pipeline: str
    task: str
    changes: list[str]
    accuracy: float
    last_accuracy: float | None
    examples: int
    validation: str | None
    steps: int | None
    seeds: list[int]
    runs: list[str]
    data: str | None
    num_train: int | None
    longest: int | None
    published: Published | None
    differences: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        content = dataclasses.asdict(self)
        if self.published is not None:
            content["published"] |= {"steps": self.published.steps}
        return content

    @property
    def title(self) -> str:
        """Model, pipeline and task."""
        return f"{self.model} ({self.pipeline}), {' + '.join([TITLES[self.task], *self.changes])}"

    def describe(self) -> str:
        """One line: what the number is of."""
        runs = f", median of the seeds {', '.join(map(str, self.seeds))}" if len(self.seeds) > 1 else ""
        text = f"{self.title}: {self.accuracy:.2f} % of {self.examples:,} test examples{runs}"
        if self.validation is not None:
            text += f"; chosen by validation: {self.validation}"
        if self.last_accuracy is not None:
            text += f"; last weights {self.last_accuracy:.2f} %"
        if self.steps is not None:
            of = "" if self.published is None else f" of the published {self.published.steps:,}"
            text += f"; {self.steps:,}{of} updates"
        if self.published is None:
            return f"{text}; nothing like it was published"
        others = [name for name in self.differences if name != "training.steps"]
        if others:
            text += f"; other entries than the recipe {self.published.recipe}: {', '.join(others)}"
        return text


def lra_cells(runs: Sequence[Path | str]) -> list[Cell]:
    """The results of run folders, one for each model and task, in the order of the models and of the tasks.

    Args:
        runs: Run folders of the task "sequence-classification"; those that differ in nothing but the seed share a cell.
            Converted checkpoints stand alone.

    Raises:
        DataError: There is no run, one is given twice, is of another task or has no result, or two runs of a model
            and a task differ in more than the seed, or not in it.
    """
    opened = [_open(folder) for folder in runs]
    if not opened:
        raise DataError("the table needs at least one run folder")
    if len({run.folder.resolve() for run in opened}) < len(opened):
        raise DataError("lra: one run is given twice")
    groups: dict[tuple[str, str, str], list[tuple[Run, Published | None, list[str]]]] = {}
    for run in opened:
        model, published, differences = _compared(run)
        data = run.recipe["data"]
        groups.setdefault((model, data["pipeline"], data["task"]), []).append((run, published, differences))
    models = list(dict.fromkeys(key[:2] for key in groups))
    ordered = sorted(groups.items(), key=lambda item: (models.index(item[0][:2]), TASKS.index(item[0][2])))
    return [_cell(*key, group) for key, group in ordered]


def _open(folder: Path | str) -> Run:
    run = Run(folder)
    run.require_task("sequence-classification", "the table of the Long Range Arena")
    arena_options(run)
    has_figures = _share(run.metrics.get("accuracy")) is not None and (_whole(run.metrics.get("examples")) or 0) > 0
    has_training = _whole(run.metrics.get("steps")) is not None and "validation" in run.metrics
    if not (has_figures and (run.is_converted or has_training) and run.metrics.get("split", "test") == "test"):
        status = run.info.get("status")
        hint = f": `subquad evaluate {folder} --data FOLDER` computes it" if run.is_converted else ""
        raise DataError(f"{folder}: has no result yet (metrics.json); its status is {status}{hint}")
    _kinds(run)
    return run


def _kinds(run: Run) -> list[str]:
    """What the model is made of: its mixers, or the published family where no configuration of ours describes it."""
    family, mixers = run.config.get("family"), run.config.get("mixers")
    if isinstance(family, str):
        return [family]
    if not isinstance(mixers, list) or not all(isinstance(mixer, dict) and "type" in mixer for mixer in mixers):
        raise DataError(f"{run.folder}: config.json has no list of mixers, so what the model is is not known")
    return _mixer_types(mixers)


def _compared(run: Run) -> tuple[str, Published | None, list[str]]:
    """The name of the model, what was published of it, and in which entries the recipe differs from that one's."""
    data = run.recipe["data"]
    if run.is_converted:
        name = str(run.source.get("model") or run.source.get("family"))
        return f"converted {name}", _published_of(name, data["pipeline"]).get(data["task"]), []
    mixers = _kinds(run)
    published, differences = _nearest_recipe(run.recipe, mixers)
    return " + ".join(mixers) if published is None else published.model, published, differences


def _cell(model: str, pipeline: str, task: str, group: Sequence[tuple[Run, Published | None, list[str]]]) -> Cell:
    (first, published, differences), *others = group
    if first.is_converted and others:
        raise DataError(
            f"{', '.join(str(run.folder) for run, *_ in group)} are all {model} on {task}, and how they differ is not "
            "known: give one of them; `subquad compare` shows them side by side"
        )
    for run, *_ in others:
        # A limit of time ends runs of one recipe after different numbers of updates.
        unequal = [name for name in ("steps", "validation") if run.metrics[name] != first.metrics[name]]
        if names := [*_differences(first.recipe, run.recipe), *unequal]:
            raise DataError(
                f"{first.folder} and {run.folder} are both {model} on {task}, and differ in {', '.join(names)}: "
                "a cell of the table has runs with different seeds; `subquad compare` shows other runs side by side"
            )
        if run.metrics["examples"] != first.metrics["examples"] or run.data_fingerprint != first.data_fingerprint:
            raise DataError(f"{first.folder} and {run.folder} are not of the same data: their median means nothing")
    seeds = [run.seed for run, *_ in group]
    if len(set(seeds)) < len(seeds):
        raise DataError(
            f"{', '.join(str(run.folder) for run, *_ in group)} are all {model} on {task}, with the seeds "
            f"{', '.join(map(str, seeds))}: give one run of each seed"
        )
    all_metrics = [run.metrics for run, *_ in group]
    last = [share for metrics in all_metrics if (share := _share(metrics.get("last_accuracy"))) is not None]
    return Cell(
        model,
        pipeline,
        task,
        changes=_changes(first.recipe["data"]),
        accuracy=100 * statistics.median(metrics["accuracy"] for metrics in all_metrics),
        last_accuracy=100 * statistics.median(last) if len(last) == len(group) else None,
        examples=first.metrics["examples"],
        validation=None if first.is_converted else str(first.metrics["validation"]),
        steps=_whole(first.source.get("updates")) if first.is_converted else first.metrics["steps"],
        seeds=[] if first.is_converted else seeds,
        runs=[str(run.folder) for run, *_ in group],
        data=first.evaluated_fingerprint,
        num_train=None if first.is_converted else _recorded(first, "examples", "train"),
        longest=_recorded(first, "longest_input"),
        published=published,
        differences=differences,
    )


def _recorded(run: Run, *names: str) -> int | None:
    """A number that a run has recorded of its data."""
    entry: Any = run.evaluated_data
    for name in names:
        entry = entry.get(name) if isinstance(entry, dict) else None
    return _whole(entry)


def _whole(value: Any) -> int | None:
    """The value, if it is a whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _share(value: Any) -> float | None:
    """The value, if it is a share, from 0 to 1."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= 1 else None


def _changes(data: Mapping[str, Any]) -> list[str]:
    """What makes images others than those of the task."""
    changes = [option for option in ("colour", "augment") if data.get(option)]
    return [*changes, str(data["permute"])] if data.get("permute") else changes


# What was published


def published_results(task: str) -> list[Published]:
    """The published results of a task, from the recipes of the package.

    Example:
        >>> [result.accuracy for result in published_results("pathx") if result.model == "TNN"]
        [96.1]
    """
    results = []
    for name in list_recipes():
        if "-lra-" in name and _shipped(name)["data"]["task"] == task:
            match = _FIRST_LINE.match(recipe_text(name).partition("\n")[0])
            assert match is not None, name
            results.append(Published(name, match["model"], float(match["accuracy"]), match["origin"]))
    return results


@cache
def _shipped(name: str) -> dict[str, Any]:
    """All entries of a recipe of the package."""
    return dataclasses.asdict(load_recipe(name))


def _nearest_recipe(recipe: Mapping[str, Any], mixers: Sequence[str]) -> tuple[Published | None, list[str]]:
    """Of the recipes with the same data and mixers the one that differs least, and in what."""
    nearest: tuple[Published | None, list[str]] = None, []
    for published in published_results(recipe["data"]["task"]):
        other = _shipped(published.recipe)
        if published.pipeline == recipe["data"]["pipeline"] and _mixer_types(other["model"]["mixers"]) == mixers:
            names = _differences(recipe, other)
            if nearest[0] is None or len(names) < len(nearest[1]):
                nearest = published, names
    return nearest


def _mixer_types(mixers: Iterable[Mapping[str, Any]]) -> list[str]:
    """Which mixers there are, in the order in which they come."""
    return list(dict.fromkeys(str(mixer["type"]) for mixer in mixers))


def _differences(recipe: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Entries that are not equal, of those that a result depends on."""
    mine, theirs = dict(_leaves(recipe)), dict(_leaves(other))
    names = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
    return [name for name in names if name not in _NEUTRAL]


def _leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list) and any(isinstance(value, Mapping) for value in content):
        yield from _leaves({str(index): value for index, value in enumerate(content)}, name)
    else:
        yield name, content


# The table


def lra_table(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """The table as papers print it: a row for each model, and below it what was published of it.

    A star marks numbers that are recalled from memory, a dagger those that a note says something of. The average is
    over the tasks whose number stands behind it, and is missing where one of the first five is.

    Returns:
        The names of the columns, and the rows.
    """
    rows = []
    for model, pipeline in dict.fromkeys((cell.model, cell.pipeline) for cell in cells):
        ours = {cell.task: cell for cell in cells if (cell.model, cell.pipeline) == (model, pipeline)}
        figures = {task: cell.accuracy for task, cell in ours.items()}
        marks = {task: NOTED * bool(_data_notes(cell)) for task, cell in ours.items()}
        rows.append([model, pipeline, *_numbers(figures, marks), _average(figures)])
        if name := next((cell.published.model for cell in ours.values() if cell.published), None):
            published = _published_of(name, pipeline)
            figures = {task: result.accuracy for task, result in published.items()}
            marks = {
                task: RECALLED * ("recalled" in result.origin) + NOTED * bool(result.changes)
                for task, result in published.items()
            }
            rows.append(["  published", pipeline, *_numbers(figures, marks), _average(figures)])
    return ["model", "pipeline", *TITLES.values(), "average"], rows


def _published_of(model: str, pipeline: str) -> dict[str, Published]:
    """What was published of a model, by task."""
    results = ((task, result) for task in TASKS for result in published_results(task))
    return {task: result for task, result in results if (result.model, result.pipeline) == (model, pipeline)}


def _numbers(figures: Mapping[str, float], marks: Mapping[str, str]) -> list[str]:
    return [f"{figures[task]:.2f}{marks[task]}" if task in figures else "–" for task in TASKS]


def _average(figures: Mapping[str, float]) -> str:
    if not set(TASKS[:5]) <= set(figures):
        return "–"
    return f"{statistics.mean(figures.values()):.2f} ({len(figures)})"


def lra_notes(cells: Sequence[Cell]) -> list[str]:
    """What a reader must know of the table: of which numbers the data is not the published one, and why."""
    notes = [f"{cell.title}: {note}" for cell in cells for note in _data_notes(cell)]
    for model, pipeline in dict.fromkeys((cell.published.model, cell.pipeline) for cell in cells if cell.published):
        for task, result in _published_of(model, pipeline).items():
            if result.changes:
                what = " + ".join([TITLES[task], *result.changes])
                notes.append(f"{model} ({pipeline}), {what}, as published: not the images of the task")
    for task in TASKS:
        for pipeline in dict.fromkeys(cell.pipeline for cell in cells):
            of = [cell for cell in cells if (cell.task, cell.pipeline) == (task, pipeline)]
            if len({cell.data for cell in of}) > 1:
                notes.append(f"{TITLES[task]} ({pipeline}): the runs are not of the same data")
    return notes


def _data_notes(cell: Cell) -> list[str]:
    """In what the data of a cell is not the published one."""
    notes = ["not the images of the task"] if cell.changes else []
    published = _published_sizes(cell.task)
    for split, count in (("test", cell.examples), ("train", cell.num_train)):
        if count is not None and count != published[split]:
            kind = {"test": "test", "train": "training"}[split]
            notes.append(f"{count:,} {kind} examples; the published data has {published[split]:,}")
    longest = _published_longest(cell.task, cell.pipeline)
    if longest is None or cell.longest is None:
        return notes
    # How long the longest of the published expressions is nobody says; the others are cut to a length.
    slack = 0.05 * longest if cell.task == "listops" else 0
    if abs(cell.longest - longest) > slack:
        notes.append(f"inputs of up to {cell.longest:,} tokens; those of the published runs have up to {longest:,}")
    return notes


def _published_sizes(task: str) -> dict[str, int]:
    """Examples for training and for the test in the published data."""
    sizes = SIZES[task]
    if "all" in sizes:
        tenth = sizes["all"] // 10
        return {"train": sizes["all"] - 2 * tenth, "test": tenth}
    return {"train": sizes["train"] * 9 // 10 if task == "image" else sizes["train"], "test": sizes["test"]}


def _published_longest(task: str, pipeline: str) -> int | None:
    """Tokens of the longest text in the published runs; None for images, all of which have one size."""
    rules = RULES.get((pipeline, task))
    if rules is None or task != "listops":
        return rules and rules.max_length
    return ListOpsLimits().max_length - 1 + (pipeline == "s4")  # which puts `<eos>` behind


def save_lra(cells: Sequence[Cell], output: Path | str) -> None:
    """Write `lra.json` (everything), `lra.csv` (a line for each cell) and, where matplotlib is installed, `lra.png`.

    Args:
        cells: From `lra_cells`.
        output: Folder to write to, made if it does not exist.
    """
    head, rows = lra_table(cells)
    content = {
        "table": [dict(zip(head, row, strict=True)) for row in rows],
        "notes": lra_notes(cells),
        "cells": [cell.to_dict() for cell in cells],
    }
    lines = [_line(cell) for cell in cells]
    table = csv_text(list(lines[0]), (line.values() for line in lines))
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    with written(output / "lra.json") as path:
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with written(output / "lra.csv") as path:
        path.write_text(table, encoding="utf-8")
    picture = output / "lra.png"
    picture.unlink(missing_ok=True)  # of other runs
    if can_draw(picture.name):
        with written(picture) as path:
            path.write_bytes(_figure(cells))


def _line(cell: Cell) -> dict[str, Any]:
    """The entries of a cell that are no lists, and what was published."""
    names = ("model", "pipeline", "task", "accuracy", "last_accuracy", "examples", "validation", "steps")
    published = cell.published
    return {
        **{name: getattr(cell, name) for name in names},
        "runs": len(cell.runs),
        "published_accuracy": None if published is None else published.accuracy,
        "published_origin": None if published is None else published.origin,
        "published_steps": None if published is None else published.steps,
    }


def _figure(cells: Sequence[Cell]) -> bytes:
    """Bars of the accuracies by task, a line across each where a number was published, and chance."""
    from matplotlib.figure import Figure

    tasks = [task for task in TASKS if any(cell.task == task for cell in cells)]
    models = list(dict.fromkeys((cell.model, cell.pipeline) for cell in cells))
    width = 0.8 / len(models)
    figure = Figure(figsize=(max(4.8, 1.2 * len(tasks) + 2), 4), layout="constrained")
    axes = figure.add_subplot()
    for index, (model, pipeline) in enumerate(models):
        of = [cell for cell in cells if (cell.model, cell.pipeline) == (model, pipeline)]
        label = f"{model} ({pipeline})"
        places = [tasks.index(cell.task) + (index + 0.5) * width - 0.4 for cell in of]
        axes.bar(places, [cell.accuracy for cell in of], 0.9 * width, color=f"C{index}", label=label)
        for place, cell in zip(places, of, strict=True):
            if cell.published is not None:
                axes.hlines(cell.published.accuracy, place - width / 2, place + width / 2, color="black", linewidth=1.5)
    for place, task in enumerate(tasks):
        axes.hlines(CHANCE[task], place - 0.45, place + 0.45, color="0.5", linestyle=":", linewidth=1)
    axes.plot([], [], color="black", linewidth=1.5, label="published")
    axes.plot([], [], color="0.5", linestyle=":", linewidth=1, label="most frequent class")
    axes.set_xticks(range(len(tasks)), [TITLES[task] for task in tasks])
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy (%)")
    axes.set_title("Long Range Arena, test accuracy", loc="left")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()
