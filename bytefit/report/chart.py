"""Small inline SVG charts. Colours come from the page's CSS variables, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 34


def line_chart(xs: Sequence[float], ys: Sequence[float], *, x_label: str, y_label: str) -> str:
    """One curve with axes and round ticks; empty input gives an empty string."""
    if len(xs) < 2:
        return ""
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(ys), max(ys)
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x_low) / x_span * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y_low) / y_span * (HEIGHT - TOP - BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} against {escape(x_label)}">']
    for tick in round_ticks(y_low, y_high):
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in round_ticks(x_low, x_high):
        x, _ = place(tick, y_low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, xs, ys))
    parts.append(f'<polyline class="curve" points="{points}"/>')
    parts.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="{LEFT}" y="14">{escape(y_label)}</text></svg>')
    return "".join(parts)


def strip_chart(rows: Mapping[str, Sequence[float]], *, x_label: str) -> str:
    """A row a name: a dot for every value and a bar at their mean. A whole SVG file, readable on light and dark pages."""
    low, high = (edge(value for values in rows.values() for value in values) for edge in (min, max))
    margin = 0.08 * (high - low) or 0.01
    low, high = low - margin, high + margin
    height = 44 + 46 * len(rows) + 34

    def place(value: float) -> float:
        return 24 + (value - low) / (high - low) * (WIDTH - 48)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13">',
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
    parts.append(f'<text x="{WIDTH / 2}" y="{height - 5}" text-anchor="middle">{escape(x_label)}</text>')
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


def smooth(values: Sequence[float], points: int = 400) -> tuple[list[int], list[float]]:
    """Means over equal stretches: at most ``points`` of them; returns the middle index and the mean of each."""
    stretch = max(1, math.ceil(len(values) / points))
    starts = range(0, len(values), stretch)
    groups = [values[start : start + stretch] for start in starts]
    return [start + len(group) // 2 for start, group in zip(starts, groups, strict=True)], [sum(g) / len(g) for g in groups]
