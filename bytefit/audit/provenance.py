"""Classes 36 to 40: what is claimed, and what was there."""

from __future__ import annotations

from bytefit.audit.evidence import Evidence
from bytefit.audit.findings import Finding, judged, skipped

FILES = ("recipe", "env", "metrics", "artifact", "pack", "score", "summary", "report")


def check_provenance(run: Evidence) -> list[Finding]:
    missing = [getattr(run.folder, name).name for name in FILES if not getattr(run.folder, name).exists()]
    if run.recipe.score.proof_bytes and not run.folder.proof.exists():
        missing.append(run.folder.proof.name)
    several = "one run; bytefit compare looks at several"
    inactive = [title for title, active in activity(run).items() if not active]
    stated = ", ".join(activity(run)) or "no technique that could be inactive"
    matches = not run.summary or (run.summary["recipe"], run.summary["seed"]) == (run.recipe.name, run.recipe.seed)
    evidence = f"active: {stated}" if not inactive else f"stated and not active: {', '.join(inactive)}"
    return [
        skipped(36, f"seed {run.recipe.seed}; {several}"),
        skipped(37, several),
        skipped(38, several),
        judged(39, not inactive and matches, evidence if matches else "summary.json is of another recipe or seed"),
        judged(40, not missing, f"missing: {', '.join(missing)}" if missing else "every file of a run is there"),
    ]


def activity(run: Evidence) -> dict[str, bool]:
    """Techniques that the recipe states, and whether the run's own records show that they ran."""
    train, score = run.recipe.train, run.recipe.score
    position, average = run.state.get("position", {}), run.state.get("average") or {}
    found: dict[str, bool] = {}
    if train.fake_quant is not None:
        found["fake quantisation"] = train.fake_quant.always or position.get("rounded_from") is not None
    if train.crown_q is not None:
        found["CROWN-Q"] = any(record.get("crown_q", 0) > 0 for record in run.metrics)
    if train.replay is not None:
        found["replay"] = position.get("replayed", 0) > 0
    if train.average is not None:
        used = average.get("used")
        found["averaging"] = used is not None and (used != "last" or train.average.use == "held_out")
        if train.average.swa is not None:
            found["snapshots"] = run.state.get("snapshots", 0) > 0
    if run.recipe.calibrate is not None:
        found["calibration"] = run.folder.calibration.exists()
    if run.recipe.pack.quant.prune is not None:
        found["pruning"] = _share_of_zeros(run) >= 0.9 * run.recipe.pack.quant.prune.share
    if score.adapt is not None:
        found["adaptation while scoring"] = run.scores.get("adapt", {}).get("learned_steps", 0) > 0
    return found


def _share_of_zeros(run: Evidence) -> float:
    matrices = [p for p in run.artifact.model.parameters() if p.ndim == 2 and p.numel()]
    return float(sum(int((p == 0).sum()) for p in matrices)) / max(1, sum(p.numel() for p in matrices))
