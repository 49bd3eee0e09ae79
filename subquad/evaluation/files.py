"""Files that are there as a whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
