"""Small inline SVG charts. Colours come from the page's CSS classes, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 340, 220  # three beside each other on a wide page, one on a phone
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 28, 38
NUM_COLOURS = 8  # .c0 … .c7 in page.css; more curves than that are dashed
STRIP_WIDTH = 640


@dataclass(frozen=True)
class Curve:
    """
    Attributes:
        number: which run it belongs to; decides the colour.
        faint: drawn behind, as what another curve of the run is a mean of.
    """

    label: str
    number: int
    xs: Sequence[float]
    ys: Sequence[float]
    faint: bool = False


def colour_of(number: int) -> str:
    """CSS classes of the run with this number."""
    return f"c{number % NUM_COLOURS}" + (" dashed" if number >= NUM_COLOURS else "")


def line_chart(curves: Sequence[Curve], *, x_label: str, y_label: str, y_range: tuple[float, float] | None = None) -> str:
    """Curves with axes and round ticks; curves of fewer than two points are left out, and without any the answer is empty.

    The frame's edges stand in ``data-frame`` (pixels, then values, of x and y), so that the page can tell what is under the pointer.

    Args:
        y_range: lowest and highest value of the axis (default: those of the curves).
    """
    curves = [curve for curve in curves if len(curve.xs) > 1]
    if not curves:
        return ""
    x_low, x_high = min(min(curve.xs) for curve in curves), max(max(curve.xs) for curve in curves)
    y_low, y_high = y_range or (min(min(curve.ys) for curve in curves), max(max(curve.ys) for curve in curves))
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - x_low) / x_span * (right - LEFT), bottom - (y - y_low) / y_span * (bottom - TOP)

    frame = " ".join(f"{edge:.6g}" for edge in (LEFT, right, x_low, x_low + x_span, bottom, TOP, y_low, y_low + y_span))
    title = f"{escape(y_label)} against {escape(x_label)}"
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" data-frame="{frame}">']
    for tick in round_ticks(y_low, y_high):
        y = place(x_low, tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick_text(tick)}</text>')
    for tick in round_ticks(x_low, x_high):
        parts.append(f'<text x="{place(tick, y_low)[0]:.1f}" y="{bottom + 16}" text-anchor="middle">{tick_text(tick)}</text>')
    for curve in sorted(curves, key=lambda curve: not curve.faint):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(x, y) for x, y in zip(curve.xs, curve.ys, strict=True)))
        look = f"curve {colour_of(curve.number)}" + (" faint" if curve.faint else "")
        parts.append(f'<polyline class="{look}" data-label="{escape(curve.label)}" points="{points}"/>')
    parts.append(f'<text x="{(right + LEFT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="4" y="14">{escape(y_label)}</text></svg>')
    return "".join(parts)


def strip_chart(rows: Mapping[str, Sequence[float]], *, x_label: str) -> str:
    """A row a name: a dot for every value and a bar at their mean. A whole SVG file, readable on light and dark pages."""
    low, high = (edge(value for values in rows.values() for value in values) for edge in (min, max))
    margin = 0.08 * (high - low) or 0.01
    low, high = low - margin, high + margin
    height = 44 + 46 * len(rows) + 34

    def place(value: float) -> float:
        return 24 + (value - low) / (high - low) * (STRIP_WIDTH - 48)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {STRIP_WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13">',
        "<style>text{fill:#57606a}.grid{stroke:#8c959f55}@media(prefers-color-scheme:dark){text{fill:#c9d1d9}}</style>",
    ]
    for tick in round_ticks(low, high):
        parts.append(f'<line class="grid" x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="16" y2="{height - 36}"/>')
        parts.append(f'<text x="{place(tick):.1f}" y="{height - 22}" text-anchor="middle">{tick:g}</text>')
    for i, (name, values) in enumerate(rows.items()):
        y, mean = 44 + 46 * i, place(sum(values) / len(values))
        parts.append(f'<text x="24" y="{y - 12}">{escape(name)}</text>')
        parts.append(f'<line x1="{mean:.1f}" x2="{mean:.1f}" y1="{y - 6}" y2="{y + 14}" stroke="#d9480f" stroke-width="2"/>')
        parts += [f'<circle cx="{place(value):.1f}" cy="{y + 4}" r="5" fill="#2e6fdb" fill-opacity="0.7"/>' for value in values]
    parts.append(f'<text x="{STRIP_WIDTH / 2}" y="{height - 5}" text-anchor="middle">{escape(x_label)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers between ``low`` and ``high``."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / count))
    step = min((step * factor for factor in (1, 2, 5, 10)), key=lambda s: abs(span / s - count))
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def tick_text(value: float) -> str:
    """Short: thousands as k, so that it fits beside the axis."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def stretches(count: int, most: int = 200) -> list[slice]:
    """``count`` things in equal stretches (the last may be shorter), at most ``most`` of them."""
    length = max(1, math.ceil(count / most))
    return [slice(start, min(start + length, count)) for start in range(0, count, length)]
