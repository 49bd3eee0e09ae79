"""Sequence models whose cost grows slower than the square of the sequence length."""

from subquad._version import __version__

__all__ = ["__version__"]
