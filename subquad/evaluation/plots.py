"""Pictures in files, by matplotlib, which is an extra."""


def require_matplotlib() -> None:
    """Raise an error with the remedy where matplotlib is missing; called before long work that needs it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("the figure needs matplotlib: pip install 'subquad[plots]'") from None
