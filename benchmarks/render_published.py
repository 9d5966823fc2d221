"""The section of docs/results.md that holds the contest's own figures against ours, step by step of a system."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from bytefit.recipes import SYSTEMS

Record = dict[str, Any]
Scores = dict[str, float]  # bits per byte by stage, of one seed

STAGES = ("last", "averaged", "packed", "sliding", "learning")
STEP = {
    ("last", "averaged"): "averaging the weights",
    ("averaged", "packed"): "packing",
    ("packed", "sliding"): "sliding windows",
    ("sliding", "learning"): "learning while scoring",
    ("averaged", "sliding"): "packing and sliding windows",
    ("averaged", "learning"): "packing, sliding windows, learning",
}
NOTHING = 0.0005  # bits per byte: a smaller change is none


def our_stages(row: Record) -> Scores:
    """Of one row of the table of systems."""
    summary = row["summary"]
    keys = {"averaged": "val_bpb_float", "packed": "val_bpb_full", "sliding": "val_bpb_sliding", "learning": "val_bpb_adapted"}
    return {"last": row["val_bpb_last"]} | {stage: summary[key] for stage, key in keys.items() if summary[key] is not None}


def changes(seeds: list[Scores], stages: tuple[str, str]) -> list[float]:
    """From one stage to the other, of every seed that has both."""
    before, after = stages
    return [scores[after] - scores[before] for scores in seeds if before in scores and after in scores]


def direction(change: float) -> int:
    return 0 if abs(change) < NOTHING else 1 if change > 0 else -1


def published_section(published: Record, rows: list[Record], stale: Callable[[list[Record]], str]) -> list[str]:
    """``stale`` marks rows of one system that are not of the recipe as it is now."""
    lines = [
        "## What the contest published, and what of it shows here",
        "",
        f"The contest's figures (`benchmarks/results/published.json`, with their sources): {published['machine']}, FineWeb, 16,000,000 "
        "bytes. Ours: the table of systems above, two cores, 300 s, 1,000,000 bytes. Levels cannot be compared, but the order can, and "
        f"what each step of a system changes. A change under {NOTHING} counts as none; what a system did not publish is not here. In "
        "parentheses: how many seeds.",
        "",
        "| system | published | here | place there | place here |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    ours = {name: [row for row in rows if row["name"] == name] for name in SYSTEMS}
    systems = {name: system for name, system in published["systems"].items() if ours.get(name)}
    theirs = {name: statistics.fmean(seed[system["headline"]] for seed in system["seeds"].values()) for name, system in systems.items()}
    here = {name: statistics.fmean(row["summary"]["val_bpb"] for row in ours[name]) for name in systems}
    there_order, here_order = sorted(theirs, key=lambda name: theirs[name]), sorted(here, key=lambda name: here[name])
    for name in there_order:
        counts = len(systems[name]["seeds"]), len(ours[name])
        places = f"{there_order.index(name) + 1} | {here_order.index(name) + 1}"
        lines.append(f"| {name}{stale(ours[name])} | {theirs[name]:.4f} ({counts[0]}) | {here[name]:.4f} ({counts[1]}) | {places} |")
    lines += ["", "| system | step | published | here | same way |", "| --- | --- | ---: | ---: | --- |"]
    for name, system in systems.items():
        seeds = list(system["seeds"].values())
        told = [stage for stage in STAGES if any(stage in scores for scores in seeds)]
        for stages in pairwise(told):
            there, own = changes(seeds, stages), changes([our_stages(row) for row in ours[name]], stages)
            if there and own:
                same = "yes" if direction(statistics.fmean(there)) == direction(statistics.fmean(own)) else "**no**"
                told_and_own = f"{statistics.fmean(there):+.4f} ({len(there)}) | {statistics.fmean(own):+.4f} ({len(own)})"
                lines.append(f"| {name} | {STEP[stages]} | {told_and_own} | {same} |")
    return [*lines, ""]
