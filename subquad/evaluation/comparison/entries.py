"""A run in the comparison: what its table and its figures ask of it. What is missing or of another form is None."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from subquad.data import DataError, build_masking
from subquad.evaluation.charts import Point, swatch
from subquad.evaluation.efficiency import Efficiency
from subquad.evaluation.runs import Run

# A loss curve is drawn with at most so many points, each the mean of its stretch.
CURVE_POINTS = 240


@dataclass
class Entry:
    """A run in the comparison.

    Args:
        name: What it is called there.
        colour: Index of its colour.
        run: The run.
        efficiency: Its speed and memory, where they are measured for the comparison.
    """

    name: str
    colour: int
    run: Run
    efficiency: Efficiency | None = None

    def check(self) -> None:
        """Read all files now: errors come before long work."""
        run = self.run
        if not any([run.metrics, run.log, run.extrapolation, run.info, run.recipe]):
            raise DataError(f"{self.run.folder}: nothing to compare (only a model, no metrics.json, log.jsonl, …)")

    @property
    def label(self) -> str:
        """Its name beside its colour, in HTML."""
        return f'<span class="name">{swatch(self.colour)}{escape(self.name)}</span>'

    @property
    def task(self) -> str:
        """Its task."""
        return self.run.task

    @property
    def vocabulary(self) -> str | None:
        """What a token is."""
        return text_of(self.run.metrics.get("vocabulary"))

    @property
    def evaluated_on(self) -> str | None:
        """Tells texts apart; unlike the fingerprint of the data, a size in bytes is that of any vocabulary."""
        size = self.metric("bytes")
        return self.run.evaluated_fingerprint if size is None else f"{self.split} of {size} bytes"

    @property
    def masking(self) -> str | None:
        """How tokens were masked that its perplexity is of."""
        return repr(build_masking(self.run.masking)) if self.task == "masked-lm" else None

    @property
    def extrapolated_on(self) -> str | None:
        """As `evaluated_on`."""
        split, rows = self.run.extrapolation.get("split"), self._rows()
        return f"{split} of {rows[0].get('bytes') or rows[0].get('tokens')}" if rows else None

    @property
    def unit(self) -> str:
        """What its speed and its training are counted in."""
        is_of_images = self.task == "image-classification"
        return text_of(self.run.metrics.get("unit")) or ("images" if is_of_images else "tokens")

    @property
    def split(self) -> str | None:
        """The part of the data that its figures are of."""
        return text_of(self.run.metrics.get("split"))

    @property
    def training_length(self) -> int | None:
        """Tokens in a training block."""
        return self.run.training_length

    def metric(self, name: str) -> float | None:
        """A number of `metrics.json`."""
        return number(self.run.metrics.get(name))

    def parameters(self) -> float | None:
        """Number of parameters; of converted models that are not evaluated, too."""
        known = self.metric("parameters")
        return number(self.run.info.get("parameters")) if known is None else known

    def speed(self) -> float | None:
        """Units per second in training."""
        if self.efficiency is None:
            return self.metric(f"{self.unit}_per_second")
        step = self.efficiency.training
        return step.tokens_per_second / (step.length if self.unit == "images" else 1)

    def memory(self) -> float | None:
        """Most bytes in use at once in training."""
        return self.efficiency.training.peak_memory_bytes if self.efficiency else self.metric("peak_memory_bytes")

    def generation(self) -> list[Point]:
        """Milliseconds for a token against the length of the context."""
        return [(g.context, g.ms_per_token) for g in self.efficiency.generation] if self.efficiency else []

    def at_length(self, figure: str) -> list[Point]:
        """A figure (perplexity, bits_per_byte) against the length it was evaluated at."""
        points = [(number(row.get("length")), number(row.get(figure))) for row in self._rows()]
        return [(x, y) for x, y in points if x is not None and y is not None]

    def confusion_picture(self) -> str | None:
        """`confusion.png` in base64; None where there is none."""
        path = self.run.folder / "confusion.png"
        content = path.read_bytes() if path.is_file() else b""
        return base64.b64encode(content).decode() if content.startswith(b"\x89PNG") else None

    def _rows(self) -> list[dict[str, Any]]:
        rows = self.run.extrapolation.get("results")
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def accuracy_curve(self, x: str) -> list[Point]:
        """Accuracy on the validation data against a column of the log; none where numbers are predicted."""
        if self.task != "glue":
            return self.curve(x, "eval_accuracy")
        return [] if self.run.metrics.get("glue_task") == "stsb" else self.curve(x, "eval_score")

    def curve(self, x: str, y: str) -> list[Point]:
        """Two columns of the log."""
        points = [(number(entry.get(x)), number(entry.get(y))) for entry in self.run.log]
        return _thinned([(px, py) for px, py in points if px is not None and py is not None])


def number(value: Any) -> float | None:
    """The value, if it is a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < float("inf") else None


def text_of(value: Any) -> str | None:
    """The value, if it is a text."""
    return value if isinstance(value, str) else None


def _thinned(points: Sequence[Point]) -> list[Point]:
    size = -(-len(points) // CURVE_POINTS)
    if size <= 1:
        return list(points)
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    return [(s[-1][0], sum(y for _, y in s) / len(s)) for s in stretches]
