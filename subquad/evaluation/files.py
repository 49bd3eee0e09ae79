"""Files that are there as a whole or not at all."""

import csv
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed to `path` when the block ends without an error.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written(Path(folder) / "metrics.json") as temporary:
        ...         _ = temporary.write_text("{}")
        ...     os.listdir(folder)
        ['metrics.json']
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)


def csv_text(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table for programs: the names of the columns, and the rows; None is an empty cell.

    Example:
        >>> print(csv_text(["run", "f1"], [["a", 0.5], ["b, c", None]]), end="")
        run,f1
        a,0.5
        "b, c",
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return table.getvalue()
