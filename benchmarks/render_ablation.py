"""The section of docs/results.md on what techniques are worth: paired differences with intervals, tables and bars."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ablation import LENGTHS
from plot import STYLE
from record import commits, computed_by, hardware
from scipy import stats
from techniques import TECHNIQUES, Technique

from bytefit.data.loaders import SequentialConfig
from bytefit.recipes import find_recipe

Record = dict[str, Any]


class StepTimes:
    """What ``step_times.py`` measured: how many times as long a step takes with a technique's change as without it."""

    def __init__(self, rows: list[Record]):
        newest = {
            (row["recipe"], row["technique"], row["way"], *computed_by(row)): row for row in rows
        }  # a setting that changed is timed anew
        self.rows = list(newest.values())
        found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for row in self.rows:
            found[row["recipe"], row["technique"], row["way"]].append(math.log(row["ratio"]))
        self.log_ratios = {place: statistics.fmean(logs) for place, logs in found.items()}  # of a variant's step to its base's
        repeats = [[math.log(ratio) for ratio in row["ratios"]] for row in self.rows]
        self.spread = Spread.of(repeats)  # of one repeat's
        self.repeats = min(map(len, repeats), default=1)


class Lengths:
    """What a system gains by more steps, from its runs of half and of twice as many."""

    def __init__(self, rows: list[Record]):
        self.found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        bases: dict[tuple[Any, ...], dict[str, Record]] = defaultdict(dict)
        for row in rows:
            if row["technique"] is None and row["match"] in ("steps", *LENGTHS):
                bases[row["recipe"], row["seed"], *computed_by(row)][row["match"]] = row
        for (recipe, *_), runs in bases.items():
            if len(runs) == 1 + len(LENGTHS):
                for judged in ("float", "packed"):
                    half, middle, double = (runs[match][judged] for match in ("half", "steps", "double"))
                    self.found[recipe, judged].append((half - middle, middle - double))

    def a_doubling(self, recipe: str, judged: str, *, longer: bool) -> float | None:
        """Bits per byte less with twice the steps: beyond the common number of steps, or up to it. Mean over the seeds."""
        found = self.found.get((recipe, judged))
        return statistics.fmean(pair[longer] for pair in found) if found else None


class Effects:
    """Paired differences of one technique: with it minus without it, so that below zero it helps.

    Attributes:
        steps: at equal steps, one a seed.
        slower: natural logarithm of how many times as long a step takes with it as without it; None where it was not measured.
        price: bits per byte that this time is worth, to be added at equal time; None where that is not known.
    """

    def __init__(self, recipe: str, technique: Technique, way: str, rows: list[Record], step_times: StepTimes, lengths: Lengths):
        name = technique.name
        self.recipe, self.name, self.way, self.judged = recipe, name, way, technique.judged
        mixed = not isinstance(find_recipe(recipe).train.loader, SequentialConfig)
        self.kind = "late" if technique.late else "other text" if technique.other_text else "mixed" if mixed else "in order"
        self.title = f"{name} ({technique.note})" if technique.note else name

        def find(match: str, technique: str | None, way: str) -> dict[tuple[Any, ...], Record]:
            """By seed and by what computed it: both runs of a pair have the same of each."""
            wanted = (recipe, technique, way, match)
            return {(r["seed"], *computed_by(r)): r for r in rows if (r["recipe"], r["technique"], r["way"], r["match"]) == wanted}

        own_base = name if technique.shared(recipe) else None
        pack = any(r["match"] == "weights" and r["technique"] == name and r["recipe"] == recipe for r in rows)
        self.stage = "pack" if pack else "train"
        base, own = (find("weights" if pack else "steps", *which) for which in ((own_base, "base"), (name, way)))
        sign = 1 if way == "in" else -1
        self.steps = [sign * (own[run][self.judged] - base[run][self.judged]) for run in own if run in base]
        self.bytes = [own_row["artifact_bytes"] for own_row in find("weights", name, way).values()] if pack else []
        log_ratio = step_times.log_ratios.get((recipe, name, way))
        self.slower = None if log_ratio is None else sign * log_ratio
        self.doubling = None if log_ratio is None else lengths.a_doubling(recipe, self.judged, longer=log_ratio > 0)
        self.price = None if self.slower is None or self.doubling is None else self.doubling * self.slower / math.log(2)


KINDS = {
    "in order": "pairs that differ from the first step on, and read the same text in the order of the shards",
    "mixed": "the same where batches mix documents (`pocket`, #1171)",
    "other text": "pairs that read other text, or other batches of it",
    "late": "pairs that are the same run until late in training",
}


