"""The sections of docs/results.md on systems and on what their techniques are worth; ``render.py`` puts them in their place."""

from __future__ import annotations

import statistics
from collections import defaultdict
from html import escape
from pathlib import Path
from typing import Any

from plot import STYLE, chart
from scipy import stats
from techniques import TECHNIQUES, Technique

from bytefit.recipes import AS_SUBMITTED, RECIPES

Record = dict[str, Any]
LEDGER = ("train", "average", "calibrate", "fit", "encode", "score", "adapt", "prove")


def systems_section(rows: list[Record], steps: Record) -> list[str]:
    """Every recipe at lab size, means over its seeds."""
    by_system: dict[str, list[Record]] = defaultdict(list)
    for row in rows:
        by_system[row["name"]].append(row)
    first = rows[0]
    machine = first["machine"]
    commits = ", ".join(f"`{commit[:10]}`" for commit in dict.fromkeys(row["commit"] for row in rows))
    lines = [
        "## Systems at lab size",
        "",
        f"`python benchmarks/systems.py run --data web` at commit {commits}; {machine['cpu']}, {machine['cpu_capability']}. Dataset hash "
        f"`{first['summary']['dataset_sha256'][:16]}`, the first {first['summary']['val_bytes']:,} bytes of validation text.",
        "",
        f"The clock is {first['seconds']:.0f} s on two cores, turned into steps: `python benchmarks/systems.py speed --data web` "
        "measured every recipe's steps a second in turn, and the fastest round counts. The cap is 1,000,000 bytes with everything inside. "
        "Bits per byte, lower is better; *packed* is of the artifact, *tax* what packing costs, *headline* the protocol that the system "
        "itself states. Means over the seeds, ± the standard deviation of the headline. Every run was proven by decoding and audited; the "
        "last column counts both.",
        "",
        "| system | seeds | parameters | steps | million tokens | last weights | averaged | packed | tax | sliding | learning "
        "| **headline** | bytes | proofs, audits |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip

    def mean(found: list[Record], key: str) -> float:
        return statistics.fmean(row["summary"][key] for row in found)

    known = sorted(by_system, key=lambda name: mean(by_system[name], "val_bpb"))
    for name in known:
        found = by_system[name]
        summary = found[0]["summary"]
        headline = [row["summary"]["val_bpb"] for row in found]
        spread = f" ± {statistics.stdev(headline):.4f}" if len(headline) > 1 else ""
        adapted = "–" if summary["val_bpb_adapted"] is None else f"{mean(found, 'val_bpb_adapted'):.4f}"
        full, flt = mean(found, "val_bpb_full"), mean(found, "val_bpb_float")
        proven = sum(bool(row["summary"]["proof_restored"]) for row in found)
        audited = sum(not row["audit"]["fail"] for row in found)
        sizes = [row["summary"]["artifact_bytes"] for row in found]
        size = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
        lines.append(
            f"| {name} | {len(found)} | {summary['num_parameters']:,} | {summary['steps']:,} | {summary['tokens_seen'] / 1e6:.1f} "
            f"| {statistics.fmean(row['val_bpb_last'] for row in found):.4f} | {flt:.4f} | {full:.4f} | {full - flt:+.4f} "
            f"| {mean(found, 'val_bpb_sliding'):.4f} | {adapted} | **{statistics.fmean(headline):.4f}**{spread} | {size} "
            f"| {proven}, {audited} of {len(found)} |"
        )
    missing = [name for name in RECIPES if name not in by_system]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    lines += ["", *seconds_table(known, by_system), ""]
    return lines


def peers_section(record: Record) -> list[str]:
    """What the contest's own scripts reached under a like budget."""
    lines = [
        "## The contest's own scripts on two cores",
        "",
        f"{record['what']} Hardware: {record['machine']}. By {record['command']}.",
        "",
        "| script | parameters | float | quantised | as | sliding | learning | model bytes |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        scores = ["–" if row[key] is None else f"{row[key]:.3f}" for key in ("float", "quantised", "sliding", "learning")]
        lines.append(
            f"| {row['system']} | {row['num_parameters']:,} | {scores[0]} | {scores[1]} | {row['quantised_as']} | {scores[2]} "
            f"| {scores[3]} | {row['model_bytes']:,} |"
        )
    return [*lines, ""]


def seconds_table(known: list[str], by_system: dict[str, list[Record]]) -> list[str]:
    lines = [
        "Seconds by ledger entry, the median of the seeds. The runs went on beside other work, on one thread each: they say what the "
        "entries are to each other, not how fast this is; training is the steps of 300 s whatever it took here.",
        "",
        "| system | " + " | ".join(LEDGER) + " |",
        "| --- |" + " ---: |" * len(LEDGER),
    ]
    for name in known:
        spent = [row["summary"]["ledger"] for row in by_system[name]]
        cells = [statistics.median(entry.get(key, 0.0) for entry in spent) for key in LEDGER]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.0f}" if cell >= 0.5 else "–" for cell in cells) + " |")
    return lines


def system_figures(name: str, rows: list[Record]) -> str:
    """The table of one system's page: both forms beside each other, means over the seeds."""
    lines = []
    for form in (name, name + AS_SUBMITTED):
        found = [row["summary"] | {"last": row["val_bpb_last"]} for row in rows if row["name"] == form]
        if not found:
            continue

        def mean(key: str, found: list[Record] = found) -> str:
            values = [summary[key] for summary in found if summary[key] is not None]
            return f"{statistics.fmean(values):.4f}" if values else "–"

        keys = ("last", "val_bpb_float", "val_bpb_full", "val_bpb_sliding", "val_bpb_adapted", "val_bpb")
        sizes = [summary["artifact_bytes"] for summary in found]
        lines.append(f"| {form} | {len(found)} | " + " | ".join(mean(key) for key in keys) + f" | {max(sizes):,} |")
    if not lines:
        return "At lab size: not measured yet. At full size on a GPU: not measured."
    return "\n".join(
        [
            "At lab size (300 s on two cores, 1,000,000 bytes, web text, 2,048 tokens; more in [results](../results.md)), bits per byte:",
            "",
            "| form | seeds | last weights | averaged | packed | sliding | learning | headline | most bytes |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *lines,
            "",
            "Means over the seeds. The published figures above are of eight GPUs, other text and tokenizer, and sixteen times the bytes: "
            "what can be compared is the order of forms and what each step changes, not the level. At full size on a GPU: not measured.",
        ]
    )


def scaling_section(rows: list[Record], pictures: Path) -> list[str]:
    """L(N), and bits per byte against training seconds."""
    by_name: dict[str, list[Record]] = defaultdict(list)
    for row in rows:
        by_name[row["name"]].append(row)
    first = rows[0]
    commits = ", ".join(f"`{commit[:10]}`" for commit in dict.fromkeys(row["commit"] for row in rows))
    lines = [
        "## Bytes and seconds",
        "",
        f"`python benchmarks/scaling.py run --data web` at commit {commits}; {first['machine']['cpu']}. `pocket`, its width chosen for "
        "the cap, everything else the same; steps of a clock on two cores; the headline protocol; means over the seeds.",
        "",
        "![bits per byte against artifact bytes](pictures/bytes.svg) ![and against training seconds](pictures/seconds.svg)",
        "",
        "| run | seeds | training s | width | parameters | steps | float | packed | sliding | headline | bytes |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    points: dict[str, list[tuple[float, float]]] = {"bytes": [], "seconds": []}
    for name, found in by_name.items():
        summaries = [row["summary"] for row in found]
        means = [statistics.fmean(s[key] for s in summaries) for key in ("val_bpb_float", "val_bpb_full", "val_bpb_sliding", "val_bpb")]
        summary, size = summaries[0], max(s["artifact_bytes"] for s in summaries)
        width = next((word.split("=")[1] for word in found[0]["command"].split() if word.startswith("model.dim=")), "192")
        lines.append(
            f"| {name} | {len(found)} | {found[0]['seconds']:.0f} | {width} | {summary['num_parameters']:,} | {summary['steps']:,} | "
            + " | ".join(f"{value:.4f}" for value in means)
            + f" | {size:,} |"
        )
        if found[0]["seconds"] == first["seconds"]:
            points["bytes"].append((summary["budget_bytes"], means[-1]))
        if summary["budget_bytes"] == 1_000_000:
            points["seconds"].append((found[0]["seconds"], means[-1]))
    axes = {"bytes": "artifact bytes", "seconds": "training seconds on two cores"}
    for name, axis in axes.items():
        if len(points[name]) > 1:
            drawn = chart(f"pocket, bits per byte against {axis}", {"headline": points[name]}, x=axis, y="bits per byte", log_x=True)
            (pictures / f"{name}.svg").write_text(drawn)
    return [*lines, ""]


class Effects:
    """Paired differences of one technique: with it minus without it, so that below zero it helps."""

    def __init__(self, recipe: str, technique: Technique, way: str, rows: list[Record]):
        name = technique.name
        self.recipe, self.name, self.way, self.judged = recipe, name, way, technique.judged
        self.title = f"{name} ({technique.note})" if technique.note else name

        def find(match: str, technique: str | None, way: str) -> dict[int, Record]:
            wanted = (recipe, technique, way, match)
            return {r["seed"]: r for r in rows if (r["recipe"], r["technique"], r["way"], r["match"]) == wanted}

        own_base = name if recipe == technique.home and technique.both else None
        pack = any(r["match"] == "weights" and r["technique"] == name and r["recipe"] == recipe for r in rows)
        self.stage = "pack" if pack else "train"
        base = find("weights" if pack else "steps", own_base, "base")
        self.steps = self._differences(base, find("weights" if pack else "steps", name, way))
        longer = find("time", name, way)
        self.time = self._differences(base, longer) if longer else None
        own = find("steps", name, way)
        self.slower = None if pack or not base or not own else least(own) / least(base)
        self.bytes = [own_row["artifact_bytes"] for own_row in find("weights", name, way).values()] if pack else []

    def _differences(self, base: dict[int, Record], own: dict[int, Record]) -> list[float]:
        sign = 1 if self.way == "in" else -1
        return [sign * (own[seed][self.judged] - base[seed][self.judged]) for seed in sorted(own) if seed in base]


def least(rows: dict[int, Record]) -> float:
    return min(row["milliseconds_a_step"] for row in rows.values())


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval by Student's t; a single one is its own interval."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


def effects_of(rows: list[Record]) -> list[Effects]:
    found = []
    for technique in TECHNIQUES:
        ways = [(technique.home, technique.way)] if technique.change else []
        if technique.into is not None:
            ways.append(("baseline", "in"))
        found += [Effects(recipe, technique, way, rows) for recipe, way in ways]
    return [effect for effect in found if effect.steps]


def ablation_section(rows: list[Record], pictures: Path) -> list[str]:
    effects = effects_of(rows)
    trained = [effect for effect in effects if effect.stage == "train"]
    packed = [effect for effect in effects if effect.stage == "pack"]
    first = next(row for row in rows if row["match"] == "steps")
    commits = ", ".join(f"`{commit[:10]}`" for commit in dict.fromkeys(row["commit"] for row in rows))
    machine = first["machine"]
    lines = [
        "## What each technique is worth",
        "",
        f"`python benchmarks/ablation.py train|pack --data web` at commit {commits}; {machine['cpu']}, {machine['cpu_capability']}; every "
        "row of `benchmarks/results/ablation.jsonl` holds its own command. What a setting is, is in `benchmarks/techniques.py`.",
        "",
        "The difference that having a technique makes, in bits per byte (below zero: it helps), at lab size. *Out*: taken out of the "
        "system that has it; *in*: put into the system named. Both runs of a pair have the same seed; means over the seeds and 95 % "
        "intervals by Student's t, each for itself: of so many, one in twenty leaves zero out by chance. Equal steps: "
        f"{first['steps']} each, fewer than in the table of systems, and lengths in steps with them. Equal time: the variant has "
        "as many steps as fit the base's time; left empty where a step takes the same within 3 %. Non-overlapping windows, "
        f"{first['bytes']:,} bytes of validation text.",
        "",
        "![what each technique is worth](pictures/ablation.svg)",
        "",
        "| technique | way | system | judged by | seeds | equal steps | equal time | step time |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for effect in trained:
        time = "" if effect.time is None else _with_interval(effect.time)
        slower = "" if effect.slower is None else f"{effect.slower if effect.way == 'in' else 1 / effect.slower:.2f}×"
        lines.append(
            f"| {effect.title} | {effect.way} | {effect.recipe} | {effect.judged} | {len(effect.steps)} | {_with_interval(effect.steps)} "
            f"| {time} | {slower} |"
        )
    (pictures / "ablation.svg").write_text(bars(trained))
    if packed:
        lines += [
            "",
            "After training, on the weights of the table of systems, each fitted to the same cap:",
            "",
            "| technique | way | system | seeds | difference | bytes |",
            "| --- | --- | --- | ---: | ---: | ---: |",
        ]
        for effect in packed:
            lines.append(
                f"| {effect.name} | {effect.way} | {effect.recipe} | {len(effect.steps)} | {_with_interval(effect.steps)} "
                f"| {min(effect.bytes):,} to {max(effect.bytes):,} |"
            )
    return [*lines, ""]


def _with_interval(differences: list[float]) -> str:
    mean, low, high = interval(differences)
    return f"{mean:+.4f}" + (f" ({low:+.4f} to {high:+.4f})" if len(differences) > 1 else "")


WIDTH, LABEL, ROW, EDGE = 900, 420, 20, 60


def bars(effects: list[Effects]) -> str:
    """A bar from zero to the mean with its interval, a row a technique, best first; equal steps."""
    found = sorted(((interval(effect.steps), effect) for effect in effects), key=lambda pair: pair[0][0])
    most = min(0.12, max(abs(mean) for (mean, _, _), _ in found) * 1.1)
    height = EDGE + ROW * len(found) + 30

    def place(value: float) -> float:
        return LABEL + (min(max(value, -most), most) + most) / (2 * most) * (WIDTH - LABEL - 20)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12">',
        STYLE,
        '<text x="8" y="20" font-size="15">bits per byte that having the technique adds (left of zero: it helps), equal steps</text>',
    ]
    for tick in (-0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1):
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
        if low != high:
            parts.append(f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{y + 5.5}" y2="{y + 5.5}" stroke="#868e96"/>')
    parts.append(
        f'<text x="8" y="{height - 6}">green and red: the 95 % interval leaves zero out; grey: it does not, or there is one seed</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def missing_note() -> list[str]:
    """Every system keeps its row at contest size until a GPU has measured it."""
    lines = ["## Systems at contest size", "", "| system | bits per byte on one GPU |", "| --- | --- |"]
    return [*lines, *(f"| {name} | not measured |" for name in RECIPES if name != "pocket" and not name.endswith(AS_SUBMITTED)), ""]
