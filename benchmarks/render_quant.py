"""The sections of docs/results.md on the way from weights to bytes; ``render.py`` puts them in their place."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plot import chart

Record = dict[str, Any]


def tax_section(record: Record, provenance: Callable[[Record], str]) -> list[str]:
    """Bits per byte that rounding costs, mean and range over the seeds."""
    by_training: dict[str, list[Record]] = defaultdict(list)
    for row in record["rows"]:
        by_training[row["trained"]].append(row)
    names = list(by_training)
    lines = [
        "## What rounding costs",
        "",
        provenance(record),
        f"`pocket`, lab size, {record['steps']} steps, {len(by_training[names[0]])} seeds. The first row is bits per byte of fp32 "
        "weights on non-overlapping windows; the others are what the packed file adds: mean over the seeds (smallest to largest). "
        "Every row of a column has the same weights. Fake quantisation aims at int5 and is on from half the learning rate; CROWN-Q too.",
        "",
        "| | bytes | " + " | ".join(names) + " |",
        "| --- | ---: | " + " | ".join("---:" for _ in names) + " |",
        "| fp32 | – | " + " | ".join(_spread([row["float"] for row in by_training[name]], "{:.4f}") for name in names) + " |",
    ]
    for scheme in by_training[names[0]][0]["schemes"]:
        found = {name: [row["schemes"][scheme] for row in by_training[name]] for name in names}
        size = statistics.fmean(cell["bytes"] for cell in found[names[0]])
        cells = [_spread([cell["tax"] for cell in found[name]], "{:+.4f}") for name in names]
        lines.append(f"| {scheme} | {size:,.0f} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _spread(values: list[float], form: str) -> str:
    if len(values) == 1:
        return form.format(values[0])
    return f"{form.format(statistics.fmean(values))} ({form.format(min(values))} to {form.format(max(values))})"


def rate_section(record: Record, provenance: Callable[[Record], str], pictures: Path) -> list[str]:
    layers, models = record["layers"], record["models"]
    seeds = sorted({row["seed"] for row in models})
    lines = ["## Bytes against damage", "", provenance(record), ""]
    for role in dict.fromkeys(row["role"] for row in layers):
        curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in layers:
            if row["role"] == role and row["seed"] == seeds[0]:
                curves[row["scheme"]].append((row["damage"], row["bits"]))
                if row["scheme"] == "equal damage, 8 states":
                    curves["R* (Gaussian limit)"].append((row["damage"], row["limit"]))
        title = f"Bits a weight against output damage: {role}, seed {seeds[0]}"
        name = f"rate-{role}.svg"
        (pictures / name).write_text(
            chart(title, curves, x="damage of the outputs, a weight", y="bits a weight, everything stored", log_x=True)
        )
        lines.append(f"![{title}](pictures/{name})")
    lines += [
        "",
        f"Distance to the limit R* in bits a weight, at 2.5 to 6 bits and below (mean over points and {len(seeds)} seeds; worst point):",
        "",
        "| scheme | " + " | ".join(f"{role}, 2.5 to 6 | {role}, below" for role in dict.fromkeys(row["role"] for row in layers)) + " |",
        "| --- | " + " | ".join("---: | ---:" for _ in dict.fromkeys(row["role"] for row in layers)) + " |",
    ]
    for scheme in dict.fromkeys(row["scheme"] for row in layers):
        cells = []
        for role in dict.fromkeys(row["role"] for row in layers):
            for low, high in ((2.5, 6.0), (0.0, 2.5)):
                own = [row for row in layers if row["scheme"] == scheme and row["role"] == role]
                gaps = [row["gap"] for row in own if low <= row["bits"] < high]
                cells.append(f"{statistics.fmean(gaps):.3f} ({max(gaps):.3f})" if gaps else "–")
        lines.append(f"| {scheme} | " + " | ".join(cells) + " |")
    return [*lines, "", *_models(models, seeds, pictures)]


def _models(models: list[Record], seeds: list[int], pictures: Path) -> list[str]:
    """Whole artifacts: what each scheme adds to the bits per byte of the fp32 weights at equal bytes."""
    budgets = sorted({row["budget"] for row in models})
    taxes: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in models:
        taxes[row["scheme"]][row["budget"]].append(row["bits_per_byte"] - row["float"])
    curves = {
        scheme: [(float(budget), max(1e-5, statistics.fmean(values))) for budget, values in by_budget.items()]
        for scheme, by_budget in taxes.items()
    }
    main = {name: curve for name, curve in curves.items() if "8 states," not in name}
    title = f"Bits per byte lost by packing, mean of {len(seeds)} seeds"
    (pictures / "packing.svg").write_text(
        chart(title, main, x="bytes of the artifact, everything counted", y="bits per byte lost", log_x=True, log_y=True)
    )
    plain = statistics.fmean({row["seed"]: row["float"] for row in models}.values())
    lines = [
        f"![{title}](pictures/packing.svg)",
        "",
        f"Bits per byte that packing the whole model into so many bytes adds to the {plain:.4f} of the fp32 weights "
        f"(mean of {len(seeds)} seeds):",
        "",
        "| scheme | " + " | ".join(f"{budget:,}" for budget in budgets) + " |",
        "| --- | " + " | ".join("---:" for _ in budgets) + " |",
    ]
    for scheme, by_budget in taxes.items():
        lines.append(f"| {scheme} | " + " | ".join(f"{statistics.fmean(by_budget[budget]):+.4f}" for budget in budgets) + " |")
    return [*lines, ""]


def fit_section(record: Record, full: Record | None, provenance: Callable[[Record], str]) -> list[str]:
    """Lab rows of one record, rows at full size of another (whose own lab rows were timed while other work ran)."""
    lab = [row for row in record["rows"] if row["size"] == "lab"]
    lines = [
        "## The byte solver",
        "",
        provenance(record),
        f"{len(lab)} random budgets over {len({row['recipe'] for row in lab})} recipes at lab size: the files take "
        f"{100 * min(row['share'] for row in lab):.3f} to {100 * max(row['share'] for row in lab):.3f} % of their budget, after "
        f"{min(row['attempts'] for row in lab)} to {max(row['attempts'] for row in lab)} attempts, in at most "
        f"{max(row['seconds'] for row in lab):.1f} s; {sum(row['decoded_alike'] for row in lab)} of {len(lab)} decode "
        "to the quantised tensors, twice.",
        "",
    ]
    if full is None:
        return lines
    lines += [
        provenance(full) + " Untrained weights of the right shapes; other work ran beside some rows.",
        "",
        "| recipe at full size | quantised as | bytes | of the budget | attempts | seconds | decodes alike |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in full["rows"]:
        if row["size"] == "full":
            lines.append(
                f"| {row['recipe']} | {row['quant']} | {row['bytes']:,} | {100 * row['share']:.3f} % | {row['attempts']} "
                f"| {row['seconds']:.0f} | {'yes' if row['decoded_alike'] else 'NO'} |"
            )
    return [*lines, ""]


def gptq_section(record: Record, provenance: Callable[[Record], str]) -> list[str]:
    columns = {
        "nearest": "ours, nearest",
        "ours, equal grid": "ours, equal grid",
        "llm-compressor": "llmcompressor",
        "ours, steps searched": "ours, own grid, search",
        "llm-compressor, mse": "llmcompressor, mse",
    }
    peers = ", ".join(f"{name} {facts['version']}" for name, facts in record["peers"].items())
    lines = [
        "## GPTQ against its peers",
        "",
        provenance(record),
        f"{peers}. The same weights and inputs for all (normal weights, correlated uneven inputs). Errors of the outputs relative to the "
        "outputs, in millionths; milliseconds of factorising and rounding at the equal grid, medians of alternating rounds.",
        "",
        "| matrix | bits | " + " | ".join(columns) + " | ours, ms | llm-compressor, ms | ratio |",
        "| --- | ---: | " + " | ".join("---:" for _ in columns) + " | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        errors = [f"{1e6 * row['errors'][key]:.0f}" if key in row["errors"] else "–" for key in columns.values()]
        timing = row["timing"]
        lines.append(
            f"| {' × '.join(map(str, row['shape']))} | {row['bits']} | {' | '.join(errors)} | {1e3 * timing['ours_seconds']:.1f} "
            f"| {1e3 * timing['peer_seconds']:.1f} | {timing['peer_seconds'] / timing['ours_seconds']:.1f}× |"
        )
    return [*lines, "", *(f"- {verdict}" for verdict in record["verdicts"]), ""]


def codec_section(record: Record, provenance: Callable[[Record], str]) -> list[str]:
    lines = [
        "## The coder of codes",
        "",
        provenance(record),
        "Bytes of all matrices of trained models, one stream a role, and of made-up weights in the shapes of a full-size model. Entropies "
        "are memoryless, of the codes' own histograms; those of rows are shown plain and corrected for how few codes a row has (Miller "
        "and Madow).",
        "",
    ]
    for title, verdicts in record["verdicts"].items():
        lines += [f"**{title}**", "", *(f"- {verdict}" for verdict in verdicts), ""]
    return lines