@dataclass(frozen=True)
class Spread:
    """How differences spread from seed to seed: one standard deviation for all techniques of a kind, since two or three seeds of one say
    little and all together a good deal. There are four kinds (``KINDS``): what drives the runs of a pair apart is not the same in them.

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

    def half_width(self, count: int) -> float:
        """Of the 95 % interval, by Student's t, of a mean over so many; 0 where the spread is not known."""
        return 0.0 if self.deviation is None else float(stats.t.ppf(0.975, self.freedom)) * self.deviation / count**0.5

    def interval(self, differences: list[float], price: float = 0.0, price_half_width: float = 0.0) -> tuple[float, float, float]:
        """Mean and the ends of its 95 % interval; all the same where the spread is not known.

        Args:
            price: added to the mean, and known to within ``price_half_width``, whatever the differences are.
        """
        mean = statistics.fmean(differences) + price
        half = math.hypot(self.half_width(len(differences)), price_half_width) if self.deviation is not None else 0.0
        return mean, mean - half, mean + half

    def __str__(self) -> str:
        return "not known" if self.deviation is None else f"{self.deviation:.4f}, {self.freedom} degrees of freedom"

    def with_interval(self, differences: list[float], price: float = 0.0, price_half_width: float = 0.0) -> str:
        mean, low, high = self.interval(differences, price, price_half_width)
        return f"{mean:+.4f}" + (f" ({low:+.4f} to {high:+.4f})" if low != high else "")


def effects_of(rows: list[Record], step_times: StepTimes) -> list[Effects]:
    """Of every technique in every place; ``steps`` is empty where nothing was measured yet."""
    found, lengths = [], Lengths(rows)
    for technique in TECHNIQUES:
        ways = [(technique.home, technique.way)] if technique.change else []
        if technique.into is not None:
            ways.append(("baseline", "in"))
        found += [Effects(recipe, technique, way, rows, step_times, lengths) for recipe, way in ways]
    return found


def ablation_section(rows: list[Record], clocked: list[Record], pictures: Path) -> list[str]:
    step_times = StepTimes(clocked)
    every = effects_of(rows, step_times)
    effects, missing = [effect for effect in every if effect.steps], [effect for effect in every if not effect.steps]
    trained = [effect for effect in effects if effect.stage == "train"]
    packed = [effect for effect in effects if effect.stage == "pack"]
    spreads = {kind: Spread.of([effect.steps for effect in trained if effect.kind == kind]) for kind in KINDS}
    spread_packed = Spread.of([effect.steps for effect in packed])
    first = next(row for row in rows if row["match"] == "steps")
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
        f"{first['steps']} each, fewer than in the table of systems, and lengths in steps with them. "
        f"{_about_time(step_times)} "
        f"Trained in {' or '.join(sorted({row['dtype'] for row in rows}))}, both runs of a pair in the same, on one kind of processor. "
        f"Non-overlapping windows, {first['bytes']:,} bytes of validation text.",
        "",
        "![what each technique is worth](pictures/ablation.svg)",
        "",
        "| technique | way | system | judged by | seeds | equal steps | a step takes | equal time |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for effect in trained:
        spread = spreads[effect.kind]
        slower = "" if effect.slower is None else f"{math.exp(effect.slower):.2f}×"
        time = "" if effect.price is None else spread.with_interval(effect.steps, effect.price, _price_half_width(effect, step_times))
        lines.append(
            f"| {effect.title} | {effect.way} | {effect.recipe} | {effect.judged} | {len(effect.steps)} "
            f"| {spread.with_interval(effect.steps)} | {slower} | {time} |"
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


def _about_time(step_times: StepTimes) -> str:
    """What stands under "a step takes" and "equal time"."""
    if not step_times.rows:
        return "Nothing has been measured at equal time yet."
    rows = step_times.rows
    return (
        "*A step takes*: how many times as long with the technique as without it, from runs that take turns step by step "
        f"(`{rows[0]['command']}` at commit {commits(rows)}; {hardware(rows)}; {rows[0]['steps']} steps, {step_times.repeats} repeats, "
        f"natural logarithms of whose ratios spread by {step_times.spread}). Equal time: the run that was changed against the system "
        "with as many steps as fit the same seconds. What those are worth is read off the system's own runs of half and twice the steps, "
        "along the logarithm of the steps; the interval is that of equal steps, widened by the error of the ratio; that of these runs is "
        "left out."
    )


def _price_half_width(effect: Effects, step_times: StepTimes) -> float:
    """Half the 95 % interval of an effect's price: what the ratio of step times is not known by."""
    return (effect.doubling or 0.0) / math.log(2) * step_times.spread.half_width(step_times.repeats)


WIDTH, LABEL, ROW, EDGE = 900, 420, 20, 60


def bars(effects: list[Effects], spreads: dict[str, Spread]) -> str:
    """A bar from zero to the mean with its interval, at equal steps, and a dot at equal time; a row a technique, best first."""
    found = sorted(((spreads[effect.kind].interval(effect.steps), effect) for effect in effects), key=lambda pair: pair[0][0])
    most = min(0.12, max(abs(mean) for (mean, _, _), _ in found) * 1.1)
    height = EDGE + ROW * len(found) + 30

    def place(value: float) -> float:
        return LABEL + (min(max(value, -most), most) + most) / (2 * most) * (WIDTH - LABEL - 20)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12">',
        STYLE,
        '<text x="8" y="20" font-size="15">bits per byte that having the technique adds (left: it helps); dots: at equal time</text>',
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
        if effect.price is not None:
            parts.append(f'<circle fill="#1c7ed6" stroke="#fff" cx="{place(mean + effect.price):.1f}" cy="{y + 5.5}" r="4"/>')
    parts.append(f'<text x="8" y="{height - 6}">green and red: the 95 % interval leaves zero out; grey: it does not</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
