"""Line charts with several named curves, as SVG that reads well on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 268, 34, 48
COLOURS = ("#2e6fdb", "#d9480f", "#2b8a3e", "#9c36b5", "#e67700", "#0c8599", "#868e96", "#c2255c", "#5c940d")
STYLE = (
    "<style>text{fill:#57606a}.g{stroke:#8c959f55}.i{stroke:#24292f}"
    "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}.i{stroke:#f0f6fc}}</style>"
)


def chart(title: str, curves: Mapping[str, Points], *, x: str, y: str, log_x: bool = False, log_y: bool = False) -> str:
    """One curve for each name, in the given order; the first one named "R*" is dashed."""
    points = [point for curve in curves.values() for point in curve]
    across, down = _Axis([p[0] for p in points], log_x), _Axis([p[1] for p in points], log_y)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return LEFT + across.share(point[0]) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - down.share(point[1]) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="13">',
        STYLE,
        f'<text x="{LEFT}" y="18" font-size="15">{escape(title)}</text>',
    ]
    for tick in across.ticks():
        px = LEFT + across.share(tick) * (WIDTH - LEFT - RIGHT)
        parts.append(f'<line class="g" x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_label(tick)}</text>')
    for tick in down.ticks():
        py = HEIGHT - BOTTOM - down.share(tick) * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{py + 4:.1f}" text-anchor="end">{_label(tick)}</text>')
    for i, (name, curve) in enumerate(curves.items()):
        colour, dash = COLOURS[i % len(COLOURS)], ' stroke-dasharray="5 4"' if name.startswith("R*") else ""
        placed = [place(point) for point in sorted(curve)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if not dash:
            parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in placed]
        legend = TOP + 14 + 20 * i
        parts.append(
            f'<line x1="{WIDTH - RIGHT + 14}" x2="{WIDTH - RIGHT + 36}" y1="{legend}" y2="{legend}" stroke="{colour}" stroke-width="3"/>'
        )
        parts.append(f'<text x="{WIDTH - RIGHT + 42}" y="{legend + 4}">{escape(name)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x)}</text>')
    parts.append(f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    def __init__(self, values: Sequence[float], log: bool):
        self.log = log
        scaled = [self._scale(value) for value in values]
        margin = 0.03 * (max(scaled) - min(scaled) or 1.0)
        self.low, self.high = min(scaled) - margin, max(scaled) + margin

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def share(self, value: float) -> float:
        return (self._scale(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            steps = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
            found = [step * 10.0**decade for decade in decades for step in steps]
            return [tick for tick in found if self.low <= math.log10(tick) <= self.high]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 5))
        step = min((step * factor for factor in (1, 2, 5, 10)), key=lambda s: abs((self.high - self.low) / s - 5))
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _label(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
