"""The headline numbers: of one run as a few large figures, of several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bytefit.report.files import RunFiles, same_text

Summary = dict[str, Any]


def figures(summary: Summary) -> list[tuple[str, str]]:
    """The large figures of one run: what stands there, and what it means."""
    size, budget, code = summary["artifact_bytes"], summary["budget_bytes"], summary.get("code_bytes", 0)
    return [
        (f"{summary['val_bpb']:.4f}", f"bits per byte of {summary['val_bytes']:,} bytes of validation text"),
        (f"{size:,}", f"bytes{f', and {code:,} for the code' if code else ''}, of {budget:,} ({(size + code) / budget:.2%})"),
        (f"{summary['train_seconds']:,.0f} s", f"of training: {summary['steps']:,} steps, {summary['tokens_seen'] / 1e6:.1f} M tokens"),
        (f"{summary['num_parameters']:,}", f"parameters, {8 * size / summary['num_parameters']:.2f} bits of the file for each"),
    ]


def _bits(key: str) -> Callable[[Summary], str]:
    return lambda s: f"{s[key]:.5f}" if s.get(key) is not None else "–"


def _proof(summary: Summary) -> str:
    return {True: "restored", False: "NOT restored", None: "–"}[summary.get("proof_restored")]


SIDE_BY_SIDE: dict[str, Callable[[Summary], str]] = {
    "recipe": lambda s: f"{s['recipe']}, {s['size']}",
    "seed": lambda s: str(s["seed"]),
    "bits per byte": _bits("val_bpb"),
    "… float weights": _bits("val_bpb_float"),
    "… packed": _bits("val_bpb_full"),
    "… packed, sliding": _bits("val_bpb_sliding"),
    "… packed, learning": _bits("val_bpb_adapted"),
    "bytes": lambda s: f"{s['artifact_bytes']:,}",
    "budget": lambda s: f"{s['budget_bytes']:,}",
    "parameters": lambda s: f"{s['num_parameters']:,}",
    "steps": lambda s: f"{s['steps']:,}",
    "tokens seen": lambda s: f"{s['tokens_seen']:,}",
    "training seconds": lambda s: f"{s['train_seconds']:,.1f}",
    "strict seconds": lambda s: f"{s['ledger']['strict']:,.1f}",
    "bytes of text": lambda s: f"{s['val_bytes']:,}",
    "proof": _proof,
}


def side_by_side(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Rows of what and one value a run; rows in which no run has a value are left out."""
    rows = [(name, [value(run.summary) for run in runs]) for name, value in SIDE_BY_SIDE.items()]
    return [(name, values) for name, values in rows if set(values) != {"–"}]


def different_text(runs: Sequence[RunFiles]) -> bool:
    """Whether the runs were scored on different text, so that their bits per byte cannot be compared."""
    first = runs[0].summary
    return not all(same_text(first, run.summary) and run.summary["val_bytes"] == first["val_bytes"] for run in runs)
