"""Sequence models whose cost grows slower than the square of the sequence length."""

import importlib
import sys
from pathlib import PurePath
from typing import Any

from subquad._version import __version__

_EXPORTS = {
    "SubquadConfig": "subquad.models",
    "SubquadForCausalLM": "subquad.models",
    "SubquadForImageClassification": "subquad.models",
    "SubquadForMaskedLM": "subquad.models",
    "SubquadForSequenceClassification": "subquad.models",
    "SubquadModel": "subquad.models",
    "build_mixer": "subquad.mixers",
    "register_mixer": "subquad.mixers",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'subquad' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__


# The command line answers `--help` without loading torch; everywhere else the models are there, known to transformers.
if PurePath(sys.argv[0]).stem != "subquad" and sys.orig_argv[1:3] != ["-m", "subquad"]:
    importlib.import_module("subquad.models")
