"""What models of every family learn in a few minutes of one CPU core.

python benchmarks/learning.py PROBLEM --data FOLDER [--families tnn,hgrn] [--output runs/learning]

Each model is the family's recipe with the changes of the problem, trained and tested by `subquad train` in a process of
its own. A run that was stopped goes on, one that is finished is not repeated. Beside the run folders stand the table of
all finished runs (PROBLEM.json, PROBLEM.csv) and their learning curves (PROBLEM.png).

    subquad data listops --output data/short --train 20000 --min-length 8 --max-length 64 --max-depth 4 --max-args 5
    python benchmarks/learning.py listops --data data/short
    python benchmarks/learning.py text-1024 --data data/imdb
    python benchmarks/learning.py mnist --data data/mnist

CPU minutes are those of the whole command, evaluations included. The baseline always answers the commonest label of the
train split.
"""

import argparse
import csv
import json
import resource
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from side_by_side import processor

from subquad.data.images import ImageSplit
from subquad.evaluation.files import written
from subquad.training.recipe import load_recipe
from subquad.training.tasks import task_class

FAMILIES = ("tnn", "fd-tnn", "ski-tnn", "hgrn", "transnormer-t1", "transnormer-t2", "primal", "transformer")
# There is no recipe of its own for Primal-Attention on tokens of these tasks: it takes the place of softmax attention.
PRIMAL = {
    "model.mixers": [{"type": "primal", "num_heads": 2, "rank": 20, "bias": True}],
    "model.auxiliary_loss_weights": {"ksvd": 0.1},
    "model.causal": False,
}


