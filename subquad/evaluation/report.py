"""The comparison of runs: one page that works offline, and a table for other programs.

Every number comes from a run folder or is measured here; what is missing is shown as "–".
"""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from subquad.data import DataError
from subquad.evaluation.comparison.entries import Entry
from subquad.evaluation.comparison.page import write_page
from subquad.evaluation.comparison.table import Comparison
from subquad.evaluation.efficiency import measure_run
from subquad.evaluation.files import written
from subquad.evaluation.runs import Run


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
        Entry(name, colour, Run(folder)) for colour, (name, folder) in enumerate(zip(names, folders, strict=True))
    ]
    for entry in entries:
        entry.check()
    if measure:
        lengths = [entry.training_length for entry in entries if entry.training_length]
        for entry in entries:
            progress(f"measure {entry.name}")
            entry.efficiency = measure_run(entry.run.folder, length=min(lengths, default=512))
    comparison = Comparison(entries)
    command = shlex.join(
        ["subquad", "compare", *map(str, runs), "--output", str(output), *([] if measure else ["--no-measure"])]
    )
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    with written(output / "comparison.csv") as path:
        path.write_text(comparison.csv(), encoding="utf-8")
    with written(output / "comparison.html") as path:
        path.write_text(write_page(comparison, command), encoding="utf-8")
    return output / "comparison.html"
