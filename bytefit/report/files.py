"""What a report reads of a run folder. Only the summary must be there: older folders lack files that newer ones have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytefit.errors import UserError
from bytefit.files import read_json
from bytefit.train.metrics import read_metrics


@dataclass(frozen=True)
class RunFiles:
    """The files of a finished run; empty where there is none.

    Attributes:
        label: what the run is called beside others.
        details: empty too where it is of another artifact than the score.
        audit: one finding for each class, as ``audit.json`` has them.
    """

    path: Path
    label: str
    summary: dict[str, Any]
    recipe: dict[str, Any]
    env: dict[str, Any]
    metrics: list[dict[str, Any]]
    scores: dict[str, Any]
    proof: dict[str, Any]
    details: dict[str, Any]
    audit: list[dict[str, Any]]


def read_run(path: Path, label: str | None = None) -> RunFiles:
    """Raises UserError where this is no run folder, or the run is not finished."""
    if not (path / "recipe.json").exists():
        raise UserError(f"{path} is not a run folder (no recipe.json); make one with: bytefit run RECIPE --out {path}")
    if not (path / "summary.json").exists():
        raise UserError(
            f"{path} has no summary.json yet; finish it with: bytefit run … --out {path} --resume (or bytefit pack, score, report)"
        )

    def held(name: str, without: Any) -> Any:
        return read_json(path / name) if (path / name).exists() else without

    scores, details = held("score.json", {}), held("details.json", {})
    if details.get("artifact_sha256") != scores.get("artifact_sha256"):
        details = {}
    return RunFiles(
        path=path,
        label=label or path.resolve().name,
        summary=held("summary.json", {}),
        recipe=held("recipe.json", {}),
        env=held("env.json", {}),
        metrics=read_metrics(path / "metrics.jsonl"),
        scores=scores,
        proof=held("proof.json", {}),
        details=details,
        audit=held("audit.json", []),
    )


def read_runs(paths: list[Path]) -> list[RunFiles]:
    """Several runs, each under the name of its folder, or under its path where two folders have the same name."""
    names = [path.resolve().name for path in paths]
    return [read_run(path, name if names.count(name) == 1 else str(path)) for path, name in zip(paths, names, strict=True)]


def same_text(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two scores (or summaries) are of the same documents: of one dataset, or of one text under another tokenizer. What was scored
    before texts were named has its dataset's hash alone."""
    known = first.get("text_sha256"), second.get("text_sha256")
    return first["dataset_sha256"] == second["dataset_sha256"] or (None not in known and known[0] == known[1])
