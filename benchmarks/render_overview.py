"""The README's view of the systems side by side: a table of headlines, and a picture in which every seed is a dot."""

from __future__ import annotations

import statistics
from collections import defaultdict
from html import escape
from typing import Any

from plot import STYLE
from render_systems import dagger

from bytefit.recipes import AS_SUBMITTED, RECIPES

Record = dict[str, Any]
Scores = dict[str, list[float]]  # by recipe: the headline of every seed

WIDTH, LABEL, ROW, TOP, BOTTOM = 760, 96, 30, 52, 54
REPAIRED, SUBMITTED = "#2e6fdb", "#d9480f"
TICK = 0.1  # bits per byte


def headlines(rows: list[Record], steps: Record) -> Scores:
    """Of the rows that are of the recipes and their steps as they are now."""
    found: Scores = defaultdict(list)
    for row in rows:
        if not dagger([row], steps):
            found[row["name"]].append(row["summary"]["val_bpb"])
    return found


def systems_in_order(scores: Scores) -> list[str]:
    """Best first, then those that are not measured."""
    names = [name for name in RECIPES if not name.endswith(AS_SUBMITTED)]
    return sorted(names, key=lambda name: statistics.fmean(scores[name]) if name in scores else float("inf"))


def overview(scores: Scores, published: Record) -> str:
    """The table; ``published`` holds the contest's own figures by system."""

    def cell(name: str) -> str:
        if name not in RECIPES:
            return "–"
        return f"{statistics.fmean(scores[name]):.3f} ({len(scores[name])})" if name in scores else "not measured"

    lines = ["| recipe | bits per byte here | as submitted, here | published, at full size |", "| --- | ---: | ---: | ---: |"]
    for name in systems_in_order(scores):
        system = published["systems"].get(name)
        there = "–"
        if system:
            seeds = [seed[system["headline"]] for seed in system["seeds"].values()]
            there = f"{statistics.fmean(seeds):.4f} ({len(seeds)})"
        lines.append(f"| `{name}` | {cell(name)} | {cell(name + AS_SUBMITTED)} | {there} |")
    return "\n".join(lines)


def overview_picture(scores: Scores, seconds: float) -> str:
    """Every seed's headline: a dot for the repaired form, a ring for what ran in the contest."""
    names = [name for name in systems_in_order(scores) if name in scores]
    values = [value for seeds in scores.values() for value in seeds]
    low, high = min(values) - 0.02, max(values) + 0.02
    height = TOP + ROW * len(names) + BOTTOM

    def place(value: float) -> float:
        return LABEL + (value - low) / (high - low) * (WIDTH - LABEL - 20)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13">',
        STYLE,
        f'<text x="8" y="20" font-size="15">bits per byte after {seconds:.0f} s of training on two cores, everything in 1,000,000 bytes '
        "(left is better)</text>",
    ]
    for i in range(round(low / TICK), round(high / TICK) + 1):
        if low <= i * TICK <= high:
            x = place(i * TICK)
            parts.append(f'<line class="g" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 14}" y2="{height - BOTTOM}"/>')
            parts.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{i * TICK:.1f}</text>')
    for i, name in enumerate(names):
        y = TOP + ROW * i
        parts.append(f'<text x="{LABEL - 14}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts += [_ring(place(value), y + 5) for value in scores.get(name + AS_SUBMITTED, [])]
        parts += [_dot(place(value), y - 4) for value in scores[name]]
    legend = height - 14
    parts += [_dot(16, legend - 4), f'<text x="28" y="{legend}">a seed of the repaired form</text>']
    parts += [_ring(236, legend - 4), f'<text x="248" y="{legend}">a seed of what really ran in the contest, where it differs</text>']
    return "\n".join([*parts, "</svg>"]) + "\n"


def _dot(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{REPAIRED}" fill-opacity="0.8"/>'


def _ring(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y}" r="4.5" fill="none" stroke="{SUBMITTED}" stroke-width="2"/>'
