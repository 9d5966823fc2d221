"""The sections of docs/results.md on systems, and the figures of their own pages; ``render.py`` puts them in their place."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from plot import chart
from record import commits, digest, hardware
from scaling import SIZES, TIMES
from timed import undisturbed

from bytefit.config import to_json
from bytefit.recipes import AS_SUBMITTED, RECIPES, SYSTEMS, find_recipe

Record = dict[str, Any]
LEDGER = ("train", "average", "calibrate", "fit", "encode", "score", "adapt", "prove")


def systems_section(rows: list[Record], steps: Record) -> list[str]:
    """Every recipe at lab size, means over its seeds."""
    by_system: dict[str, list[Record]] = defaultdict(list)
    for row in rows:
        by_system[row["name"]].append(row)
    first = rows[0]
    lines = [
        "## Systems at lab size",
        "",
        f"`python benchmarks/systems.py run --data web` at commit {commits(rows)}; {hardware(rows)}. Dataset hash "
        f"`{first['summary']['dataset_sha256'][:16]}`, the first {first['summary']['val_bytes']:,} bytes of validation text.",
        "",
        f"The clock is {first['seconds']:.0f} s on two cores, turned into steps: `python benchmarks/systems.py speed --data web` "
        f"measured every recipe's steps a second in turn, {len(steps['rounds'])} rounds (`benchmarks/timed.py` says how they count). "
        f"{noise_of_steps(steps['rounds'])} The cap is 1,000,000 bytes with everything inside. {arithmetic_of(rows)} The vocabulary is "
        f"the web text's, {first['summary']['tokenizer']['vocab_size']:,}, so that a system of the contest has more parameters than with "
        "its own of 1,024. Bits per byte, lower is better; *packed* is of the artifact, *tax* what packing costs, *headline* the protocol "
        "that the system itself states. Means over the seeds, ± the standard deviation of the headline, which holds the change of "
        "arithmetic too where seeds differ in it. Every run was proven by decoding and audited; the last column counts proofs and audits "
        "without a fail (class 31, training text read after the clock, cannot be judged where a run is given steps).",
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
            f"| {name}{dagger(found, steps)} | {len(found)} | {summary['num_parameters']:,} | {summary['steps']:,} "
            f"| {summary['tokens_seen'] / 1e6:.1f} "
            f"| {statistics.fmean(row['val_bpb_last'] for row in found):.4f} | {flt:.4f} | {full:.4f} | {full - flt:+.4f} "
            f"| {mean(found, 'val_bpb_sliding'):.4f} | {adapted} | **{statistics.fmean(headline):.4f}**{spread} | {size} "
            f"| {proven}, {audited} of {len(found)} |"
        )
    missing = [name for name in RECIPES if name not in by_system]
    if any(" †" in line for line in lines):
        lines += ["", EARLIER]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    lines += ["", *seconds_table(known, by_system), ""]
    return lines


def noise_of_steps(rounds: list[Record]) -> str:
    """What the measured speeds are worth, by the systems whose two forms differ in the dtype of rotary tables alone."""
    speeds = undisturbed([turn["steps_per_second"] for turn in rounds])
    change = {name: 100 * (speeds[name + AS_SUBMITTED] / speeds[name] - 1) for name in ("baseline", "pr128")}
    told = " and ".join(f"{percent:+.0f} % for `{name}`" for name, percent in change.items())
    return (
        f"Both forms of a system take the steps of the repaired one: as measured the speed of the other differs by {told}, where nothing "
        "but the dtype of rotary tables does, which is noise."
    )


def arithmetic_of(rows: list[Record]) -> str:
    """Which rows were computed in what: in bf16 on machines with units for it, in fp32 elsewhere."""
    runs: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        runs[row["summary"]["dtype"]][row["seed"]].append(row["name"])
    most, *others = sorted(runs, key=lambda dtype: -sum(map(len, runs[dtype].values())))
    if not others:
        return f"Computed in {most}."
    names = {row["name"] for row in rows}
    told = [
        f"in {dtype} "
        + "; ".join(f"seed {seed} of {'all' if set(held) == names else ', '.join(held)}" for seed, held in runs[dtype].items())
        for dtype in others
    ]
    return f"Computed in {most}, but {', '.join(told)}: what a run's machine is faster in (what that is worth: [log](log.md))."


EARLIER = (
    "† Of an earlier count of steps, or of the recipe as it was then; to be measured again, and shown until the first of now is there."
)


def newest(rows: list[Record], steps: Record) -> list[Record]:
    """The rows of a system's steps and recipe of now; all of them where it has none."""
    now = {row["name"] for row in rows if not dagger([row], steps)}
    return [row for row in rows if row["name"] not in now or not dagger([row], steps)]


