"""The record folder: everything written beside its final place, tried alone, and renamed at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bytefit.config import to_json
from bytefit.errors import CheckFailed, UserError
from bytefit.files import read_bytes, write_bytes, write_json
from bytefit.recipes.recipe import Recipe
from bytefit.submit.bundle import settings_of
from bytefit.submit.closure import closure
from bytefit.submit.entry import Entry, SeedRun, open_entry
from bytefit.submit.loader import ENTRY
from bytefit.submit.log import log_of
from bytefit.submit.packages import needed, requirements
from bytefit.submit.readme import readme_of, techniques

SCRIPT = "train_gpt.py"


@dataclass(frozen=True)
class Author:
    """Who submits.

    Attributes:
        title: what the record is called.
    """

    name: str
    github: str
    title: str


def make_record(paths: Sequence[Path], author: Author, out: Path) -> dict[str, Any]:
    """Write the folder of the runs in ``paths``; returns ``submission.json``.

    Raises:
        UserError: ``out`` exists or cannot be written, or the runs are no record (``entry.open_entry``).
        CheckFailed: too many bytes, an audit that fails, or a script that does not start alone.
    """
    out = out.absolute()
    if out.exists():
        raise UserError(f"{out} exists; choose another --out, or remove it")
    entry = open_entry(paths)
    packages = needed(closure(ENTRY).packages)
    submission = submission_of(entry, author, packages)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        write_bytes(partial / SCRIPT, entry.script)
        for run in entry.runs:
            write_bytes(partial / artifact_name(run), read_bytes(run.evidence.folder.artifact))
            write_bytes(partial / f"train_seed{run.seed}.log", log_of(run).encode())
        write_json(partial / "submission.json", submission)
        write_json(partial / "recipe.json", settings_of(entry.recipe))
        write_bytes(partial / "requirements.txt", requirements(packages).encode())
        write_bytes(partial / "README.md", readme_of(entry, submission, packages).encode())
        check_starts_alone(partial / SCRIPT)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return submission


def artifact_name(run: SeedRun) -> str:
    return f"model_seed{run.seed}.bytefit"


def check_starts_alone(script: Path) -> None:
    """Import everything that is in the script, in an empty folder; its importer takes nothing of bytefit from anywhere else.

    Raises:
        CheckFailed: with what Python said last.
    """
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run([sys.executable, "-I", str(script), "--help"], cwd=empty, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise CheckFailed(f"the script does not start alone; it says: {said}")


def submission_of(entry: Entry, author: Author, packages: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """``submission.json`` (docs/submission.md says what each key means)."""
    runs, recipe = entry.runs, entry.recipe
    bpb, floats = [run.val_bpb for run in runs], [run.evidence.scores["float_full"] for run in runs]
    summaries = [run.evidence.summary for run in runs]
    return {
        "author": author.name,
        "github_id": author.github,
        "name": author.title,
        "blurb": blurb_of(recipe),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "val_loss": fmean(run.val_loss for run in runs),
        "val_bpb": fmean(bpb),
        "val_bpb_std": stdev(bpb) if len(bpb) > 1 else None,
        "pre_quant_val_loss": fmean(score["nats"] / score["targets"] for score in floats),
        "pre_quant_val_bpb": fmean(score["bits_per_byte"] for score in floats),
        "step_stop": round(fmean(summary["steps"] for summary in summaries)),
        "wallclock_seconds": max(summary["train_seconds"] for summary in summaries),
        "eval_seconds": max(run.score["seconds"] for run in runs),
        "bytes_total": entry.bytes_total,
        "bytes_code": len(entry.script),
        "bytes_model": max(run.artifact_bytes for run in runs),
        "bytes_cap": entry.cap,
        "seeds": [run.seed for run in runs],
        "seed_results": {str(run.seed): seed_result(run, len(entry.script)) for run in runs},
        "recipe": recipe.name,
        "size": recipe.size,
        "num_parameters": summaries[0]["num_parameters"],
        "protocol": to_json(recipe.score.scored),
        "score_dtype": runs[0].score["dtype"],
        "dataset_sha256": runs[0].evidence.dataset.sha256,
        "tokenizer": summaries[0]["tokenizer"],
        "hardware": [[summary["hardware"], *summary["earlier_hardware"]] for summary in summaries],
        "packages": {name: version for name, (version, _) in packages.items()},
    }


def seed_result(run: SeedRun, code_bytes: int) -> dict[str, Any]:
    evidence = run.evidence
    return {
        "val_loss": run.val_loss,
        "val_bpb": run.val_bpb,
        "pre_quant_val_bpb": evidence.scores["float_full"]["bits_per_byte"],
        "artifact": artifact_name(run),
        "artifact_sha256": evidence.artifact.sha256,
        "bytes_model": run.artifact_bytes,
        "bytes_total": code_bytes + run.artifact_bytes,
        "step_stop": evidence.summary["steps"],
        "train_seconds": evidence.summary["train_seconds"],
        "eval_seconds": run.score["seconds"],
        "ledger": evidence.summary["ledger"],
        "proof": {key: evidence.proof.get(key) for key in ("bytes_in", "bytes_out", "restored", "agreement")} or None,
        "audit": {
            verdict: [finding.number for finding in run.findings if finding.verdict == verdict]
            for verdict in ("pass", "fail", "not applicable")
        },
    }


def blurb_of(recipe: Recipe) -> str:
    """One line: the model's size and the techniques that are on."""
    on = ", ".join(path.removeprefix("model.") for path in techniques(recipe))
    return f"{recipe.name} ({recipe.size}): {len(recipe.model.plan)} block passes of width {recipe.model.dim}" + (f"; {on}" if on else "")
