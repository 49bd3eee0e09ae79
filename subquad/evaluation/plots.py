"""Pictures in files, by matplotlib, which is an extra."""

import importlib.util
import warnings

REMEDY = "the figure needs matplotlib: pip install 'subquad[plots]'"


def can_draw(name: str) -> bool:
    """Whether matplotlib is there; where it is missing, a warning says that `name` is not drawn, and the remedy."""
    if importlib.util.find_spec("matplotlib") is not None:
        return True
    warnings.warn(f"{name} is not drawn: {REMEDY}", stacklevel=2)
    return False


def require_matplotlib() -> None:
    """Raise an error with the remedy where matplotlib is missing; called before long work that needs it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(REMEDY) from None
