"""The page of the comparison, which works offline."""

import datetime
import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from subquad._version import __version__
from subquad.evaluation.comparison.entries import text_of
from subquad.evaluation.comparison.figures import draw_figures
from subquad.evaluation.comparison.table import Comparison, distinct

MISSING = "–"


def write_page(runs: Comparison, command: str) -> str:
    """The page.

    Args:
        runs: The runs.
        command: What made it, for its foot.
    """
    now = datetime.datetime.now().astimezone()
    names = [entry.name for entry in runs.entries]
    title = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    footer = [
        f"<p>Made by <code>{escape(command)}</code></p>",
        f"<p>subquad {__version__}, {now:%d %B %Y, %H:%M %Z}</p>",
    ]
    template = Template(files("subquad.evaluation").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        subtitle=_subtitle(runs),
        notes=_notes(runs),
        facts=_facts(runs),
        table=_table(runs),
        figures=draw_figures(runs),
        runs=_cards(runs),
        footer="\n".join(footer),
    )


def _subtitle(runs: Comparison) -> str:
    parts = [
        _listed("Data", distinct(e.run.data_name for e in runs.entries)),
        _listed("A token is", runs.vocabularies),
        _listed("Trained on", distinct(e.run.hardware for e in runs.entries)),
        _listed("Measured on", distinct(e.efficiency.device for e in runs.entries if e.efficiency)),
        _listed("Date", distinct(e.run.date for e in runs.entries)),
    ]
    return " ".join(f"<span>{part}</span>" for part in parts if part)


def _notes(runs: Comparison) -> str:
    notes = []
    if len(runs.tasks) > 1:
        notes.append(
            f"<b>Different tasks</b> ({', '.join(map(escape, runs.tasks))}). "
            "Their losses are of different things and cannot be compared: best values are those of one task."
        )
    if len(runs.maskings) > 1:
        notes.append("<b>Different masking.</b> Perplexities of masked tokens cannot be compared.")
    if len(runs.texts) > 1:
        notes.append(
            "<b>Different data.</b> The runs were not evaluated on the same data: their losses cannot be compared."
        )
    elif len(runs.vocabularies) < 2 and len(distinct(e.run.data_fingerprint for e in runs.entries)) > 1:
        notes.append("<b>Different training data.</b> The text the runs were evaluated on is the same.")
    if len(distinct(e.extrapolated_on for e in runs.entries)) > 1:
        notes.append("<b>Length extrapolation on different texts.</b> Its curves cannot be compared with each other.")
    if len(runs.vocabularies) > 1:
        units = ", ".join(escape(v) for v in runs.vocabularies)
        notes.append(
            f"<b>Different vocabularies</b> ({units}). "
            "Losses and perplexities per token cannot be compared; bits per byte can."
        )
    load = max((e.efficiency.load or 0.0 for e in runs.entries if e.efficiency), default=0.0)
    cores = os.cpu_count() or 1
    # The runs measured before account for a load of up to one for each core.
    if load > 1.5 * cores:
        notes.append(
            f"<b>Busy machine.</b> The load was {load:.1f} on {cores} cores while speed was measured: "
            "measure again on an idle one before you rely on it."
        )
    if not runs.measured and len(distinct(e.run.hardware for e in runs.entries)) > 1:
        notes.append("<b>Different hardware.</b> Speed and memory were recorded on different machines.")
    return "\n".join(f'<p class="note" role="note">{note}</p>' for note in notes)


def _facts(runs: Comparison) -> str:
    facts = []
    for column in runs.columns:
        values = runs.values(column)
        if column.fact is None or column.best is None or not values:
            continue
        best = column.best_of([value for value, _ in values])
        winners = [entry for value, entry in values if column.format(value) == column.format(best)]
        name = column.head if len(runs.entries) == 1 else column.fact
        facts.append(
            f'<div class="fact"><div class="label">{escape(name)}</div>'
            f'<div class="figure">{escape(column.format(best))} <small>{escape(column.unit)}</small></div>'
            f"{' '.join(entry.label for entry in winners)}</div>"
        )
    return f'<div class="facts">{"".join(facts)}</div>' if facts else ""


def _table(runs: Comparison) -> str:
    head = "".join(f"<th scope=col>{escape(c.head)}<small>{escape(c.unit)}</small></th>" for c in runs.columns)
    rows = []
    for entry in runs.entries:
        cells = [f"<th scope=row>{entry.label}</th>"]
        for column in runs.columns:
            value = column.value(entry)
            values = [v for v, _ in runs.values(column)]
            text = MISSING if value is None else column.format(value)
            is_best = column.best and len(values) > 1 and text == column.format(column.best_of(values))
            cells.append(f"<td{' class=best' if is_best else ''}>{escape(text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    splits = distinct(e.split for e in runs.entries)
    on = f"Evaluated on the {splits[0]} split. " if len(splits) == 1 else ""
    rules = distinct(text_of(e.run.metrics.get("validation")) for e in runs.entries)
    chosen = f"Checkpoints chosen by validation: {'; '.join(rules)}. " if rules else ""
    source = "measured for this page" if runs.measured else "as recorded in training"
    words = "Perplexity per word counts ends of lines as words. " if _has(runs, "word_perplexity") else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Results"><table>'
        f"<thead><tr><th scope=col>Run</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="under">{escape(on + chosen)}{words}'
        f"Speed and memory {source}. Best values are marked; {MISSING} is not known.</p>"
    )


def _has(runs: Comparison, key: str) -> bool:
    return any(column.key == key and runs.values(column) for column in runs.columns)


def _cards(runs: Comparison) -> str:
    cards = []
    for entry in runs.entries:
        about = [("folder", str(entry.run.folder)), ("task", entry.task), ("vocabulary", entry.vocabulary)]
        rows = [*about, *entry.run.provenance()]
        terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(str(value))}</dd>" for term, value in rows if value)
        cards.append(f"<figure><h3>{entry.label}</h3><dl>{terms}</dl></figure>")
    return "\n".join(cards)


def _listed(label: str, values: Sequence[str]) -> str:
    return f"{label} {escape(', '.join(values))}" if values else ""
