"""The runs of a record, and the conditions under which they are one: a recipe, a dataset, seeds that differ, a cap, an audit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytefit.audit.checklist import audit
from bytefit.audit.evidence import Evidence
from bytefit.audit.findings import Finding
from bytefit.config import first_difference
from bytefit.errors import CheckFailed, UserError
from bytefit.quant.calibrate import OwnText
from bytefit.recipes.recipe import Recipe
from bytefit.run.beside import data_of, dataset_for
from bytefit.run.folder import RunFolder
from bytefit.submit.bundle import script_for, settings_of


@dataclass(frozen=True)
class SeedRun:
    """One run of a record.

    Attributes:
        findings: of its audit, all classes in order; none of them failed.
    """

    evidence: Evidence
    findings: list[Finding]

    @property
    def recipe(self) -> Recipe:
        return self.evidence.recipe

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def artifact_bytes(self) -> int:
        return self.evidence.folder.artifact.stat().st_size

    @property
    def score(self) -> dict[str, Any]:
        """The artifact's under the headline protocol, as in ``score.json``."""
        return headline(self.evidence)

    @property
    def val_loss(self) -> float:
        """Nats a target."""
        return float(self.score["nats"] / self.score["targets"])

    @property
    def val_bpb(self) -> float:
        """Bits a byte."""
        return float(self.score["nats"] / math.log(2) / self.score["bytes"])


@dataclass(frozen=True)
class Entry:
    """Runs that belong together, in order of their seeds, and the script that makes them again."""

    runs: list[SeedRun]
    script: bytes

    @property
    def recipe(self) -> Recipe:
        """Of the first seed."""
        return self.runs[0].recipe

    @property
    def cap(self) -> int:
        return self.recipe.pack.budget_bytes

    @property
    def bytes_total(self) -> int:
        """Of the largest seed, the code included."""
        return len(self.script) + max(run.artifact_bytes for run in self.runs)


def open_entry(paths: Sequence[Path]) -> Entry:
    """Gather runs into an entry, and audit each of them.

    Raises:
        UserError: a run is not finished, or they are not one recipe on one dataset with different seeds.
        CheckFailed: code and artifact are over the cap, or an audit fails.
    """
    found = sorted((_evidence(path) for path in paths), key=lambda run: run.recipe.seed)
    _check_one_recipe(found)
    script = script_for(found[0].recipe, headline(found[0])["dtype"])
    _check_cap(found, len(script))
    return Entry([SeedRun(run, _audited(run)) for run in found], script)


def headline(run: Evidence) -> dict[str, Any]:
    score: dict[str, Any] = run.scores[run.recipe.score.headline]
    return score


def _evidence(path: Path) -> Evidence:
    folder = RunFolder(path)
    recipe = folder.read_recipe()
    for needed in (folder.artifact, folder.score, folder.summary):
        if not needed.exists():
            raise UserError(f"{path} has no {needed.name} yet; finish it with: bytefit run … --out {path} --resume")
    return Evidence(folder, recipe, dataset_for(recipe, data_of(folder)))


def _check_one_recipe(runs: list[Evidence]) -> None:
    first = runs[0]
    if first.recipe.calibrate is not None and isinstance(first.recipe.calibrate.source, OwnText):
        raise UserError(f"{first.folder.path} calibrates on {first.recipe.calibrate.source.path}, which is no part of a record")
    for other in runs[1:]:
        there = f"{other.folder.path} beside {first.folder.path}"
        difference = first_difference(settings_of(other.recipe), settings_of(first.recipe))
        if difference:
            raise UserError(f"a record is one recipe with several seeds; {there}: {difference}")
        if other.dataset.sha256 != first.dataset.sha256:
            raise UserError(f"a record is on one dataset; {there}: {other.dataset.folder} is not {first.dataset.folder}")
        if headline(other)["dtype"] != headline(first)["dtype"]:
            dtypes = f"{headline(other)['dtype']}, not {headline(first)['dtype']}"
            raise UserError(f"a record's scores are made in one dtype; {there}: {dtypes}; score again with train.dtype set")
    seeds = [run.recipe.seed for run in runs]
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise UserError(f"a record's seeds differ; seed {seed} is there {seeds.count(seed)} times")


def _check_cap(runs: list[Evidence], code_bytes: int) -> None:
    cap = runs[0].recipe.pack.budget_bytes
    sizes = {run.recipe.seed: run.folder.artifact.stat().st_size for run in runs}
    over = {seed: code_bytes + size - cap for seed, size in sizes.items() if code_bytes + size > cap}
    if not over:
        return
    words = ", ".join(
        f"seed {seed} is {excess:,} bytes over ({code_bytes:,} of code + {sizes[seed]:,} of artifact)" for seed, excess in over.items()
    )
    mend = (
        f"an artifact may take {cap - code_bytes:,}: give the run's own command again with --resume --count-code"
        if cap > code_bytes
        else "the code alone takes more than that: choose a larger --bytes"
    )
    raise CheckFailed(f"the cap is {cap:,} bytes and code counts: {words}; {mend}")


def _audited(run: Evidence) -> list[Finding]:
    findings = audit(run.folder, run.dataset)
    wrong = [f"{finding.number}: {finding.title}" for finding in findings if finding.verdict == "fail"]
    if wrong:
        raise CheckFailed(f"the audit of {run.folder.path} fails ({'; '.join(wrong)}); see bytefit audit {run.folder.path}")
    return findings
