"""The built-in corpus `python-docs`: English prose that lies on every machine with Python.

Documents are the help topics of `pydoc`, and the docstrings and longer comments of the standard library. Its sources
are parsed, never imported. Order and content depend on nothing but the Python installation; other versions give
slightly other text.
"""

import ast
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from subquad.data.errors import DataError

MIN_CHARACTERS = 40
MIN_PROSE = 0.75  # share of letters, blanks and line ends; tables, formulas and commented-out code have less

# Tests are two thirds of the sources and little of the prose, and some distributions leave them out.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}

_COMMENT_BLOCK = re.compile(r"(?:^[ \t]*#.*\n){2,}", re.MULTILINE)
_COMMENT_SIGN = re.compile(r"^[ \t]*#+ ?", re.MULTILINE)


@cache
def python_docs() -> tuple[str, ...]:
    """The documents of the corpus, without repetitions, in a fixed order.

    Raises:
        DataError: The sources of the standard library are not on this machine.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    documents = dict.fromkeys(_topics())
    for path in sorted(library.rglob("*.py")):
        if not _SKIPPED & set(path.relative_to(library).parts):
            documents.update(dict.fromkeys(text for text in _prose(path) if _is_prose(text)))
    if len(documents) < 100:
        raise DataError(f"python-docs: {library} has no Python sources to read; give a text file instead")
    return tuple(documents)


def version() -> str:
    """What the content depends on: the Python installation, and the rules above."""
    return f"{sys.version} {sysconfig.get_paths()['stdlib']} {MIN_CHARACTERS} {MIN_PROSE} {sorted(_SKIPPED)}"


def _topics() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it separately
        return
    yield from (topics[name].strip() for name in sorted(topics))


def _prose(path: Path) -> Iterator[str]:
    """Docstrings, then blocks of comments of one source file."""
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    yield from _docstrings(tree)
    for block in _COMMENT_BLOCK.findall(source):
        yield inspect.cleandoc(_COMMENT_SIGN.sub("", block))


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    # Statements only: `ast.walk` would visit every expression too.
    for part in ("body", "orelse", "handlers", "finalbody"):
        for statement in getattr(node, part, ()):
            yield from _docstrings(statement)


def _is_prose(text: str) -> bool:
    if len(text) < MIN_CHARACTERS:
        return False
    return sum(character.isalpha() or character in " \n" for character in text) >= MIN_PROSE * len(text)
