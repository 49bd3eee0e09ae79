"""The comparison of runs: one page that works offline, and a table for other programs.

Every number comes from a run folder or is measured here; what is missing is shown as "–".
"""

import base64
import csv
import datetime
import io
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from subquad._version import __version__
from subquad.data import DataError, build_masking
from subquad.evaluation.charts import Axis, Point, Series, bar_chart, line_chart, swatch
from subquad.evaluation.efficiency import Efficiency, measure_run
from subquad.evaluation.files import written
from subquad.evaluation.runs import Run

MISSING = "–"
# What a perplexity is taken over, by task.
SCORED = {
    "causal-lm": "token",
    "masked-lm": "masked token",
    "sequence-classification": "example",
    "glue": "example",
    "image-classification": "image",
}
# Scores of classifiers that are better when they are higher: name on the page, unit, and whether they are shares.
SCORES = {
    "accuracy": ("Accuracy", "", True),
    "accuracy_mismatched": ("Accuracy", "mismatched", True),
    "top5_accuracy": ("Accuracy", "five answers", True),
    "last_accuracy": ("Accuracy", "last weights", True),
    "f1": ("F1", "", True),
    "matthews": ("Matthews' correlation", "", False),
    "pearson": ("Pearson's correlation", "", False),
    "spearman": ("Spearman's correlation", "", False),
}
# A loss curve is drawn with at most so many points, each the mean of its stretch.
CURVE_POINTS = 240


