"""The section of docs/results.md on protocols that learn; ``render.py`` puts it in its place."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from bytefit.config import to_json
from bytefit.recipes import find_recipe

Record = dict[str, Any]
WINDOWS = ("window", "stride")  # of the run that is scored, not of a recipe


def unlike(protocol: Record, other: Record, inside: str = "") -> list[str]:
    """What one protocol has that another has not, in words."""
    found = []
    for key, value in protocol.items():
        name, others = f"{inside}{key}", other.get(key)
        if isinstance(value, dict) and isinstance(others, dict):
            found += unlike(value, others, f"{name}.")
        elif value != others and key not in WINDOWS:
            found.append(f"`{name}` {value}, not {others}")
    return found


def settings_of_the_contest(rows: dict[str, list[Record]]) -> str:
    """Whose settings they are, and where they are not: recipes change after they were measured, and ``pocket`` has fewer blocks."""
    contest = {name.partition(":")[0]: found[0]["protocol"] for name, found in rows.items() if name.startswith("PR #")}
    recipes = {name: to_json(find_recipe(name.replace("PR #", "pr")).score.adapt) for name in contest}
    others = [f"{name} has {'; '.join(told)}" for name in contest if (told := unlike(contest[name], recipes[name]))]
    text = f"The contest's settings are those of their recipes at lab size{''.join(f', but that {told}' for told in others)}. "
    if {"PR #606", "PR #1171"} <= contest.keys():  # its row says that the two are the same but for the temperature
        text += f"What *the same* leaves out: PR #606 has {'; '.join(unlike(contest['PR #606'], contest['PR #1171']))}. "
    return text


def adapt_section(record: Record, larger: Record | None, provenance: Callable[[Record], str]) -> list[str]:
    """Bits per byte and seconds of every protocol, against sliding windows over the same packed weights."""
    rows: dict[str, list[Record]] = defaultdict(list)
    for row in record["rows"]:
        rows[row["name"]].append(row)
    sliding = {row["run"]: row["bits_per_byte"] for row in rows["sliding"]}
    train = statistics.median(row["train_seconds"] for row in record["rows"])
    first = record["rows"][0]
    lines = [
        "## Learning while scoring",
        "",
        provenance(record),
        f"`pocket` at lab size, packed into 1,000,000 bytes, {len(sliding)} seeds, {first['bytes']:,} bytes of validation text, windows of "
        f"{first['protocol']['window']}. Differences are to sliding windows of the same file (mean over the seeds, smallest to largest; "
        f"less is better). The models were trained for {train:.0f} s (median) on one thread. {settings_of_the_contest(rows)}Nothing was "
        "tuned on this text.",
        "",
        "| protocol | bits per byte | against sliding | steps | seconds |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, found in rows.items():
        gains = [row["bits_per_byte"] - sliding[row["run"]] for row in found]
        lines.append(
            f"| {name} | {statistics.fmean(row['bits_per_byte'] for row in found):.4f} "
            f"| {statistics.fmean(gains):+.4f} ({min(gains):+.4f} to {max(gains):+.4f}) "
            f"| {found[0]['learned_steps']:,} | {statistics.median(row['seconds'] for row in found):.0f} |"
        )
    if larger is not None:
        rows_1mb = larger["rows"]
        found = "; ".join(f"{row['name']} {row['bits_per_byte']:.4f} in {row['seconds']:.0f} s" for row in rows_1mb)
        lines += [
            "",
            f"{provenance(larger)} The same model (seed {rows_1mb[0]['seed']}) on {rows_1mb[0]['bytes']:,} bytes: {found}.",
        ]
    return [*lines, ""]
