"""The curves of one or more runs: what training logged, and bits per byte along the validation text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from bytefit.report.chart import Curve, line_chart, stretches
from bytefit.report.files import RunFiles

Metrics = Sequence[dict[str, Any]]
PROTOCOLS = {
    "adapt": "packed, learning from what it has scored",
    "sliding": "packed, sliding windows",
    "full": "packed, separate windows",
    "float_full": "float weights, separate windows",
}


def training_charts(runs: Sequence[RunFiles]) -> dict[str, str]:
    """SVG by title, against training seconds; empty where no run has metrics."""
    charts = {
        "Training loss": (loss_curve, "bits per token"),
        "Learning-rate factor": (learning_rate_curve, "factor"),
        "Throughput": (throughput_curve, "tokens a second"),
    }
    drawn = {
        title: line_chart([_curve(run, i, of) for i, run in enumerate(runs)], x_label="training seconds", y_label=unit)
        for title, (of, unit) in charts.items()
    }
    return {title: svg for title, svg in drawn.items() if svg}


def _curve(run: RunFiles, number: int, of: Callable[[Metrics], tuple[list[float], list[float]]]) -> Curve:
    return Curve(run.label, number, *of(run.metrics))


def loss_curve(metrics: Metrics) -> tuple[list[float], list[float]]:
    """Seconds, and bits per token as means over stretches of steps; without the first twentieth, beside which the end would be flat."""
    shown = metrics[len(metrics) // 20 :]
    parts = [shown[part] for part in stretches(len(shown))]
    return [_mean(part, "seconds") for part in parts], [_mean(part, "loss") / math.log(2) for part in parts]


def learning_rate_curve(metrics: Metrics) -> tuple[list[float], list[float]]:
    """Seconds, and the factor on all learning rates, as means over stretches of steps."""
    parts = [metrics[part] for part in stretches(len(metrics))]
    return [_mean(part, "seconds") for part in parts], [_mean(part, "lr_scale") for part in parts]


def throughput_curve(metrics: Metrics) -> tuple[list[float], list[float]]:
    """Seconds, and tokens a second over each stretch of steps, checkpoints included."""
    ends = [metrics[part.stop - 1] for part in stretches(len(metrics), most=100)]
    found: tuple[list[float], list[float]] = ([], [])
    for before, after in pairwise(ends):
        seconds = after["seconds"] - before["seconds"]
        if seconds > 0:
            found[0].append((before["seconds"] + after["seconds"]) / 2)
            found[1].append((after["tokens"] - before["tokens"]) / seconds)
    return found


def _mean(records: Metrics, key: str) -> float:
    return sum(record[key] for record in records) / len(records)


def running_charts(runs: Sequence[RunFiles]) -> dict[str, str]:
    """SVG by protocol: bits per byte of everything up to here, and faintly of each stretch alone. All have one scale.

    Empty where no score has more than one block.
    """
    curves: dict[str, list[Curve]] = {}
    for i, run in enumerate(runs):
        for name in PROTOCOLS:
            megabytes, so_far, alone = running_bits_per_byte(run.scores.get(name, {}).get("blocks", []))
            if len(megabytes) > 1:
                own = curves.setdefault(name, [])
                own += [Curve(run.label, i, megabytes, so_far), Curve(run.label, i, megabytes, alone, faint=True)]
    if not curves:
        return {}
    values = [y for own in curves.values() for curve in own for y in curve.ys]
    return {
        PROTOCOLS[name]: line_chart(
            curves[name], x_label="MB of validation text", y_label="bits per byte", y_range=(min(values), max(values))
        )
        for name in PROTOCOLS
        if name in curves
    }


def running_bits_per_byte(blocks: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """At the end of each stretch of blocks (targets, nats, bytes): megabytes so far, bits per byte so far, and of the stretch alone."""
    parts = [blocks[part] for part in stretches(len(blocks))]
    sums = [(sum(nats for _, nats, _ in part) / math.log(2), sum(size for _, _, size in part)) for part in parts]
    totals = zip(accumulate(bits for bits, _ in sums), accumulate(size for _, size in sums), strict=True)
    points = [
        (all_size / 1e6, all_bits / all_size, bits / size)
        for (bits, size), (all_bits, all_size) in zip(sums, totals, strict=True)
        if size  # a stretch may hold nothing but ends of documents
    ]
    return [x for x, _, _ in points], [so_far for _, so_far, _ in points], [alone for _, _, alone in points]