def dagger(rows: list[Record], steps: Record) -> str:
    """A mark where a row of one system took other steps than its clock gives it now, or is of another recipe than it is now."""
    now = {(steps["steps"][name], digest(to_json(find_recipe(name)))) for name in {row["name"] for row in rows}}
    return "" if all((row["summary"]["steps"], row["digest"]) in now for row in rows) else " †"


def peers_section(record: Record) -> list[str]:
    """What the contest's own scripts reached under a like budget."""
    lines = [
        "## The contest's own scripts on two cores",
        "",
        f"{record['what']} Hardware: {record['machine']}. By {record['command']}. Not like for like with our rows above: the vocabulary, "
        "the blocks and the steps differ, so that the distance to them says nothing about either.",
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
        "Seconds by ledger entry, the median of the seeds. To be read along a row, not down a column: the runs went on beside other work, "
        "on one thread each, on different processors, and the earlier scores without compiled windows; training is the steps of 300 s "
        "whatever it took here.",
        "",
        "| system | " + " | ".join(LEDGER) + " |",
        "| --- |" + " ---: |" * len(LEDGER),
    ]
    for name in known:
        spent = [row["summary"]["ledger"] for row in by_system[name]]
        cells = [statistics.median(entry.get(key, 0.0) for entry in spent) for key in LEDGER]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.0f}" if cell >= 0.5 else "–" for cell in cells) + " |")
    return lines


def system_figures(name: str, rows: list[Record], steps: Record, gpu: list[Record]) -> str:
    """The table of one system's page: both forms beside each other, means over the seeds."""
    lines = []
    for form in (name, name + AS_SUBMITTED):
        of_form = [row for row in rows if row["name"] == form]
        found = [row["summary"] | {"last": row["val_bpb_last"]} for row in of_form]
        if not found:
            continue

        def mean(key: str, found: list[Record] = found) -> str:
            values = [summary[key] for summary in found if summary[key] is not None]
            return f"{statistics.fmean(values):.4f}" if values else "–"

        keys = ("last", "val_bpb_float", "val_bpb_full", "val_bpb_sliding", "val_bpb_adapted", "val_bpb")
        sizes = [summary["artifact_bytes"] for summary in found]
        lengths = " and ".join(f"{length:,}" for length in sorted({summary["steps"] for summary in found}))
        computed_in = ", ".join(f"{summary['dtype']}" for summary in found)
        cells = [f"{form}{dagger(of_form, steps)}", str(len(found)), lengths, computed_in, *map(mean, keys), f"{max(sizes):,}"]
        lines.append("| " + " | ".join(cells) + " |")
    measured = any(row["recipe"] == name and row["size"] == "full" and row["machine"]["gpu"] for row in gpu)
    at_full = "see [results](../results.md#systems-at-contest-size)" if measured else "not measured"
    if not lines:
        return f"At lab size: not measured yet. At full size on a GPU: {at_full}."
    return "\n".join(
        [
            "At lab size (300 s on two cores, 1,000,000 bytes, web text, a vocabulary of 2,048; more in [results](../results.md)), bits "
            "per byte:",
            "",
            "| form | seeds | steps | computed in | last weights | averaged | packed | sliding | learning | headline | most bytes |",
            "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *lines,
            *(["", EARLIER] if any(" †" in line for line in lines) else []),
            "",
            "Means over the seeds; both forms take the steps of the repaired one, with its seconds for calibrating. The published figures "
            "above are of eight GPUs, other text and tokenizer, and sixteen times the bytes: what can be compared is what each step "
            "changes, not the level. "
            f"At full size on a GPU: {at_full}.",
        ]
    )


