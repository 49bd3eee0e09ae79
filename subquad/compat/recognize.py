"""Which published model a checkpoint holds: the family from the names of its tensors, the configuration from shapes."""

import re
from dataclasses import dataclass
from typing import Any

from subquad.compat.fairseq import current_names
from subquad.compat.families import ENTRIES, Entry
from subquad.compat.shapes import Config, Tensors
from subquad.data import DataError
from subquad.registry import unknown_name


@dataclass(frozen=True)
class Recognized:
    """What `from_reference` needs, and what the model is for.

    Args:
        family: Name of the family.
        task: "causal-lm", "masked-lm", "sequence-classification" or "image-classification"; None for a part of a
            model.
        config: The published configuration, complete.
    """

    family: str
    task: str | None
    config: Config


def recognize(tensors: Tensors, stored: Config, given: Config | None = None, family: str | None = None) -> Recognized:
    """Find out what a checkpoint holds.

    Args:
        tensors: Its parameters and buffers under their published names.
        stored: The arguments it stores; empty where it stores none.
        given: What the person who converts it says; it goes before what is stored. A key with dots reaches inside.
        family: The family, where that person says it.

    Raises:
        DataError: No family has these names or several have, options are missing (with the published values), or the
            configuration contradicts the shapes.
    """
    tensors = _current(tensors)
    entry = _choose(tensors, stored | (given or {}), family)
    config = entry.stored(stored)
    for key, value in (given or {}).items():
        _set(config, key, value)
    facts = entry.derive(tensors, config)
    wrong = []
    for key, value in facts.items():
        said = _get(config, key)
        if said is None:
            _set(config, key, value)
        elif said != value:
            wrong.append(f"{key} is {said!r}, by the weights {value!r}")
    if wrong:
        raise DataError(f"the configuration contradicts the weights of this {entry.family}: {'; '.join(wrong)}")
    unknown = {key: value for key, value in entry.published.items() if _get(config, key) is None}
    if unknown and not (stored and entry.stores_all):
        options = " ".join(f"--set {key}={_as_yaml(value)}" for key, value in unknown.items())
        raise DataError(
            f"this {entry.family} stores no arguments, and its weights do not tell {', '.join(unknown)}; with the "
            f"published values: {options}"
        )
    task = "sequence-classification" if config.get("classification_heads") else entry.task
    return Recognized(entry.family, task, config)


def _choose(tensors: Tensors, arguments: Config, family: str | None) -> Entry:
    if family is not None:
        entry = next((entry for entry in ENTRIES if entry.family == family), None)
        if entry is None:
            raise DataError(unknown_name("family", family, {entry.family for entry in ENTRIES}))
        return entry
    names = "\n".join(tensors)
    fitting = [entry for entry in ENTRIES if entry.fits(names)]
    if len(fitting) > 1:
        fitting = [entry for entry in fitting if entry.tells(arguments)] or fitting
    if len(fitting) > 1:
        raise DataError(f"the weights may be those of {' or '.join(e.family for e in fitting)}: say which, --family")
    if not fitting:
        shown = ", ".join(sorted(tensors)[:5])
        raise DataError(f"not a published model that is known: no family has the names of its tensors ({shown}, …)")
    return fitting[0]


def _current(tensors: Tensors) -> Tensors:
    """Names of old fairseq versions as those of today."""
    if any(name.startswith("decoder.sentence_encoder.") for name in tensors):
        tensors = {re.sub(r"^decoder\.", "encoder.", name): tensor for name, tensor in tensors.items()}
    tensors = {name.replace(".emb_layer_norm.", ".layernorm_embedding."): t for name, t in tensors.items()}
    return current_names(tensors)


def _get(config: Config, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None  # pyright: ignore[reportAssignmentType]
    return config


def _set(config: Config, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = config.get(parent)
        # A copy: the dictionary may be that of the checkpoint.
        config[parent] = dict(inner) if isinstance(inner, dict) else {}
        config = config[parent]
    config[last] = value


def _as_yaml(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
