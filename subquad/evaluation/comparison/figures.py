"""The figures of the comparison."""

from collections.abc import Sequence
from html import escape

from subquad.evaluation.charts import Axis, Scale, Series, bar_chart, line_chart
from subquad.evaluation.comparison.entries import Entry
from subquad.evaluation.comparison.formats import whole
from subquad.evaluation.comparison.table import SCORED, Comparison


def draw_figures(runs: Comparison) -> str:
    """All figures for which there are numbers, in HTML."""
    curves = [
        draw(runs, against, task) for task in runs.tasks for draw in (_loss, _accuracy) for against in ("step", "time")
    ]
    figures = [*curves, *_confusions(runs), _extrapolation(runs), _generation(runs), *_bars(runs)]
    return "\n".join(figure for figure in figures if figure)


def _figure(title: str, chart: str, caption: str, drawn: Sequence[Entry] = ()) -> str:
    legend = "".join(f"<li>{entry.label}</li>" for entry in drawn)
    legend = f'<ul class="legend">{legend}</ul>' if legend else '<div class="legend"></div>'
    return f"<figure><h3>{escape(title)}</h3>{legend}{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def _loss(runs: Comparison, against: str, task: str) -> str:
    drawn = [e for e in runs.of_task(task) if e.curve(against, "eval_loss")]
    if not drawn:
        return ""
    series = [Series(e.name, e.colour, e.curve(against, "eval_loss")) for e in drawn]
    series += [Series(e.name, e.colour, e.curve(against, "loss"), is_background=True) for e in drawn]
    loss = Axis(f"loss (nats per {SCORED[task]})" if task in SCORED else "loss (nats)", "{:.4g}".format)
    thick_and_thin = "Lower is better. Thick: validation loss; thin: training loss."
    return _while_training(runs, against, task, "Loss", series, loss, thick_and_thin, drawn)


def _accuracy(runs: Comparison, against: str, task: str) -> str:
    drawn = [e for e in runs.of_task(task) if e.accuracy_curve(against)]
    if not drawn:
        return ""
    series = [Series(e.name, e.colour, e.accuracy_curve(against)) for e in drawn]
    accuracy = Axis("accuracy", "{:.3g}".format)
    return _while_training(
        runs, against, task, "Accuracy", series, accuracy, "Higher is better. On the validation data.", drawn
    )


def _while_training(
    runs: Comparison,
    against: str,
    task: str,
    title: str,
    series: Sequence[Series],
    axis: Axis,
    caption: str,
    drawn: Sequence[Entry],
) -> str:
    """What became better in training, against the updates ("step") or against minutes ("time")."""
    of_task = f" ({task})" if len(runs.tasks) > 1 else ""
    if against == "step":
        chart = line_chart(series, Axis("step", whole), axis)
        return _figure(f"{title} while training{of_task}", chart, caption, drawn)
    series = [Series(s.name, s.colour, [(x / 60, y) for x, y in s.points], s.is_background) for s in series]
    return _figure(
        f"{title} against time{of_task}",
        line_chart(series, Axis("minutes of training", "{:.4g}".format), axis),
        f"The curve furthest to the left reaches the same {title.lower()} first; "
        "times are those of the training machine.",
        drawn,
    )


def _confusions(runs: Comparison) -> list[str]:
    """The confusion matrix of every run that `evaluate` drew one of."""
    figures = []
    for entry in runs.entries:
        picture = entry.confusion_picture()
        if picture is not None:
            image = f'<img alt="Confusion matrix of {escape(entry.name)}" src="data:image/png;base64,{picture}">'
            caption = "Which classes are taken for which others; confusion.csv in the run folder has all numbers."
            figures.append(_figure("Confusions", image, caption, [entry]))
    return figures


def _extrapolation(runs: Comparison) -> str:
    drawn = [e for e in runs.entries if e.at_length(runs.quality)]
    if not drawn:
        return ""
    points = {e.name: e.at_length(runs.quality) for e in drawn}
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
    if runs.quality == "perplexity":
        y = Axis(f"perplexity per token ({', '.join(runs.vocabularies)})", "{:.4g}".format, _scale(values))
    else:
        y = Axis("bits per byte", "{:.4g}".format, _scale(values))
    ticks = lengths if len(lengths) <= 8 else lengths[:: -(-len(lengths) // 8)]
    return _figure(
        "Length extrapolation",
        line_chart(
            [Series(e.name, e.colour, points[e.name]) for e in drawn],
            Axis("evaluation length (tokens)", whole, "log", ticks),
            y,
            marks,
        ),
        "Right of the dashed line is longer than in training: a curve that stays flat or falls there extrapolates.",
        drawn,
    )


def _generation(runs: Comparison) -> str:
    drawn = [e for e in runs.entries if e.generation()]
    if not drawn:
        return ""
    contexts = sorted({x for e in drawn for x, _ in e.generation()})
    values = [y for e in drawn for _, y in e.generation()]
    scale = _scale(values)
    return _figure(
        "Time per generated token",
        line_chart(
            [Series(e.name, e.colour, e.generation()) for e in drawn],
            Axis("tokens of context", whole, "log", contexts),
            Axis("milliseconds per token", "{:.4g}".format, scale, from_zero=scale == "linear"),
        ),
        "Flat: generation does not slow down as the text grows. One text at a time, the fastest of several steps.",
        drawn,
    )


def _bars(runs: Comparison) -> list[str]:
    speeds = [(f"{unit}_per_second", f"Training speed ({unit} per second)", "Longer is faster.") for unit in runs.units]
    bars = []
    for key, title, caption in (*speeds, ("peak_memory_bytes", "Peak memory in training", "Shorter is better.")):
        column = next(column for column in runs.columns if column.key == key)
        having = [entry for _, entry in runs.values(column)]
        if having:
            # Where units differ, runs have columns of their own; memory is that of all.
            shown = runs.entries if len(runs.units) == 1 or key == "peak_memory_bytes" else having
            chart = bar_chart([(e.name, e.colour, column.value(e)) for e in shown], title, column.format)
            bars.append(_figure(title, chart, f"{caption} {_source(having[0])}"))
    return bars


def _source(entry: Entry) -> str:
    """Where the numbers of bars come from, by a run that has one."""
    if entry.efficiency is None:
        return "As recorded by each run."
    step = entry.efficiency.training
    what = "images" if entry.unit == "images" else f"sequences of {step.length:,} tokens"
    return f"Measured here, {step.batch_size} {what} a step."


def _scale(values: Sequence[float]) -> Scale:
    return "log" if min(values) > 0 and max(values) > 6 * min(values) else "linear"