def scaling_section(rows: list[Record], of_systems: list[Record], pictures: Path) -> list[str]:
    """L(N), and bits per byte against training seconds; ``of_systems`` are the rows of ``pocket`` in the table of systems."""
    points: dict[tuple[int, float], list[Record]] = defaultdict(list)
    for row in sorted([*of_systems, *rows], key=lambda row: (row["summary"]["budget_bytes"], row["seconds"])):
        points[row["summary"]["budget_bytes"], row["seconds"]].append(row)
    standard = find_recipe("pocket").model.dim
    lines = [
        "## Bytes and seconds",
        "",
        f"`python benchmarks/scaling.py run --data web` at commit {commits(rows)}; {hardware(rows)}. `pocket`, its width, heads and "
        "hashed table chosen for the cap, everything else the same; steps of a clock on two cores; the headline protocol; means over the "
        f"seeds. A million bytes and {of_systems[0]['seconds']:.0f} s are the rows of the table of systems.",
        "",
        "![bits per byte against artifact bytes](pictures/bytes.svg) ![and against training seconds](pictures/seconds.svg)",
        "",
        "| cap | training s | seeds | width | parameters | steps | float | packed | sliding | headline | bytes | audit: fail |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    drawn: dict[str, dict[str, list[tuple[float, float]]]] = {"bytes": defaultdict(list), "seconds": defaultdict(list)}
    for (budget, seconds), found in points.items():
        summaries = [row["summary"] for row in found]
        means = [statistics.fmean(s[key] for s in summaries) for key in ("val_bpb_float", "val_bpb_full", "val_bpb_sliding", "val_bpb")]
        summary, size = summaries[0], max(s["artifact_bytes"] for s in summaries)
        width = next((word.split("=")[1] for word in found[0]["command"].split() if word.startswith("model.dim=")), standard)
        fails = sorted({number for row in found for number in row["audit"]["fail"]})
        lines.append(
            f"| {budget:,} | {seconds:.0f} | {len(found)} | {width} | {summary['num_parameters']:,} | {summary['steps']:,} | "
            + " | ".join(f"{value:.4f}" for value in means)
            + f" | {size:,} | {', '.join(map(str, fails)) or 'none'} |"
        )
        for protocol, mean in zip(("full windows", "sliding windows", "learning (headline)"), means[1:], strict=True):
            if seconds == of_systems[0]["seconds"]:
                drawn["bytes"][protocol].append((budget, mean))
            if budget == of_systems[0]["summary"]["budget_bytes"]:
                drawn["seconds"][protocol].append((seconds, mean))
    axes = {"bytes": "artifact bytes", "seconds": "training seconds on two cores"}
    for name, axis in axes.items():
        svg = chart(f"pocket, packed: bits per byte against {axis}", drawn[name], x=axis, y="bits per byte", log_x=True)
        (pictures / f"{name}.svg").write_text(svg)
    missing = [entry.name for entry in (*SIZES, *TIMES) if entry.name not in {row["name"] for row in rows}]
    return [*lines, *(["", f"Not measured yet: {', '.join(missing)}."] if missing else []), ""]


EXPECTED_TO_FAIL = {
    20: "asks for the whole validation split at the contest's size; here a slice is scored",
    32: "allows 600 s for scoring, which these runs exceed",
}


def why_classes_fail(rows: list[Record]) -> list[str]:
    """A line for each class of the audit that runs at full size are known to fail in."""
    failed = {number for row in rows for number in row["audit_fails"]}
    return [f"Class {number} {why}." for number, why in EXPECTED_TO_FAIL.items() if number in failed]


def gpu_section(rows: list[Record]) -> list[str]:
    """Contest sizes on GPUs; every system keeps its row until it is measured there."""
    lines = ["## Systems at contest size", ""]
    latest = {(row["recipe"], row["gpus"], row["seed"]): row for row in rows if row["size"] == "full" and row["machine"]["gpu"]}
    if latest:
        first = next(iter(latest.values()))
        lines += [
            f"`bash benchmarks/gpu.sh SECONDS DATASET` at commit {commits(list(latest.values()))}; {first['machine']['gpu']}, torch "
            f"{first['machine']['torch']}. Dataset hash `{first['summary']['dataset_sha256'][:16]}`. Lengths in steps are shortened to the "
            "steps that fit; a step's time is that of the main part of a run. MFU is of the data sheet's dense bf16 rate, with attention "
            "by PyTorch's SDPA, not the FlashAttention 3 of the contest's scripts. *attention* is one layer's, forward and backward, on a "
            "micro-batch, by each of SDPA's kernels that there is.",
            "",
        ]
    columns = ["GPUs", "seed", "training s", "steps", "ms a step", "tokens/s", "GiB", "MFU", "attention, ms"]
    columns += ["float", "packed", "headline", "bytes", "restored", "audit: fail"]
    lines += [f"| system | {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 2)} --- | --- |"]
    for name in SYSTEMS:
        found = [row for (recipe, _, _), row in sorted(latest.items()) if recipe == name]
        for row in found:
            summary = row["summary"]
            mfu = "unknown" if row["mfu"] is None else f"{row['mfu']:.1%}"
            attention = ", ".join(f"{kernel} {milliseconds:.2f}" for kernel, milliseconds in row["attention_ms"].items()) or "–"
            restored = {None: "not tried", True: "yes", False: "no"}[summary["proof_restored"]]
            lines.append(
                f"| {name} | {row['gpus']} | {row['seed']} | {summary['train_seconds']:.0f} | {summary['steps']:,} "
                f"| {row['milliseconds_a_step']:.1f} | {row['tokens_per_second']:,.0f} "
                f"| {row['peak_memory_bytes'] / 2**30:.1f} | {mfu} | {attention} "
                f"| {summary['val_bpb_float']:.4f} | {summary['val_bpb_full']:.4f} | {summary['val_bpb']:.4f} "
                f"| {summary['artifact_bytes']:,} | {restored} | {', '.join(map(str, row['audit_fails'])) or 'none'} |"
            )
        if not found:
            lines.append(f"| {name} | not measured" + " |" * len(columns))
    why = why_classes_fail(list(latest.values()))
    return [*lines, "", *why, ""] if why else [*lines, ""]
