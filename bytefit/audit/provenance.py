"""Classes 36 to 40: what is claimed, and what was there."""

from __future__ import annotations

import math
from collections.abc import Iterator

from bytefit.audit.evidence import Evidence
from bytefit.audit.findings import Finding, judged, skipped
from bytefit.files import read_bytes
from bytefit.run.pipeline import ledger_of, summarise
from bytefit.score.compressed import default_protocol

ROUNDING = 0.01  # seconds: what sums of rounded entries may be apart
FILES = ("recipe", "env", "metrics", "artifact", "pack", "score", "compressors", "details", "summary", "report")


def check_provenance(run: Evidence) -> list[Finding]:
    missing = _missing(run)
    several = "one run says nothing of other seeds"
    stated = activity(run)
    wrong = [f"{title} is stated and was not active" for title, active in stated.items() if not active] + disagreements(run)
    used = (run.state.get("average") or {}).get("used", "last")
    evidence = (
        f"active: {', '.join(stated) or 'nothing that could be inactive'}; packed weights: {used}; every figure follows from its files"
    )
    return [
        skipped(36, f"seed {run.recipe.seed}; {several}"),
        skipped(37, several),
        skipped(38, several),
        judged(39, not wrong, "; ".join(wrong) or evidence),
        judged(40, not missing, f"missing: {', '.join(missing)}" if missing else "every file of a run is there"),
    ]


def _missing(run: Evidence) -> list[str]:
    """Names of the files that a run leaves and that are not there."""
    wanted = [getattr(run.folder, name) for name in FILES] + [run.folder.checkpoint / "state.json"]
    if run.recipe.score.proof_bytes:
        wanted.append(run.folder.proof)
    return [path.relative_to(run.folder.path).as_posix() for path in wanted if not path.exists()]


def disagreements(run: Evidence) -> list[str]:
    """Figures that do not follow from what they are said to be made of, in words."""
    return [*_in_scores(run), *_in_summary(run)]


def _in_scores(run: Evidence) -> Iterator[str]:
    for name, score in run.scores.items():
        if not isinstance(score, dict):
            continue
        targets, nats, size = (sum(block[i] for block in score["blocks"]) for i in range(3))
        if (targets, size) != (score["targets"], score["bytes"]) or not math.isclose(nats, score["nats"], rel_tol=1e-9):
            yield f"the blocks of the score {name} do not sum to it"
        if not math.isclose(score["bits_per_byte"], score["nats"] / math.log(2) / score["bytes"], rel_tol=1e-9):
            yield f"bits_per_byte of the score {name} is not its nats over its bytes"
    for name, protocol in run.recipe.score.protocols.items():
        if run.protocol(name) != protocol:
            yield f"the score {name} is by another protocol than the recipe's"
    if default_protocol(run.artifact) != run.recipe.score.coded:
        yield "the artifact names another protocol than the recipe"


def _in_summary(run: Evidence) -> Iterator[str]:
    if _missing(run):
        return
    said, ledger = run.summary, ledger_of(run.folder)
    wanted = summarise(run.folder, run.recipe, run.dataset, ledger)
    wanted |= {"artifact_bytes": len(read_bytes(run.folder.artifact)), "budget_bytes": run.recipe.pack.budget_bytes}
    seconds = {"train_seconds": (said.get("train_seconds", 0.0), wanted.pop("train_seconds"))}
    spent = wanted.pop("ledger")
    if run.folder.ledger.exists():  # folders of older versions lack it
        seconds |= {entry: (run.seconds.get(entry, 0.0), spent.get(entry, 0.0)) for entry in sorted(spent.keys() | run.seconds.keys())}
    for entry, (stated, summed) in seconds.items():
        if abs(stated - summed) > ROUNDING:
            yield f"summary.json says {entry} {stated} s, its sources {summed}"
    del wanted["versions"], wanted["sample"]  # this machine's, and nobody's figure
    for key, value in wanted.items():
        if key in said and said[key] != value:  # summaries of older versions lack some
            yield f"summary.json says {key} {said[key]}, its sources {value}"


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
        found["pruning"] = run.pack.get("pruned", 0) > 0
    if score.adapt is not None:
        found["adaptation while scoring"] = run.scores.get("adapt", {}).get("learned_steps", 0) > 0
    return found