@dataclass(frozen=True)
class Problem:
    """A task at a size for a CPU.

    Args:
        recipe: What follows the family in the names of the recipes.
        changes: Entries of the recipes that are different, equal for all families.
        families: The families that have a recipe, or a substitute.
        substitutes: For a family whose own recipe is not taken, the family whose recipe is, and what changes in it.
        num_heads: Heads of every mixer that has some; None: the recipe's.
    """

    recipe: str
    changes: Mapping[str, Any]
    families: Sequence[str] = FAMILIES
    substitutes: Mapping[str, tuple[str, Mapping[str, Any]]] = field(
        default_factory=lambda: {"primal": ("transformer", PRIMAL)}
    )
    num_heads: int | None = None

    def train_options(self, family: str) -> list[str]:
        """Recipe and overrides of a family, as `subquad train` takes them."""
        base, changes = self.substitutes.get(family, (family, {}))
        recipe = f"{base}-{self.recipe}"
        entries = {**self.changes, **changes}
        mixers = published = load_recipe(recipe).model["mixers"]
        num_layers = entries.get("model.num_hidden_layers")
        if num_layers is not None and len(mixers) > num_layers:  # TransNormer: as many local layers as linear ones
            mixers = mixers[:: len(mixers) // num_layers]
        if self.num_heads is not None:
            mixers = [mixer | {"num_heads": self.num_heads} if "num_heads" in mixer else mixer for mixer in mixers]
        if mixers != published:
            entries = {"model.mixers": mixers} | entries
        return [recipe, *(f"--set={key}={json.dumps(value)}" for key, value in entries.items())]


SMALL = {
    "model.padding": "masked",
    "model.hidden_size": 64,
    "model.channel_mixer.hidden_size": 128,
    "training.decay": "matrices",
    "training.weight_decay": 0.01,
    "training.max_grad_norm": 1.0,
    "training.num_workers": 0,
    "training.seed": 1,
}
TEXT = {
    **SMALL,
    "model.hidden_size": 32,
    "model.channel_mixer.hidden_size": 64,
    "model.num_hidden_layers": 2,
    "model.dropout": 0.0,  # no review is seen twice
    "model.channel_mixer.dropout": 0.0,
    "data.valid_fraction": 0.1,  # so that the test reviews do not choose the model
    "training.batch_size": 16,
    "training.device_batch_size": 16,
    "training.schedule": {"type": "cosine", "peak": 0.003, "warmup": 100},
}
PROBLEMS = {
    "listops": Problem(
        "lra-listops",
        {
            **SMALL,
            "model.num_hidden_layers": 4,
            "training.steps": 1000,
            "training.batch_size": 32,
            "training.device_batch_size": 32,
            "training.schedule": {"type": "cosine", "peak": 0.003, "warmup": 100},
            "training.eval_steps": 250,
        },
    ),
    "text-1024": Problem(
        "lra-text",
        {**TEXT, "data.max_length": 1024, "training.steps": 1400, "training.eval_steps": 700},
        num_heads=2,  # at width 32 eight heads have four features each: five times the time of two
    ),
    "text-4096": Problem(
        "lra-text",
        {
            **TEXT,
            "training.device_batch_size": 4,  # reviews are of very different lengths: less padding
            "training.steps": 600,
            "training.eval_steps": 600,
        },
        num_heads=2,
    ),
    "mnist": Problem(
        "image-tiny",
        {"training.steps": 1500, "training.eval_steps": 500},
        families=("tnn", "fd-tnn", "hgrn", "transnormer-t2", "primal", "transformer"),
        substitutes={},
    ),
    "mnist-pixels": Problem("pixels-tiny", {}, families=("tnn", "fd-tnn", "hgrn", "transnormer-t2"), substitutes={}),
}


def train(problem: Problem, family: str, data: Path, folder: Path) -> None:
    """Train a model until its run folder holds the metrics, and add up the CPU time it takes."""
    if (folder / "run.json").exists():
        command = ["subquad", "train", "--resume", str(folder)]
    else:
        command = ["subquad", "train", *problem.train_options(family), "--data", str(data), "--output", str(folder)]
    print(shlex.join(command), file=sys.stderr)
    earlier = cpu_seconds(folder)
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        subprocess.run(command, check=True)
    finally:
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = earlier + end.ru_utime - start.ru_utime + end.ru_stime - start.ru_stime
        if folder.exists():
            with written(folder / "cpu.json") as path:
                path.write_text(json.dumps({"seconds": round(seconds, 1)}) + "\n")


def cpu_seconds(folder: Path) -> float:
    """What the processes that trained a run have taken so far."""
    path = folder / "cpu.json"
    return json.loads(path.read_text())["seconds"] if path.exists() else 0.0


def baseline(problem: Problem, data: Path) -> float:
    """Accuracy on the test split of always answering the commonest label of the train split."""
    name, *overrides = problem.train_options(problem.families[0])
    changes = [override.removeprefix("--set=") for override in overrides]
    recipe = load_recipe(name, [*changes, f"data.source={json.dumps(str(data))}"])
    task: Any = task_class(recipe.task)(recipe)
    answer = Counter(labels(task.data.train)).most_common(1)[0][0]
    right = [label == answer for label in labels(task.data.test)]
    return sum(right) / len(right)


def labels(split: Any) -> list[int]:
    """The class of every example of a split."""
    if isinstance(split, ImageSplit):
        return split.labels.tolist()
    return [int(example["labels"]) for example in split]


def result(family: str, folder: Path) -> dict[str, Any]:
    """The row of a finished run."""
    metrics = json.loads((folder / "metrics.json").read_text())
    recipe = load_recipe(folder / "recipe.yaml")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    batch_size = recipe.training.batch_size
    return {
        "family": family,
        "parameters": metrics["parameters"],
        "updates": metrics["steps"],
        "examples_seen": metrics["steps"] * batch_size,
        "cpu_minutes": round(cpu_seconds(folder) / 60, 1),
        "accuracy": metrics["accuracy"],
        "correct": metrics["correct"],
        "test_examples": metrics["examples"],
        "command": json.loads((folder / "run.json").read_text())["command"],
        "curve": [(line["step"] * batch_size, line["eval_accuracy"]) for line in lines if "eval_accuracy" in line],
    }


def write(name: str, output: Path, rows: Sequence[Mapping[str, Any]], commonest: float) -> None:
    """Write the table, as JSON and CSV, and the figure; print the table."""
    content = {"problem": name, "baseline": commonest, "processor": processor(), "rows": rows}
    with written(output / f"{name}.json") as path:
        path.write_text(json.dumps(content, indent=1) + "\n")
    columns = [key for key in rows[0] if key != "curve"]
    with written(output / f"{name}.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with written(output / f"{name}.png") as path:
        draw(path, rows, commonest)
    print("| family | parameters | updates | examples seen | CPU minutes | test accuracy | above the baseline |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| `{row['family']}` | {row['parameters']:,} | {row['updates']:,} | {row['examples_seen']:,} "
            f"| {row['cpu_minutes']} | {row['accuracy']:.1%} of {row['test_examples']:,} "
            f"| {100 * (row['accuracy'] - commonest):+.1f} points |"
        )
    print(f"| always the commonest label | | | | | {commonest:.1%} | |")


def draw(path: Path, rows: Sequence[Mapping[str, Any]], commonest: float) -> None:
    """Validation accuracy against examples seen, with the baseline."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        examples, accuracies = zip(*row["curve"], strict=True)
        axes.plot(examples, accuracies, marker="o", markersize=3, label=row["family"])
    axes.axhline(commonest, color="0.4", linestyle="--", linewidth=1, label="commonest label")
    axes.set_xlabel("examples seen")
    axes.set_ylabel("validation accuracy")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--families", help="default: all of the problem")
    parser.add_argument("--output", type=Path, default=Path("runs/learning"))
    args = parser.parse_args()
    problem = PROBLEMS[args.problem]
    families = problem.families if args.families is None else args.families.split(",")
    if unknown := set(families) - set(problem.families):
        parser.error(f"no such family: {', '.join(unknown)}; there are: {', '.join(problem.families)}")
    runs = args.output / args.problem
    commonest = baseline(problem, args.data)
    for family in families:
        if not (runs / family / "metrics.json").exists():
            train(problem, family, args.data, runs / family)
        finished = [name for name in problem.families if (runs / name / "metrics.json").exists()]
        write(args.problem, args.output, [result(name, runs / name) for name in finished], commonest)


if __name__ == "__main__":
    main()
