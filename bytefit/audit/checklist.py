"""The whole audit of a run."""

from __future__ import annotations

from bytefit.audit.counting import check_counting
from bytefit.audit.evidence import Evidence
from bytefit.audit.findings import CLASSES, Finding
from bytefit.audit.limits import check_limits
from bytefit.audit.order import check_order
from bytefit.audit.proof import check_proof
from bytefit.audit.provenance import check_provenance
from bytefit.data.dataset import Dataset
from bytefit.errors import UserError
from bytefit.run.folder import RunFolder
from bytefit.run.steps import check_fits


def audit(folder: RunFolder, dataset: Dataset) -> list[Finding]:
    """One finding for each class, in order.

    Raises:
        UserError: the run is not finished, or the dataset is not its own.
    """
    recipe = folder.read_recipe()
    for needed, verb in ((folder.artifact, "pack"), (folder.score, "score"), (folder.summary, "report")):
        if not needed.exists():
            raise UserError(f"{folder.path} has no {needed.name} yet; make it with: bytefit {verb} {folder.path}")
    run = Evidence(folder, recipe, dataset)
    check_fits(run.artifact, dataset)
    findings = [*check_order(run), *check_proof(run), *check_counting(run), *check_limits(run), *check_provenance(run)]
    findings.sort(key=lambda finding: finding.number)
    assert [finding.number for finding in findings] == list(CLASSES)
    return findings


def as_text(findings: list[Finding]) -> str:
    """A line a class, and what it comes to."""
    marks = {"pass": "pass", "fail": "FAIL", "not applicable": "n/a "}
    lines = [f"{finding.number:>2}  {marks[finding.verdict]}  {finding.title}: {finding.evidence}" for finding in findings]
    counts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in marks}
    return "\n".join([*lines, "", ", ".join(f"{count} {verdict}" for verdict, count in counts.items())])
