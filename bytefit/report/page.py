"""``report.html``: one self-contained page about a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jinja2

from bytefit.files import read_json, write_bytes
from bytefit.report.chart import line_chart, smooth
from bytefit.train.metrics import read_metrics


def write_report(run: Path, out: Path) -> None:
    """Render the run folder's files into ``out``.

    Raises:
        UserError: the run has no ``summary.json`` yet.
    """
    summary = read_json(run / "summary.json")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bytefit", "report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html").render(
        summary=summary,
        charts=_charts(read_metrics(run / "metrics.jsonl")),
        parts=_bars(dict(sorted(summary["bytes_by_part"].items(), key=lambda item: -item[1]))),
        scores=_bars(_scores(summary), 4),
        ledger=_bars({name: seconds for name, seconds in summary["ledger"].items() if name not in ("strict", "customary")}, 1),
        recipe=json.dumps(read_json(run / "recipe.json"), indent=2),
        environment=json.dumps(read_json(run / "env.json"), indent=2),
    )
    write_bytes(out, page.encode())


def _scores(summary: dict[str, Any]) -> dict[str, float]:
    adapted = summary["val_bpb_adapted"]
    return {
        **({"bytefit, packed, learning from what it has scored": adapted} if adapted is not None else {}),
        "bytefit, packed, sliding windows": summary["val_bpb_sliding"],
        "bytefit, packed": summary["val_bpb_full"],
        "bytefit, float weights": summary["val_bpb_float"],
        **summary["compressors_bpb"],
    }


def _bars(values: dict[str, float], digits: int = 0) -> list[dict[str, Any]]:
    """Rows for a bar list: name, printed value, share of the largest."""
    largest = max(values.values(), default=1) or 1
    return [
        {"name": name, "value": f"{value:,.{digits}f}", "share": value / largest, "ours": name.startswith("bytefit")}
        for name, value in values.items()
    ]


def _charts(metrics: list[dict[str, Any]]) -> dict[str, str]:
    """SVG by title; the loss is shown in bits, from the fifth percentile of steps on so that its end can be read."""
    if len(metrics) < 2:
        return {}
    start = len(metrics) // 20
    shown = metrics[start:]
    middles, losses = smooth([record["loss"] / math.log(2) for record in shown])
    seconds = [shown[i]["seconds"] for i in middles]
    scales = [shown[i]["lr_scale"] for i in middles]
    return {
        "Training loss": line_chart(seconds, losses, x_label="training seconds", y_label="bits per token"),
        "Learning-rate factor": line_chart(seconds, scales, x_label="training seconds", y_label="factor"),
    }
