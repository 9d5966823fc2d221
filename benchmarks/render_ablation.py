"""The section of docs/results.md on what techniques are worth: paired differences with intervals, tables and bars."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ablation import SAME_TIME
from plot import STYLE
from record import commits, computed_by, hardware
from scipy import stats
from techniques import TECHNIQUES, Technique

Record = dict[str, Any]


class Effects:
    """Paired differences of one technique: with it minus without it, so that below zero it helps."""

    def __init__(self, recipe: str, technique: Technique, way: str, rows: list[Record]):
        name = technique.name
        self.recipe, self.name, self.way, self.judged = recipe, name, way, technique.judged
        self.kind = "late" if technique.late else "other text" if technique.other_text else "first step"
        self.title = f"{name} ({technique.note})" if technique.note else name

        def find(match: str, technique: str | None, way: str) -> dict[tuple[Any, ...], Record]:
            """By seed and by what computed it: both runs of a pair have the same of each."""
            wanted = (recipe, technique, way, match)
            return {(r["seed"], *computed_by(r)): r for r in rows if (r["recipe"], r["technique"], r["way"], r["match"]) == wanted}

        own_base = name if technique.shared(recipe) else None
        pack = any(r["match"] == "weights" and r["technique"] == name and r["recipe"] == recipe for r in rows)
        self.stage = "pack" if pack else "train"
        base = find("weights" if pack else "steps", own_base, "base")
        self.steps = self._differences(base, find("weights" if pack else "steps", name, way))
        longer = find("time", name, way)
        self.time = self._differences(base, longer) if longer else None
        self.bytes = [own_row["artifact_bytes"] for own_row in find("weights", name, way).values()] if pack else []

    def _differences(self, base: dict[tuple[Any, ...], Record], own: dict[tuple[Any, ...], Record]) -> list[float]:
        sign = 1 if self.way == "in" else -1
        return [sign * (own[run][self.judged] - base[run][self.judged]) for run in own if run in base]


KINDS = {
    "first step": "pairs that differ from the first step on, and read the same text",
    "other text": "pairs that read other text, or other batches of it",
    "late": "pairs that are the same run until late in training",
}


@dataclass(frozen=True)
class Spread:
    """How differences spread from seed to seed: one standard deviation for all techniques of a kind, since two or three seeds of one say
    little and all together a good deal. There are three kinds (``KINDS``): what drives the runs of a pair apart is not the same in them.

    Attributes:
        deviation: of a single seed's difference; None where no technique has two seeds.
        freedom: how many differences it rests on, less one a technique.
    """

    deviation: float | None
    freedom: int

    @staticmethod
    def of(groups: list[list[float]]) -> Spread:
        freedom = sum(len(group) - 1 for group in groups)
        squares = sum((value - statistics.fmean(group)) ** 2 for group in groups for value in group)
        return Spread((squares / freedom) ** 0.5 if freedom else None, freedom)

    def interval(self, differences: list[float]) -> tuple[float, float, float]:
        """Mean and the ends of its 95 % interval by Student's t; all the same where the spread is not known."""
        mean = statistics.fmean(differences)
        if self.deviation is None:
            return mean, mean, mean
        half = float(stats.t.ppf(0.975, self.freedom)) * self.deviation / len(differences) ** 0.5
        return mean, mean - half, mean + half

    def __str__(self) -> str:
        return "not known" if self.deviation is None else f"{self.deviation:.4f}, {self.freedom} degrees of freedom"

    def with_interval(self, differences: list[float]) -> str:
        mean, low, high = self.interval(differences)
        return f"{mean:+.4f}" + (f" ({low:+.4f} to {high:+.4f})" if low != high else "")


def effects_of(rows: list[Record]) -> list[Effects]:
    """Of every technique in every place; ``steps`` is empty where nothing was measured yet."""
    found = []
    for technique in TECHNIQUES:
        ways = [(technique.home, technique.way)] if technique.change else []
        if technique.into is not None:
            ways.append(("baseline", "in"))
        found += [Effects(recipe, technique, way, rows) for recipe, way in ways]
    return found


