"""The table of the comparison: which figures runs have, which can be compared, and which are best."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from subquad.evaluation.charts import Point
from subquad.evaluation.comparison.entries import Entry
from subquad.evaluation.comparison.formats import count, decimals, duration, num_bytes, rounded
from subquad.evaluation.files import csv_text

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


@dataclass(frozen=True)
class Column:
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
    value: Callable[[Entry], float | None]
    format: Callable[[float], str]
    best: str | None = None
    fact: str | None = None

    def best_of(self, values: Sequence[float]) -> float:
        """The best of some of its values."""
        return min(values) if self.best == "min" else max(values)


def _recorded(
    key: str, head: str, unit: str, format: Callable[[float], str], best: str | None = None, fact: str | None = None
) -> Column:
    """A column of `metrics.json`."""
    return Column(key, head, unit, lambda entry: entry.metric(key), format, best, fact)


@dataclass
class Comparison:
    """Runs side by side: what they have in common, and so what may be compared.

    Args:
        entries: The runs; all are measured or none is.
    """

    entries: list[Entry]
    columns: list[Column] = field(init=False)

    def __post_init__(self) -> None:
        self.vocabularies = distinct(entry.vocabulary for entry in self.entries)
        self.tasks = distinct(entry.task for entry in self.entries)
        self.maskings = distinct(entry.masking for entry in self.entries)
        self.texts = max((distinct(e.evaluated_on for e in self.of_task(task)) for task in self.tasks), key=len)
        self.units = distinct(entry.unit for entry in self.entries)
        self.measured = self.entries[0].efficiency is not None
        # Of texts in different tokens only bits per byte can be compared; of different texts nothing.
        self.quality = "perplexity" if len(self.vocabularies) < 2 else "bits_per_byte"
        self.longest = max(_common(e.at_length(self.quality) for e in self.entries), default=None)
        self.context = max(_common(e.generation() for e in self.entries), default=None)
        self.columns = list(self._columns())

    def _columns(self) -> list[Column]:
        same_data = len(self.texts) < 2
        same_tokens = same_data and len(self.vocabularies) < 2
        per_token, per_byte = "min" if same_tokens else None, "min" if same_data else None
        bits = None if same_tokens else "Fewest bits per byte"
        columns = []
        if "causal-lm" in self.tasks:
            columns += [
                self._perplexity("perplexity", "causal-lm", per_token, "Lowest perplexity"),
                _recorded("word_perplexity", "Perplexity", "per word", decimals, per_byte),
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
                Column(
                    f"{self.quality}_at_{self.longest:.0f}",
                    f"{name} at length {self.longest:,.0f}",
                    unit,
                    lambda e: dict(e.at_length(self.quality)).get(self.longest or 0),
                    decimals if unit else "{:.3f}".format,
                    per_byte if len(distinct(e.extrapolated_on for e in self.entries)) < 2 else None,
                    f"Best at length {self.longest:,.0f}",
                )
            )
        columns += [self._speed(unit) for unit in self.units]
        columns.append(Column("peak_memory_bytes", "Peak memory", "training", Entry.memory, num_bytes, "min"))
        if self.context is not None:
            columns.append(
                Column(
                    f"generation_ms_at_{self.context:.0f}",
                    f"Generation after {self.context:,.0f}",
                    "ms/token",
                    lambda e: dict(e.generation()).get(self.context or 0),
                    decimals,
                    "min",
                    f"Fastest generation after {self.context:,.0f} tokens",
                )
            )
        columns += [
            Column("parameters", "Parameters", "", Entry.parameters, count),
            *(_recorded(f"{unit}_trained", "Trained on", unit, count) for unit in self.units),
            _recorded("train_seconds", "Training time", "", duration),
        ]
        return columns

    def of_task(self, task: str) -> list[Entry]:
        """The runs of a task."""
        return [entry for entry in self.entries if entry.task == task]

    def _score(self, key: str) -> Column:
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
            "max" if not is_alone and len(distinct(e.evaluated_on for e in having)) < 2 else None,
            f"{fact} ({unit})" if unit else fact,
        )

    def _speed(self, unit: str) -> Column:
        """Training speed of the runs that are counted in a unit."""
        is_alone = sum(entry.unit == unit for entry in self.entries) == 1 < len(self.entries)

        def value(entry: Entry) -> float | None:
            return entry.speed() if entry.unit == unit else None

        fact = "Fastest training" if len(self.units) == 1 else f"Fastest training ({unit})"
        best = None if is_alone else "max"
        return Column(f"{unit}_per_second", "Training speed", f"{unit}/s", value, rounded, best, fact)

    def _perplexity(self, key: str, task: str, best: str | None, fact: str) -> Column:
        """Perplexity in the runs of one task; that of another is another quantity."""
        if len(self.of_task(task)) == 1 < len(self.entries):
            best = None  # there is nothing to compare it with

        def value(entry: Entry) -> float | None:
            return entry.metric("perplexity") if entry.task == task else None

        return Column(key, "Perplexity", f"per {SCORED[task]}", value, decimals, best, fact)

    def values(self, column: Column) -> list[tuple[float, Entry]]:
        """The numbers of a column that are known, each with its run."""
        return [(value, entry) for entry in self.entries if (value := column.value(entry)) is not None]

    def csv(self) -> str:
        """The table for programs."""
        curves: dict[str, Callable[[Entry], list[Point]]] = {
            "perplexity": lambda e: e.at_length("perplexity"),
            "bits_per_byte": lambda e: e.at_length("bits_per_byte"),
            "generation_ms": Entry.generation,
        }
        places = [(name, x) for name, of in curves.items() for x in sorted({x for e in self.entries for x, _ in of(e)})]
        scalars = [column for column in self.columns if "_at_" not in column.key]
        head = [
            *("run", "folder", "task", "vocabulary", "data_fingerprint", "training_length"),
            *(column.key for column in scalars),
            *(f"{name}_at_{x:.0f}" for name, x in places),
        ]
        rows = (
            [e.name, e.run.folder, e.task, e.vocabulary, e.run.data_fingerprint, e.training_length]
            + [column.value(e) for column in scalars]
            + [dict(curves[name](e)).get(x) for name, x in places]
            for e in self.entries
        )
        return csv_text(head, rows)


def distinct(values: Iterable[str | None]) -> list[str]:
    """The texts that are there, each once, in their order."""
    return list(dict.fromkeys(value for value in values if value))


def _common(curves: Iterable[Sequence[Point]]) -> set[float]:
    """Values of x that every curve with points has."""
    sets = [{x for x, _ in curve} for curve in curves if curve]
    return set.intersection(*sets) if sets else set()
