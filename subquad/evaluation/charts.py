"""Charts as inline SVG: no script, no font, no file besides the page they stand in.

Colours are the CSS variables `--series-0` … `--series-7` and those of text and lines, so a page's light and dark mode
apply.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

NUM_COLOURS = 8
WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 30, 42
BAR_HEIGHT, BAR_PITCH, BAR_LABEL = 16, 44, 18

Scale = Literal["linear", "log"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: Shown when a point is hovered over.
        colour: Index of the colour and of the marker.
        points: (x, y) by rising x.
        is_background: Drawn thin, faint, without markers, and without a say in the range of y.
    """

    name: str
    colour: int
    points: Sequence[Point]
    is_background: bool = False


@dataclass(frozen=True)
class Axis:
    """How one direction of a chart is drawn.

    Args:
        label: What is shown, with its unit.
        format: How a value is written.
        scale: "linear" or "log".
        ticks: Values to write at the axis; default: round ones.
        from_zero: Whether the range begins at zero.
    """

    label: str
    format: Callable[[float], str]
    scale: Scale = "linear"
    ticks: Sequence[float] | None = None
    from_zero: bool = False


def line_chart(series: Sequence[Series], x: Axis, y: Axis, marks: Sequence[tuple[float, str]] = ()) -> str:
    """Lines over common axes.

    Args:
        series: The lines; at least one has points.
        x: The horizontal axis.
        y: The vertical axis.
        marks: Values of x with a vertical line and what to write beside it.

    Returns:
        An `<svg>` element.
    """
    foreground = [point for s in series if not s.is_background for point in s.points]
    horizontal = _Map(x, [p[0] for s in series for p in s.points] + [value for value, _ in marks], LEFT, WIDTH - RIGHT)
    vertical = _Map(y, [p[1] for p in foreground], HEIGHT - BOTTOM, TOP)
    parts = [_text("axis-label", 0, 11, y.label)]
    for value in vertical.ticks:
        at = vertical(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(_text("tick", LEFT - 8, at + 4, y.format(value), "end"))
    for value in horizontal.ticks:
        parts.append(_text("tick", horizontal(value), HEIGHT - BOTTOM + 17, x.format(value), "middle"))
    parts.append(_text("axis-label", WIDTH - RIGHT, HEIGHT - 4, x.label, "end"))
    bottom = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    for value, text in marks:
        at = horizontal(value)
        side, anchor = (6, "start") if at < WIDTH / 2 else (-6, "end")
        parts.append(f'<line class="mark" x1="{at}" x2="{at}" y1="{TOP - 8}" y2="{bottom}"/>')
        parts.append(_text("mark-label", at + side, TOP, text, anchor))
    # Lines that leave the range of y end at the frame: a nested <svg> clips what is drawn outside of it.
    frame = f"0 {TOP - 8} {WIDTH} {bottom - TOP + 9}"
    parts.append(f'<svg x="0" y="{TOP - 8}" width="{WIDTH}" height="{bottom - TOP + 9}" viewBox="{frame}">')
    for s in sorted(series, key=lambda s: not s.is_background):
        parts.append(_line(s, horizontal, vertical, x, y))
    parts.append("</svg>")
    return _svg(HEIGHT, f"{y.label} against {x.label}", parts)


def bar_chart(bars: Sequence[tuple[str, int, float | None]], label: str, format: Callable[[float], str]) -> str:
    """Horizontal bars from zero, with their names above and values beside them.

    Args:
        bars: Name, index of the colour, value; None is written as missing.
        label: What is shown, with its unit.
        format: How a value is written.

    Returns:
        An `<svg>` element.
    """
    longest = max((value for _, _, value in bars if value is not None), default=1.0) or 1.0
    room = WIDTH - 90
    parts = []
    for row, (name, colour, value) in enumerate(bars):
        top = row * BAR_PITCH
        width = 0.0 if value is None else room * value / longest
        text = "–" if value is None else format(value)
        below = top + BAR_LABEL
        box = f'x="0" y="{below}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="3"'
        parts.append(_text("tick", 0, top + 12, name))
        parts.append(f'<rect style="fill:{_colour(colour)}" {box}/>')
        parts.append(_text("value", width + 8, below + 13, text))
    return _svg(len(bars) * BAR_PITCH, label, parts)


def swatch(colour: int) -> str:
    """The marker of a colour as a small picture for legends and tables."""
    return f'<svg class="swatch" viewBox="-6 -6 12 12" aria-hidden="true">{_marker(colour, 0, 0)}</svg>'


def _svg(height: int, label: str, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {WIDTH} {height}"'
    return f'<svg class="chart" {box} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _colour(index: int) -> str:
    return f"var(--series-{index % NUM_COLOURS})"


def _line(s: Series, horizontal: "_Map", vertical: "_Map", x: Axis, y: Axis) -> str:
    path = " ".join(f"{horizontal(px)},{vertical(py)}" for px, py in s.points)
    if s.is_background:
        return f'<polyline class="background" style="stroke:{_colour(s.colour)}" points="{path}"/>'
    # A second round of the colours is dashed.
    dash = ";stroke-dasharray:6 4" if s.colour >= NUM_COLOURS else ""
    parts = [f'<polyline class="series" style="stroke:{_colour(s.colour)}{dash}" points="{path}"/>']
    for px, py in s.points if len(s.points) <= 24 else s.points[-1:]:
        tip = f"{s.name}: {y.format(py)} ({x.label} {x.format(px)})"
        parts.append(f"<g><title>{escape(tip)}</title>{_marker(s.colour, horizontal(px), vertical(py))}</g>")
    return "".join(parts)


def _marker(colour: int, x: float, y: float) -> str:
    """Colours differ in shape as well: for those who see no difference in the colour."""
    style = f'class="marker" style="fill:{_colour(colour)}"'
    shapes = (
        f'<circle {style} cx="{x}" cy="{y}" r="4"/>',
        f'<rect {style} x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2" rx="1"/>',
        f'<path {style} d="M{x} {y - 4.8:.1f}l4.6 8.2h-9.2z"/>',
        f'<path {style} d="M{x} {y - 5:.1f}l5 5l-5 5l-5 -5z"/>',
    )
    return shapes[colour % len(shapes)]


class _Map:
    """From values to places between two ends of the picture, with ticks."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, stop: float) -> None:
        values = [*values, 0.0] if axis.from_zero else values
        low, high = min(values, default=0.0), max(values, default=1.0)
        self.is_log = axis.scale == "log" and low > 0
        if low == high:
            low, high = (low / 1.25, high * 1.25) if low > 0 else (low - 1, high + 1)
        if axis.ticks is not None:
            ticks = axis.ticks
        else:
            ticks = _log_ticks(low, high) if self.is_log else _linear_ticks(low, high)
        # The range of y ends at ticks; the x axis ends with the data, and is given a margin for markers.
        if start > stop:
            low, high = min(low, *ticks), max(high, *ticks)
        self.low, self.high = self._place(low), self._place(high)
        margin = 12 if start < stop else 0
        self.start, self.stop = start + margin, stop - margin
        self.ticks = [tick for tick in ticks if low <= tick <= high]

    def __call__(self, value: float) -> float:
        share = (self._place(value) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)

    def _place(self, value: float) -> float:
        return math.log(value) if self.is_log else value


def _linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten, one beyond each end; finer where these are few."""
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
        exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        grid = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        first = max(i for i, tick in enumerate(grid) if tick <= low * 1.001)
        last = min(i for i, tick in enumerate(grid) if tick >= high * 0.999)
        if last - first >= 3:
            return grid[first : last + 1]
    return _linear_ticks(low, high)
