"""Sequence models whose cost grows slower than the square of the sequence length."""

import importlib
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from subquad._version import __version__

if TYPE_CHECKING:
    from subquad.mixers import build_mixer, register_mixer
    from subquad.models import (
        SubquadConfig,
        SubquadForCausalLM,
        SubquadForImageClassification,
        SubquadForMaskedLM,
        SubquadForSequenceClassification,
        SubquadModel,
    )

__all__ = [
    "SubquadConfig",
    "SubquadForCausalLM",
    "SubquadForImageClassification",
    "SubquadForMaskedLM",
    "SubquadForSequenceClassification",
    "SubquadModel",
    "__version__",
    "build_mixer",
    "register_mixer",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'subquad' has no attribute {name!r}")
    return getattr(importlib.import_module("subquad.mixers" if name.endswith("_mixer") else "subquad.models"), name)


def __dir__() -> list[str]:
    return __all__


# The command line answers `--help` without loading torch; everywhere else the models are there, known to transformers.
if PurePath(sys.argv[0]).stem != "subquad" and sys.orig_argv[1:3] != ["-m", "subquad"]:
    importlib.import_module("subquad.models")
