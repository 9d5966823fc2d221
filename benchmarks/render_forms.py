"""The section of docs/results.md on the two forms of a system: what ran in the contest against what was advertised, pair by pair."""

from __future__ import annotations

from typing import Any

from record import commits, computed_by, hardware
from render_systems import dagger

from bytefit.recipes import AS_SUBMITTED, SYSTEMS

Record = dict[str, Any]
SCORES = ("last weights", "averaged", "packed", "headline")


def scores(row: Record) -> list[float]:
    return [row["val_bpb_last"], *(row["summary"][key] for key in ("val_bpb_float", "val_bpb_full", "val_bpb"))]


def kind(row: Record) -> tuple[Any, ...]:
    return computed_by(row | {"dtype": row["summary"]["dtype"]})


def changes(after: Record, before: Record) -> str:
    return " | ".join(f"{a - b:+.4f}" for a, b in zip(scores(after), scores(before), strict=True))


def forms_section(rows: list[Record], again: list[Record], steps: Record) -> list[str]:
    """
    Args:
        rows: of the table of systems.
        again: repaired forms made once more, on the kind of processor that made the other form.
    """
    now = [row for row in (*again, *rows) if not dagger([row], steps)]
    lines = [
        "### As submitted less repaired",
        "",
        "Bits per byte (above zero: what ran was worse than what was advertised), pair by pair: one seed, the same steps, one dtype. Where "
        "one kind of processor computed both, the two are one run until something differs between them; on two kinds rounding parts them, "
        "and they may end as far apart as two seeds.",
        "",
        f"| system | seed | computed in | processors | {' | '.join(SCORES)} |",
        "| --- | ---: | --- | --- |" + " ---: |" * len(SCORES),
    ]
    alone = []
    for name in SYSTEMS:
        submitted = sorted((row for row in now if row["name"] == name + AS_SUBMITTED), key=lambda row: row["seed"])
        for ran in submitted:
            dtype = ran["summary"]["dtype"]
            like = [row for row in now if (row["name"], row["seed"], row["summary"]["dtype"]) == (name, ran["seed"], dtype)]
            if not like:
                alone.append(f"{name}, seed {ran['seed']}, {dtype}")
            else:
                advertised = next((row for row in like if kind(row) == kind(ran)), like[0])
                told = "one kind" if kind(advertised) == kind(ran) else "two kinds"
                lines.append(f"| {name} | {ran['seed']} | {dtype} | {told} | {changes(ran, advertised)} |")
    if alone:
        lines += ["", f"Not paired, for no repaired form of that seed was computed in the same dtype: {'; '.join(alone)}."]
    return [*lines, "", *(again_table(rows, again) if again else [])]


def again_table(rows: list[Record], again: list[Record]) -> list[str]:
    """One form on two kinds of processor: what rounding alone makes of a run."""
    of = {(row["name"], row["seed"], row["summary"]["dtype"]): row for row in rows}
    both = [(row, of[at]) for row in again if (at := (row["name"], row["seed"], row["summary"]["dtype"])) in of]
    first = [before for _, before in both]
    lines = [
        "One run on two kinds of processor, the second less the first: the same recipe, seed, steps and dtype. What differs is rounding, "
        "the processor's and that of the code between the commits. "
        f"First at {commits(first)} ({hardware(first)}), then at {commits(again)} ({hardware(again)}): "
        "`python benchmarks/systems.py run --data web --out systems_again.jsonl`.",
        "",
        f"| system | seed | computed in | {' | '.join(SCORES)} |",
        "| --- | ---: | --- |" + " ---: |" * len(SCORES),
    ]
    lines += [f"| {row['name']} | {row['seed']} | {row['summary']['dtype']} | {changes(row, before)} |" for row, before in both]
    return [*lines, ""]
