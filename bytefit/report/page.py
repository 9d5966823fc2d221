"""``report.html``: one self-contained page about a run, with others beside it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from bytefit.files import write_bytes
from bytefit.report.chart import colour_of
from bytefit.report.curves import PROTOCOLS, running_charts, training_charts
from bytefit.report.files import RunFiles, read_runs
from bytefit.report.headline import different_text, figures, side_by_side
from bytefit.report.matrices import matrix_table
from bytefit.score.prove import AGREEMENT, SLACK_BITS

HOTTEST = 14  # bits at and above which a token has the full colour, as on the artifact's own page
TOTALS = ("strict", "customary")  # of the ledger


def write_report(run: Path, out: Path, others: Sequence[Path] = ()) -> None:
    """Render the run folder's files into ``out``; the curves and headlines of ``others`` stand beside its own.

    What a folder lacks is left out, and the page says so.

    Raises:
        UserError: a folder is no run, or its run is not finished.
    """
    runs = read_runs([run, *others])
    first = runs[0]
    style, script = (_source(name) for name in ("page.css", "page.js"))
    page = _environment().get_template("page.html").render(
        run=first,
        runs=runs,
        summary=first.summary,
        colours=[colour_of(i) for i in range(len(runs))],
        figures=figures(first.summary),
        side_by_side=side_by_side(runs),
        different_text=different_text(runs),
        parts=parts_of(first),
        scores=bars(scores_of(first.summary), 4, grey=first.summary["compressors_bpb"]),
        ledger=bars({name: seconds for name, seconds in first.summary["ledger"].items() if name not in TOTALS}, 1),
        training=training_charts(runs),
        running=running_charts(runs),
        matrices=matrix_table(first.details.get("matrices", []), first.summary["bytes_by_part"]),
        passage=first.details.get("passage"),
        hottest=HOTTEST,
        samples=first.details.get("samples") or ([{"text": first.summary["sample"]}] if first.summary.get("sample") else []),
        agreement=AGREEMENT,
        slack_bits=SLACK_BITS,
        verdicts=Counter(finding["verdict"] for finding in first.audit),
        recipe=json.dumps(first.recipe, indent=2),
        env=json.dumps(first.env, indent=2),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    write_bytes(out, page.encode(errors="backslashreplace"))  # names of folders need not be UTF-8


def _source(name: str) -> str:
    return (files("bytefit") / "report" / name).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    """Everything that is put into the page is escaped, but the charts, the style and the script, which are made here."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bytefit", "report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["whole"] = "{:,}".format
    environment.filters["fixed"] = lambda value, digits: f"{value:,.{digits}f}"
    environment.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f} %"
    return environment


def scores_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Bits per byte by what was scored, compressors last."""
    keys = {"adapt": "val_bpb_adapted", "sliding": "val_bpb_sliding", "full": "val_bpb_full", "float_full": "val_bpb_float"}
    ours = {PROTOCOLS[name]: summary.get(key) for name, key in keys.items()}
    return {name: value for name, value in ours.items() if value is not None} | summary["compressors_bpb"]


def parts_of(run: RunFiles) -> list[dict[str, Any]]:
    """Bars of the bytes by part, largest first, then what the budget keeps for code and what is left of it."""
    code = run.recipe.get("pack", {}).get("code_bytes", 0)
    rest = {"kept for code": code} if code else {}
    rest["left of the budget"] = run.summary["budget_bytes"] - code - run.summary["artifact_bytes"]
    parts = dict(sorted(run.summary["bytes_by_part"].items(), key=lambda item: -item[1]))
    return bars(parts | rest, grey=rest)


def bars(values: Mapping[str, float], digits: int = 0, grey: Collection[str] = ()) -> list[dict[str, Any]]:
    """Rows for a bar list: name, printed value, share of the largest, and whether it has the run's colour."""
    largest = max(values.values(), default=1) or 1
    return [
        {"name": name, "value": f"{value:,.{digits}f}", "share": value / largest, "ours": name not in grey}
        for name, value in values.items()
    ]
