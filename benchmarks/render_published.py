"""The section of docs/results.md that holds the contest's own figures against ours, step by step of a system."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from bytefit.recipes import AS_SUBMITTED

Record = dict[str, Any]
Scores = dict[str, float]  # bits per byte by stage, of one seed

FORMS = ("", AS_SUBMITTED)  # of ours, by what follows the system's name: repaired, and what really ran in the contest
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


def place(name: str, scores: Scores) -> str:
    """Of a system among those that are measured alike."""
    return f"{sorted(scores.values()).index(scores[name]) + 1} of {len(scores)}" if name in scores else "–"


def beside(there: list[float], own: list[float]) -> str:
    """Two cells: a change of ours, and whether it goes the way of the published one."""
    if not own:
        return "– | –"
    same = direction(statistics.fmean(there)) == direction(statistics.fmean(own))
    return f"{statistics.fmean(own):+.4f} ({len(own)}) | {'yes' if same else '**no**'}"


def published_section(published: Record, rows: list[Record], stale: Callable[[list[Record]], str]) -> list[str]:
    """``stale`` marks rows of one form of a system that are not of the recipe as it is now."""
    ours = {name: [[row for row in rows if row["name"] == name + form] for form in FORMS] for name in published["systems"]}
    systems = {name: system for name, system in published["systems"].items() if any(ours[name])}
    theirs = {name: statistics.fmean(seed[system["headline"]] for seed in system["seeds"].values()) for name, system in systems.items()}
    here = [
        {name: statistics.fmean(row["summary"]["val_bpb"] for row in ours[name][form]) for name in systems if ours[name][form]}
        for form in range(len(FORMS))
    ]
    lines = [
        "## What the contest published, and what of it shows here",
        "",
        f"The contest's figures (`benchmarks/results/published.json`, with their sources): {published['machine']}, FineWeb, 16,000,000 "
        "bytes. Ours: the table of systems above, two cores, 300 s, 1,000,000 bytes. *As submitted* is what really ran there, so that its "
        "figures are the like ones; *repaired* runs what the pages advertise. Levels cannot be compared; what each step of a system "
        "changes can, and places as far as rows are apart: seeds of one system are up to 0.07 apart "
        f"([log](log.md#the-contests-systems-at-lab-size)). A change under {NOTHING} counts as none; what a system did not publish is not "
        "here. In parentheses: how many seeds. Places are among those that are measured in that form.",
        "",
        "| system | published | repaired | as submitted | place there | place repaired | place as submitted |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in sorted(theirs, key=lambda name: theirs[name]):
        cells = [f"{theirs[name]:.4f} ({len(systems[name]['seeds'])})"]
        for found, scores in zip(ours[name], here, strict=True):
            cells.append(f"{scores[name]:.4f} ({len(found)}){stale(found)}" if found else "not measured")
        lines.append(f"| {name} | " + " | ".join([*cells, *(place(name, scores) for scores in (theirs, *here))]) + " |")
    lines += [
        "",
        "| system | step | published | repaired | same way | as submitted | same way |",
        "| --- | --- | ---: | ---: | --- | ---: | --- |",
    ]
    for name, system in systems.items():
        seeds = list(system["seeds"].values())
        told = [stage for stage in STAGES if any(stage in scores for scores in seeds)]
        for stages in pairwise(told):
            there = changes(seeds, stages)
            own = [changes([our_stages(row) for row in found], stages) for found in ours[name]]
            if there and any(own):
                cells = [f"{statistics.fmean(there):+.4f} ({len(there)})", *(beside(there, found) for found in own)]
                lines.append(f"| {name} | {STEP[stages]} | " + " | ".join(cells) + " |")
    return [*lines, ""]
