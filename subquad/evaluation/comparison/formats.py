"""How the comparison writes numbers."""

from collections.abc import Sequence
from functools import partial


def decimals(value: float) -> str:
    """Two decimals, none of large numbers."""
    if value >= 1e6:
        return f"{value:.2e}"
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def rounded(value: float) -> str:
    """Three significant digits, written in full."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _scaled(value: float, base: float, units: Sequence[str]) -> str:
    for unit in units:
        if abs(value) < 999.5 or unit == units[-1]:
            return f"{value:.3g}{unit}" if abs(value) < 999.5 else f"{value:,.0f}{unit}"
        value /= base
    raise AssertionError


whole = "{:,.0f}".format
count = partial(_scaled, base=1000, units=("", " K", " M", " B"))
num_bytes = partial(_scaled, base=1000, units=(" B", " kB", " MB", " GB", " TB"))