def ablation_section(rows: list[Record], pictures: Path) -> list[str]:
    every = effects_of(rows)
    effects, missing = [effect for effect in every if effect.steps], [effect for effect in every if not effect.steps]
    trained = [effect for effect in effects if effect.stage == "train"]
    packed = [effect for effect in effects if effect.stage == "pack"]
    spreads = {
        kind: Spread.of([group for effect in trained if effect.kind == kind for group in (effect.steps, effect.time) if group])
        for kind in KINDS
    }
    spread_packed = Spread.of([effect.steps for effect in packed])
    first = next(row for row in rows if row["match"] == "steps")
    empty = f"left empty where a step takes the same within {SAME_TIME:.0%}, or it was not measured."
    if not any(effect.time for effect in trained):
        empty = "nothing has been measured at equal time yet."
    lines = [
        "## What each technique is worth",
        "",
        f"`python benchmarks/ablation.py train --data web --steps {first['steps']} --max-bytes {first['bytes']}` and `pack` likewise, "
        f"at commit {commits(rows)}; {hardware(rows)}; every row of `benchmarks/results/ablation.jsonl` holds its own command. What a "
        "setting is, is in `benchmarks/techniques.py`.",
        "",
        "The difference that having a technique makes, in bits per byte (below zero: it helps), at lab size. *Out*: taken out of the "
        "system that has it; *in*: put into the system named. Both runs of a pair have the same seed; means over the seeds and 95 % "
        "intervals by Student's t: of so many, one in twenty leaves zero out by chance. They rest on one spread for all techniques of a "
        "kind, the standard deviation of a seed's difference from its technique's mean; so one seed has an interval too, by the spread of "
        f"others, where any is known. {'; '.join(f'{words}: {spreads[kind]}' for kind, words in KINDS.items()).capitalize()}. "
        "Variants of one system and seed share their base, whose own error they have in common: the degrees of freedom are at most so "
        "many. Equal steps: "
        f"{first['steps']} each, fewer than in the table of systems, and lengths in steps with them. Equal time: the variant has "
        f"as many steps as fit the base's time; {empty} "
        f"Trained in {' or '.join(sorted({row['dtype'] for row in rows}))}, both runs of a pair in the same, on one kind of processor. "
        f"Non-overlapping windows, {first['bytes']:,} bytes of validation text.",
        "",
        "![what each technique is worth](pictures/ablation.svg)",
        "",
        "| technique | way | system | judged by | seeds | equal steps | equal time |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for effect in trained:
        spread = spreads[effect.kind]
        time = "" if effect.time is None else spread.with_interval(effect.time)
        lines.append(
            f"| {effect.title} | {effect.way} | {effect.recipe} | {effect.judged} | {len(effect.steps)} "
            f"| {spread.with_interval(effect.steps)} | {time} |"
        )
    (pictures / "ablation.svg").write_text(bars(trained, spreads))
    if packed:
        lines += [
            "",
            f"After training, on the weights of the table of systems, each fitted to the same cap (spread: {spread_packed}):",
            "",
            "| technique | way | system | seeds | difference | bytes |",
            "| --- | --- | --- | ---: | ---: | ---: |",
        ]
        for effect in packed:
            lines.append(
                f"| {effect.name} | {effect.way} | {effect.recipe} | {len(effect.steps)} | {spread_packed.with_interval(effect.steps)} "
                f"| {min(effect.bytes):,} to {max(effect.bytes):,} |"
            )
    if missing:
        places: dict[str, list[str]] = defaultdict(list)
        for effect in missing:
            places[f"{'out of' if effect.way == 'out' else 'in'} {effect.recipe}"].append(effect.name)
        lines += ["", f"Not measured yet, {len(missing)} of {len(every)}:", ""]
        lines += [f"* {place}: {'; '.join(names)}" for place, names in places.items()]
    return [*lines, ""]


WIDTH, LABEL, ROW, EDGE = 900, 420, 20, 60


def bars(effects: list[Effects], spreads: dict[str, Spread]) -> str:
    """A bar from zero to the mean with its interval, a row a technique, best first; equal steps."""
    found = sorted(((spreads[effect.kind].interval(effect.steps), effect) for effect in effects), key=lambda pair: pair[0][0])
    most = min(0.12, max(abs(mean) for (mean, _, _), _ in found) * 1.1)
    height = EDGE + ROW * len(found) + 30

    def place(value: float) -> float:
        return LABEL + (min(max(value, -most), most) + most) / (2 * most) * (WIDTH - LABEL - 20)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12">',
        STYLE,
        '<text x="8" y="20" font-size="15">bits per byte that having the technique adds (left of zero: it helps), equal steps</text>',
    ]
    for tick in (-0.1, -0.05, 0.0, 0.05, 0.1):
        if abs(tick) <= most:
            parts.append(f'<line class="g" x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="{EDGE - 14}" y2="{height - 24}"/>')
            parts.append(f'<text x="{place(tick):.1f}" y="{EDGE - 20}" text-anchor="middle">{tick:+.2f}</text>')
    for i, ((mean, low, high), effect) in enumerate(found):
        y = EDGE + ROW * i
        sure = low > 0 or high < 0
        colour = ("#2b8a3e" if mean < 0 else "#d9480f") if sure and low != high else "#868e96"
        left, right = sorted((place(0.0), place(mean)))
        parts.append(
            f'<text x="{LABEL - 10}" y="{y + 9}" text-anchor="end">{escape(f"{effect.name} ({effect.way} {effect.recipe})"[:66])}</text>'
        )
        parts.append(f'<rect x="{left:.1f}" y="{y}" width="{max(right - left, 0.5):.1f}" height="11" fill="{colour}"/>')
        if abs(mean) > most:  # the bar is cut off: how long it would be
            x, anchor = (left + 4, "start") if mean < 0 else (right - 4, "end")
            parts.append(f'<text x="{x:.1f}" y="{y + 9}" text-anchor="{anchor}" style="fill:#fff">{mean:+.2f}</text>')
        if low != high:
            parts.append(f'<line class="i" x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{y + 5.5}" y2="{y + 5.5}"/>')
    parts.append(f'<text x="8" y="{height - 6}">green and red: the 95 % interval leaves zero out; grey: it does not</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
