"""The closing scoreboard: what was made, in a form for eyes and for grep."""

from __future__ import annotations

import unicodedata
from typing import Any

BAR = 30


def scoreboard(summary: dict[str, Any]) -> str:
    """Several lines of text from a run's summary."""
    lines = ["", f"bytefit {summary['recipe']} ({summary['size']}, seed {summary['seed']})", ""]
    size, budget = summary["artifact_bytes"], summary["budget_bytes"]
    code = summary.get("code_bytes", 0)
    kept = f" and {code:,} for the code" if code else ""
    lines.append(f"bytes: {size:,}{kept} of {budget:,} ({(size + code) / budget:.2%}, {budget - size - code:,} left)")
    for part, count in sorted(summary["bytes_by_part"].items(), key=lambda item: -item[1]):
        lines.append(f"  {part:<13} {count:>10,}  {'#' * round(BAR * count / size)}")
    lines += ["", f"bits per byte of {summary['val_bytes']:,} bytes of validation text (lower is better)"]
    rows = {
        "bytefit, float weights": summary["val_bpb_float"],
        "bytefit, packed": summary["val_bpb_full"],
        "bytefit, packed, sliding": summary["val_bpb_sliding"],
        **({"bytefit, packed, learning": summary["val_bpb_adapted"]} if summary["val_bpb_adapted"] is not None else {}),
        **summary["compressors_bpb"],
    }
    longest = max(rows.values())
    for name, value in rows.items():
        lines.append(f"  {name:<26} {value:.4f}  {'#' * round(BAR * value / longest)}")
    if summary["proof_bytes_in"]:
        came_back = "restored byte for byte" if summary["proof_restored"] else "NOT RESTORED"
        lines += [
            "",
            f"proof: {summary['proof_bytes_in']:,} bytes of text -> {summary['proof_bytes_out']:,} bytes -> {came_back} "
            f"({summary['proof_agreement']:+.3%} against the score)",
        ]
    lines += ["", "it says:", *(f"  | {printable(line)}" for line in summary["sample"].split("\n")), ""]
    ledger = summary["ledger"]
    values = {
        "val_bpb": f"{summary['val_bpb']:.5f}",
        "artifact_bytes": size,
        "num_parameters": summary["num_parameters"],
        "steps": summary["steps"],
        "tokens_seen": summary["tokens_seen"],
        "train_seconds": summary["train_seconds"],
        "strict_seconds": ledger["strict"],
        "proof_restored": str(summary["proof_restored"]).lower(),
    }
    lines += [f"{key}: {value}" for key, value in values.items()]
    return "\n".join(lines)


def printable(text: str) -> str:
    """The same without what would ring a terminal's bell or move its cursor: a weak model says anything."""
    return "".join("�" if unicodedata.category(character) == "Cc" else character for character in text)
