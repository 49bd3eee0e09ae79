"""Which classes a classifier takes for which others: the confusion matrix as a file, a table and a picture."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subquad.evaluation.files import csv_text, written
from subquad.evaluation.plots import can_draw

# More classes are unreadable as a matrix: the worst confusions are shown instead.
MATRIX_CLASSES = 20
WORST = 20


def count_confusions(labels: Tensor, answers: Tensor, num_classes: int) -> Tensor:
    """How many examples of each class, the row, were taken for each, the column: (num_classes, num_classes) int64.

    Args:
        labels: The right classes, (examples,) int64.
        answers: Those of a model, likewise.
        num_classes: Number of classes.
    """
    return torch.bincount(labels * num_classes + answers, minlength=num_classes**2).view(num_classes, num_classes)


def save_confusion(folder: Path, confusion: Tensor, classes: Sequence[str], about: Mapping[str, Any]) -> None:
    """Write `confusion.json`, `confusion.csv` and, where matplotlib is installed, `confusion.png`.

    Args:
        folder: The folder.
        confusion: (classes, classes) int64: how many examples of a class, the row, were taken for another, the column.
        classes: Names of the classes.
        about: What it is of, for the JSON file.
    """
    rows = confusion.tolist()
    table = csv_text(["class", *classes], ([name, *row] for name, row in zip(classes, rows, strict=True)))
    with written(folder / "confusion.json") as path:
        path.write_text(json.dumps({**about, "classes": list(classes), "matrix": rows}) + "\n", encoding="utf-8")
    with written(folder / "confusion.csv") as path:
        path.write_text(table, encoding="utf-8")
    picture = folder / "confusion.png"
    picture.unlink(missing_ok=True)  # of an earlier evaluation
    if can_draw(picture.name):
        with written(picture) as path:
            path.write_bytes(draw_confusion(confusion, classes))


def worst_confusions(confusion: Tensor, classes: Sequence[str]) -> list[tuple[str, str, int, float]]:
    """The twenty most frequent mistakes: class, answer, number of examples, and their share in the class."""
    mistakes = confusion.clone()
    mistakes.fill_diagonal_(0)
    counts, places = mistakes.flatten().sort(descending=True, stable=True)
    totals = confusion.sum(1)
    found = []
    for number, place in zip(counts[:WORST].tolist(), places[:WORST].tolist(), strict=True):
        row, column = divmod(place, len(classes))
        if number:
            found.append((classes[row], classes[column], number, number / int(totals[row])))
    return found


def draw_confusion(confusion: Tensor, classes: Sequence[str]) -> bytes:
    """A PNG picture, by matplotlib: of few classes the matrix, of many the worst confusions."""
    from matplotlib.figure import Figure

    few = len(classes) <= MATRIX_CLASSES
    figure = Figure(
        figsize=(2 + 0.45 * len(classes), 1.4 + 0.45 * len(classes)) if few else (8, 6.4), layout="constrained"
    )
    (_draw_matrix if few else _draw_worst)(figure.add_subplot(), confusion, classes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _draw_matrix(axes: Any, confusion: Tensor, classes: Sequence[str]) -> None:
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, counts in enumerate(confusion.tolist()):
        for column, number in enumerate(counts):
            if number:
                colour = "white" if shares[row, column] > 0.6 else "black"
                axes.text(column, row, str(number), ha="center", va="center", fontsize=8, color=colour)
    ticks = range(len(classes))
    # Names of classes are names of folders, and no formulas.
    axes.set_xticks(ticks, classes, rotation=0 if max(map(len, classes)) < 3 else 90, parse_math=False)
    axes.set_yticks(ticks, classes, parse_math=False)
    axes.set_xlabel("answer")
    axes.set_ylabel("class")
    axes.spines[:].set_visible(False)


def _draw_worst(axes: Any, confusion: Tensor, classes: Sequence[str]) -> None:
    worst = worst_confusions(confusion, classes)
    places = range(len(worst))
    axes.barh(places, [share for _, _, _, share in worst], color="#2563eb")
    for place, (_, _, number, share) in zip(places, worst, strict=True):
        axes.text(share, place, f" {number}", va="center", fontsize=8)
    axes.set_yticks(places, [f"{name} → {answer}" for name, answer, _, _ in worst], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("share of the examples of a class that are taken for another (and their number)")
    axes.set_title(f"The {len(worst)} most frequent mistakes, {len(classes)} classes", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
