"""Things chosen by name: messages for names that do not exist, and building from a plain dictionary."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

LISTED = 40
"""Of more valid names a message gives the nearest alone."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for a name that does not exist: what was asked for, the nearest valid name, and all of them."""
    names = sorted(known)
    nearest = difflib.get_close_matches(str(name), names, n=6, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    if len(names) > LISTED:
        return f"unknown {kind} {name!r}.{hint} {len(names)} are valid, such as {', '.join(nearest or names[:6])}"
    return f"unknown {kind} {name!r}.{hint} Valid: {', '.join(names)}"


def build_from(kind: str, classes: dict[str, Any], config: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Build `classes[config["type"]]` with the other entries of `config` as keyword arguments.

    Args:
        kind: What is built, for messages ("mixer", "channel mixer").
        classes: The registered classes by name.
        config: `{"type": name, option: value, ...}`.
        *args: Positional arguments of the class, which `config` may not name.
        **kwargs: Keyword arguments of the class, which `config` may not name.

    Raises:
        ValueError: If the type or an option is unknown, missing, or not to be set here.
    """
    if not isinstance(config, dict) or "type" not in config:
        raise ValueError(f'a {kind} is described by {{"type": name, option: value, ...}}, got {config!r}')
    name = config["type"]
    if name not in classes:
        raise ValueError(unknown_name(kind, name, classes))
    parameters = list(inspect.signature(classes[name]).parameters)
    options = [p for p in parameters[len(args) :] if p not in kwargs]
    for key in config:
        if key != "type" and key not in options:
            raise ValueError(unknown_name(f"option of {kind} {name!r}", key, options))
    try:
        return classes[name](*args, **kwargs, **{k: v for k, v in config.items() if k != "type"})
    except TypeError as error:
        raise ValueError(f"{kind} {name!r}: {error}") from error