def compare(
    runs: Sequence[Path | str], output: Path | str, *, measure: bool = True, progress: Callable[[str], object] = str
) -> Path:
    """Write `comparison.html` and `comparison.csv`.

    Args:
        runs: Run folders.
        output: Folder to write to, made if it does not exist.
        measure: Whether speed and memory of all runs are measured here, one after the other, with equal shapes.
            Otherwise the page shows what each run recorded when it was trained, and no generation speed.
        progress: Called with what is done next.

    Returns:
        The path of the page.

    Raises:
        DataError: There are no runs, one is given twice, or one cannot be read.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        raise DataError("compare needs at least one run folder")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise DataError("compare: one run is given twice")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    entries = [
        _Entry(name, colour, Run(folder)) for colour, (name, folder) in enumerate(zip(names, folders, strict=True))
    ]
    for entry in entries:
        entry.check()
    if measure:
        lengths = [entry.training_length for entry in entries if entry.training_length]
        for entry in entries:
            progress(f"measure {entry.name}")
            entry.efficiency = measure_run(entry.run.folder, length=min(lengths, default=512))
    report = _Report(entries)
    command = shlex.join(
        ["subquad", "compare", *map(str, runs), "--output", str(output), *([] if measure else ["--no-measure"])]
    )
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    with written(output / "comparison.csv") as path:
        path.write_text(report.csv(), encoding="utf-8")
    with written(output / "comparison.html") as path:
        path.write_text(report.html(command), encoding="utf-8")
    return output / "comparison.html"


@dataclass
class _Entry:
    """A run in the comparison: what the page asks of it."""

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
        return f'<span class="name">{swatch(self.colour)}{escape(self.name)}</span>'

    @property
    def task(self) -> str:
        return self.run.task

    @property
    def vocabulary(self) -> str | None:
        return _text(self.run.metrics.get("vocabulary"))

    @property
    def evaluated_on(self) -> str | None:
        """Tells texts apart; unlike the fingerprint of the data, a size in bytes is that of any vocabulary."""
        size = self.metric("bytes")
        return self.run.data_fingerprint if size is None else f"{self.split} of {size} bytes"

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
    def split(self) -> str | None:
        return _text(self.run.metrics.get("split"))

    @property
    def training_length(self) -> int | None:
        return self.run.training_length

    def metric(self, name: str) -> float | None:
        return _number(self.run.metrics.get(name))

    def speed(self) -> float | None:
        return self.efficiency.training.tokens_per_second if self.efficiency else self.metric("tokens_per_second")

    def memory(self) -> float | None:
        return self.efficiency.training.peak_memory_bytes if self.efficiency else self.metric("peak_memory_bytes")

    def generation(self) -> list[Point]:
        return [(g.context, g.ms_per_token) for g in self.efficiency.generation] if self.efficiency else []

    def at_length(self, figure: str) -> list[Point]:
        """A figure (perplexity, bits_per_byte) against the length it was evaluated at."""
        points = [(_number(row.get("length")), _number(row.get(figure))) for row in self._rows()]
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
        points = [(_number(entry.get(x)), _number(entry.get(y))) for entry in self.run.log]
        return _thinned([(px, py) for px, py in points if px is not None and py is not None])


@dataclass(frozen=True)
class _Column:
    """A column of the table.

    Args:
        key: Its name in the CSV file.
        head: Its name on the page.
        unit: What stands below the name.
        value: The number of a run.
        format: How it is written.
        best: "min" or "max" where one value is better than another.
        fact: What a value that is best among several is called.
    """

    key: str
    head: str
    unit: str
    value: Callable[[_Entry], float | None]
    format: Callable[[float], str]
    best: str | None = None
    fact: str | None = None


def _recorded(
    key: str, head: str, unit: str, format: Callable[[float], str], best: str | None = None, fact: str | None = None
) -> _Column:
    """A column of `metrics.json`."""
    return _Column(key, head, unit, lambda entry: entry.metric(key), format, best, fact)


@dataclass
class _Report:
    entries: list[_Entry]
    columns: list[_Column] = field(init=False)

    def __post_init__(self) -> None:
        self.vocabularies = _distinct(entry.vocabulary for entry in self.entries)
        self.tasks = _distinct(entry.task for entry in self.entries)
        self.maskings = _distinct(entry.masking for entry in self.entries)
        self.texts = max((_distinct(e.evaluated_on for e in self._of(task)) for task in self.tasks), key=len)
        self.measured = self.entries[0].efficiency is not None
        # Of texts in different tokens only bits per byte can be compared; of different texts nothing.
        self.quality = "perplexity" if len(self.vocabularies) < 2 else "bits_per_byte"
        self.longest = max(_common(e.at_length(self.quality) for e in self.entries), default=None)
        self.context = max(_common(e.generation() for e in self.entries), default=None)
        self.columns = list(self._columns())

    def _columns(self) -> list[_Column]:
        same_data = len(self.texts) < 2
        same_tokens = same_data and len(self.vocabularies) < 2
        per_token, per_byte = "min" if same_tokens else None, "min" if same_data else None
        bits = None if same_tokens else "Fewest bits per byte"
        columns = []
        if "causal-lm" in self.tasks:
            columns += [
                self._perplexity("perplexity", "causal-lm", per_token, "Lowest perplexity"),
                _recorded("word_perplexity", "Perplexity", "per word", _decimals, per_byte),
                _recorded("bits_per_byte", "Bits per byte", "", "{:.3f}".format, per_byte, bits),
            ]
        if "masked-lm" in self.tasks:
            per_masked = per_token if len(self.maskings) < 2 else None
            fact = "Lowest perplexity of masked tokens"
            columns.append(self._perplexity("masked_perplexity", "masked-lm", per_masked, fact))
        columns += [self._score(key) for key in SCORES if any(e.metric(key) is not None for e in self.entries)]
        if self.longest is not None:
            name, unit = ("Perplexity", "per token") if self.quality == "perplexity" else ("Bits per byte", "")
            columns.append(
                _Column(
                    f"{self.quality}_at_{self.longest:.0f}",
                    f"{name} at length {self.longest:,.0f}",
                    unit,
                    lambda e: dict(e.at_length(self.quality)).get(self.longest or 0),
                    _decimals if unit else "{:.3f}".format,
                    per_byte if len(_distinct(e.extrapolated_on for e in self.entries)) < 2 else None,
                    f"Best at length {self.longest:,.0f}",
                )
            )
        columns += [
            _Column(
                "tokens_per_second", "Training speed", "tokens/s", _Entry.speed, _rounded, "max", "Fastest training"
            ),
            _Column("peak_memory_bytes", "Peak memory", "training", _Entry.memory, _bytes, "min"),
        ]
        if self.context is not None:
            columns.append(
                _Column(
                    f"generation_ms_at_{self.context:.0f}",
                    f"Generation after {self.context:,.0f}",
                    "ms/token",
                    lambda e: dict(e.generation()).get(self.context or 0),
                    _decimals,
                    "min",
                    f"Fastest generation after {self.context:,.0f} tokens",
                )
            )
        columns += [
            _recorded("parameters", "Parameters", "", _count),
            _recorded("tokens_trained", "Trained on", "tokens", _count),
            _recorded("train_seconds", "Training time", "", _duration),
        ]
        return columns

    def _of(self, task: str) -> list[_Entry]:
        return [entry for entry in self.entries if entry.task == task]

    def _score(self, key: str) -> _Column:
        """A score of classifiers, of which the highest is the best where all are of the same data."""
        head, unit, is_share = SCORES[key]
        having = [e for e in self.entries if e.metric(key) is not None]
        is_alone = len(having) == 1 < len(self.entries)
        fact = f"Highest {head[0].lower()}{head[1:]}" if is_share else f"Highest {head}"
        return _recorded(
            key,
            head,
            unit,
            "{:.2%}".format if is_share else "{:.4f}".format,
            "max" if not is_alone and len(_distinct(e.evaluated_on for e in having)) < 2 else None,
            f"{fact} ({unit})" if unit else fact,
        )

    def _perplexity(self, key: str, task: str, best: str | None, fact: str) -> _Column:
        """Perplexity in the runs of one task; that of another is another quantity."""
        if len(self._of(task)) == 1 < len(self.entries):
            best = None  # there is nothing to compare it with

        def value(entry: _Entry) -> float | None:
            return entry.metric("perplexity") if entry.task == task else None

        return _Column(key, "Perplexity", f"per {SCORED[task]}", value, _decimals, best, fact)

    # The table for programs

    def csv(self) -> str:
        curves: dict[str, Callable[[_Entry], list[Point]]] = {
            "perplexity": lambda e: e.at_length("perplexity"),
            "bits_per_byte": lambda e: e.at_length("bits_per_byte"),
            "generation_ms": _Entry.generation,
        }
        places = [(name, x) for name, of in curves.items() for x in sorted({x for e in self.entries for x, _ in of(e)})]
        scalars = [column for column in self.columns if "_at_" not in column.key]
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(
            ["run", "folder", "task", "vocabulary", "data_fingerprint", "training_length"]
            + [column.key for column in scalars]
            + [f"{name}_at_{x:.0f}" for name, x in places]
        )
        for e in self.entries:
            writer.writerow(
                [e.name, e.run.folder, e.task, e.vocabulary, e.run.data_fingerprint, e.training_length]
                + [column.value(e) for column in scalars]
                + [dict(curves[name](e)).get(x) for name, x in places]
            )
        return table.getvalue()

    # The page

    def html(self, command: str) -> str:
        now = datetime.datetime.now().astimezone()
        names = [entry.name for entry in self.entries]
        title = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        footer = [
            f"<p>Made by <code>{escape(command)}</code></p>",
            f"<p>subquad {__version__}, {now:%d %B %Y, %H:%M %Z}</p>",
        ]
        template = Template(files("subquad.evaluation").joinpath("report.html").read_text(encoding="utf-8"))
        return template.substitute(
            title=escape(title),
            subtitle=self._subtitle(),
            notes=self._notes(),
            facts=self._facts(),
            table=self._table(),
            figures=self._figures(),
            runs=self._runs(),
            footer="\n".join(footer),
        )

    def _subtitle(self) -> str:
        parts = [
            _listed("Data", _distinct(e.run.data_name for e in self.entries)),
            _listed("A token is", self.vocabularies),
            _listed("Trained on", _distinct(e.run.hardware for e in self.entries)),
            _listed("Measured on", _distinct(e.efficiency.device for e in self.entries if e.efficiency)),
            _listed("Date", _distinct(e.run.date for e in self.entries)),
        ]
        return " ".join(f"<span>{part}</span>" for part in parts if part)

    def _notes(self) -> str:
        notes = []
        if len(self.tasks) > 1:
            notes.append(
                f"<b>Different tasks</b> ({', '.join(map(escape, self.tasks))}). "
                "Their losses are of different things and cannot be compared: best values are those of one task."
            )
        if len(self.maskings) > 1:
            notes.append("<b>Different masking.</b> Perplexities of masked tokens cannot be compared.")
        if len(self.texts) > 1:
            notes.append(
                "<b>Different data.</b> The runs were not evaluated on the same data: their losses cannot be compared."
            )
        elif len(self.vocabularies) < 2 and len(_distinct(e.run.data_fingerprint for e in self.entries)) > 1:
            notes.append("<b>Different training data.</b> The text the runs were evaluated on is the same.")
        if len(_distinct(e.extrapolated_on for e in self.entries)) > 1:
            notes.append(
                "<b>Length extrapolation on different texts.</b> Its curves cannot be compared with each other."
            )
        if len(self.vocabularies) > 1:
            units = ", ".join(escape(v) for v in self.vocabularies)
            notes.append(
                f"<b>Different vocabularies</b> ({units}). "
                "Losses and perplexities per token cannot be compared; bits per byte can."
            )
        load = max((e.efficiency.load or 0.0 for e in self.entries if e.efficiency), default=0.0)
        cores = os.cpu_count() or 1
        # The runs measured before account for a load of up to one for each core.
        if load > 1.5 * cores:
            notes.append(
                f"<b>Busy machine.</b> The load was {load:.1f} on {cores} cores while speed was measured: "
                "measure again on an idle one before you rely on it."
            )
        if not self.measured and len(_distinct(e.run.hardware for e in self.entries)) > 1:
            notes.append("<b>Different hardware.</b> Speed and memory were recorded on different machines.")
        return "\n".join(f'<p class="note" role="note">{note}</p>' for note in notes)

    def _facts(self) -> str:
        facts = []
        for column in self.columns:
            values = self._values(column)
            if column.fact is None or column.best is None or not values:
                continue
            best = _best(column, [value for value, _ in values])
            winners = [entry for value, entry in values if column.format(value) == column.format(best)]
            name = column.head if len(self.entries) == 1 else column.fact
            facts.append(
                f'<div class="fact"><div class="label">{escape(name)}</div>'
                f'<div class="figure">{escape(column.format(best))} <small>{escape(column.unit)}</small></div>'
                f"{' '.join(entry.label for entry in winners)}</div>"
            )
        return f'<div class="facts">{"".join(facts)}</div>' if facts else ""

    def _values(self, column: _Column) -> list[tuple[float, _Entry]]:
        return [(value, entry) for entry in self.entries if (value := column.value(entry)) is not None]

    def _table(self) -> str:
        head = "".join(f"<th scope=col>{escape(c.head)}<small>{escape(c.unit)}</small></th>" for c in self.columns)
        rows = []
        for entry in self.entries:
            cells = [f"<th scope=row>{entry.label}</th>"]
            for column in self.columns:
                value = column.value(entry)
                values = [v for v, _ in self._values(column)]
                text = MISSING if value is None else column.format(value)
                is_best = column.best and len(values) > 1 and text == column.format(_best(column, values))
                cells.append(f"<td{' class=best' if is_best else ''}>{escape(text)}</td>")
            rows.append(f"<tr>{''.join(cells)}</tr>")
        splits = _distinct(e.split for e in self.entries)
        on = f"Evaluated on the {splits[0]} split. " if len(splits) == 1 else ""
        rules = _distinct(_text(e.run.metrics.get("validation")) for e in self.entries)
        chosen = f"Checkpoints chosen by validation: {'; '.join(rules)}. " if rules else ""
        source = "measured for this page" if self.measured else "as recorded in training"
        words = "Perplexity per word counts ends of lines as words. " if self._has("word_perplexity") else ""
        return (
            '<div class="scroll" tabindex="0" role="region" aria-label="Results"><table>'
            f"<thead><tr><th scope=col>Run</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
            f'<p class="under">{escape(on + chosen)}{words}'
            f"Speed and memory {source}. Best values are marked; {MISSING} is not known.</p>"
        )

    def _has(self, key: str) -> bool:
        return any(column.key == key and self._values(column) for column in self.columns)

    # Figures

    def _figures(self) -> str:
        curves = [
            draw(against, task)
            for task in self.tasks
            for draw in (self._loss, self._accuracy)
            for against in ("step", "time")
        ]
        figures = [*curves, *self._confusions(), self._extrapolation(), self._generation(), *self._bars()]
        return "\n".join(figure for figure in figures if figure)

    def _figure(self, title: str, chart: str, caption: str, drawn: Sequence[_Entry] = ()) -> str:
        legend = "".join(f"<li>{entry.label}</li>" for entry in drawn)
        legend = f'<ul class="legend">{legend}</ul>' if legend else '<div class="legend"></div>'
        return f"<figure><h3>{escape(title)}</h3>{legend}{chart}<figcaption>{escape(caption)}</figcaption></figure>"

    def _loss(self, against: str, task: str) -> str:
        drawn = [e for e in self._of(task) if e.curve(against, "eval_loss")]
        if not drawn:
            return ""
        series = [Series(e.name, e.colour, e.curve(against, "eval_loss")) for e in drawn]
        series += [Series(e.name, e.colour, e.curve(against, "loss"), is_background=True) for e in drawn]
        loss = Axis(f"loss (nats per {SCORED[task]})" if task in SCORED else "loss (nats)", "{:.4g}".format)
        thick_and_thin = "Lower is better. Thick: validation loss; thin: training loss."
        return self._while_training(against, task, "Loss", series, loss, thick_and_thin, drawn)

    def _accuracy(self, against: str, task: str) -> str:
        drawn = [e for e in self._of(task) if e.accuracy_curve(against)]
        if not drawn:
            return ""
        series = [Series(e.name, e.colour, e.accuracy_curve(against)) for e in drawn]
        accuracy = Axis("accuracy", "{:.3g}".format)
        return self._while_training(
            against, task, "Accuracy", series, accuracy, "Higher is better. On the validation data.", drawn
        )

    def _while_training(
        self,
        against: str,
        task: str,
        title: str,
        series: Sequence[Series],
        axis: Axis,
        caption: str,
        drawn: Sequence[_Entry],
    ) -> str:
        """What became better in training, against the updates ("step") or against minutes ("time")."""
        of_task = f" ({task})" if len(self.tasks) > 1 else ""
        if against == "step":
            chart = line_chart(series, Axis("step", _whole), axis)
            return self._figure(f"{title} while training{of_task}", chart, caption, drawn)
        series = [Series(s.name, s.colour, [(x / 60, y) for x, y in s.points], s.is_background) for s in series]
        return self._figure(
            f"{title} against time{of_task}",
            line_chart(series, Axis("minutes of training", "{:.4g}".format), axis),
            f"The curve furthest to the left reaches the same {title.lower()} first; "
            "times are those of the training machine.",
            drawn,
        )

    def _confusions(self) -> list[str]:
        """The confusion matrix of every run that `evaluate` drew one of."""
        figures = []
        for entry in self.entries:
            picture = entry.confusion_picture()
            if picture is not None:
                image = f'<img alt="Confusion matrix of {escape(entry.name)}" src="data:image/png;base64,{picture}">'
                caption = "Which classes are taken for which others; confusion.csv in the run folder has all numbers."
                figures.append(self._figure("Confusions", image, caption, [entry]))
        return figures

    def _extrapolation(self) -> str:
        drawn = [e for e in self.entries if e.at_length(self.quality)]
        if not drawn:
            return ""
        points = {e.name: e.at_length(self.quality) for e in drawn}
        values = [y for line in points.values() for _, y in line]
        lengths = sorted({x for line in points.values() for x, _ in line})
        by_length: dict[int, list[str]] = {}
        for e in drawn:
            if e.training_length:
                by_length.setdefault(e.training_length, []).append(e.name)
        marks = [
            (float(n), f"trained at {n:,}" if len(by_length) == 1 else f"{', '.join(names)}: {n:,}")
            for n, names in by_length.items()
        ]
        if self.quality == "perplexity":
            y = Axis(f"perplexity per token ({', '.join(self.vocabularies)})", "{:.4g}".format, _scale(values))
        else:
            y = Axis("bits per byte", "{:.4g}".format, _scale(values))
        ticks = lengths if len(lengths) <= 8 else lengths[:: -(-len(lengths) // 8)]
        return self._figure(
            "Length extrapolation",
            line_chart(
                [Series(e.name, e.colour, points[e.name]) for e in drawn],
                Axis("evaluation length (tokens)", _whole, "log", ticks),
                y,
                marks,
            ),
            "Right of the dashed line is longer than in training: a curve that stays flat or falls there extrapolates.",
            drawn,
        )

    def _generation(self) -> str:
        drawn = [e for e in self.entries if e.generation()]
        if not drawn:
            return ""
        contexts = sorted({x for e in drawn for x, _ in e.generation()})
        values = [y for e in drawn for _, y in e.generation()]
        scale = _scale(values)
        return self._figure(
            "Time per generated token",
            line_chart(
                [Series(e.name, e.colour, e.generation()) for e in drawn],
                Axis("tokens of context", _whole, "log", contexts),
                Axis("milliseconds per token", "{:.4g}".format, scale, from_zero=scale == "linear"),
            ),
            "Flat: generation does not slow down as the text grows. One text at a time, the fastest of several steps.",
            drawn,
        )

    def _bars(self) -> list[str]:
        source = ""
        if self.measured:
            shape = self.entries[0].efficiency.training  # pyright: ignore[reportOptionalMemberAccess]
            source = f" Measured here, {shape.batch_size} sequences of {shape.length:,} tokens a step."
        bars = []
        for key, title, caption in (
            ("tokens_per_second", "Training speed (tokens per second)", "Longer is faster."),
            ("peak_memory_bytes", "Peak memory in training", "Shorter is better."),
        ):
            column = next(column for column in self.columns if column.key == key)
            if self._values(column):
                chart = bar_chart([(e.name, e.colour, column.value(e)) for e in self.entries], title, column.format)
                bars.append(self._figure(title, chart, caption + (source or " As recorded by each run.")))
        return bars

    def _runs(self) -> str:
        cards = []
        for entry in self.entries:
            about = [("folder", str(entry.run.folder)), ("task", entry.task), ("vocabulary", entry.vocabulary)]
            rows = [*about, *entry.run.provenance()]
            terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(str(value))}</dd>" for term, value in rows if value)
            cards.append(f"<figure><h3>{entry.label}</h3><dl>{terms}</dl></figure>")
        return "\n".join(cards)


def _number(value: Any) -> float | None:
    return (
        value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf") else None
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def _listed(label: str, values: Sequence[str]) -> str:
    return f"{label} {escape(', '.join(values))}" if values else ""


def _common(curves: Any) -> set[float]:
    """Values of x that every curve with points has."""
    sets = [{x for x, _ in curve} for curve in curves if curve]
    return set.intersection(*sets) if sets else set()


def _best(column: _Column, values: Sequence[float]) -> float:
    return min(values) if column.best == "min" else max(values)


def _scale(values: Sequence[float]) -> Any:
    return "log" if min(values) > 0 and max(values) > 6 * min(values) else "linear"


def _thinned(points: Sequence[Point]) -> list[Point]:
    size = -(-len(points) // CURVE_POINTS)
    if size <= 1:
        return list(points)
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    return [(s[-1][0], sum(y for _, y in s) / len(s)) for s in stretches]


def _decimals(value: float) -> str:
    if value >= 1e6:
        return f"{value:.2e}"
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def _rounded(value: float) -> str:
    """Three significant digits, written in full."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def _scaled(value: float, base: float, units: Sequence[str]) -> str:
    for unit in units:
        if abs(value) < 999.5 or unit == units[-1]:
            return f"{value:.3g}{unit}" if abs(value) < 999.5 else f"{value:,.0f}{unit}"
        value /= base
    raise AssertionError


_whole = "{:,.0f}".format
_count = partial(_scaled, base=1000, units=("", " K", " M", " B"))
_bytes = partial(_scaled, base=1000, units=(" B", " kB", " MB", " GB", " TB"))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
