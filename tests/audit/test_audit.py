"""The audit of a finished run: an honest one passes, and what the command says of others."""

from __future__ import annotations

import json
import shutil

import pytest

from bytefit.audit.checklist import as_text, audit
from bytefit.audit.findings import CLASSES
from bytefit.cli import main
from bytefit.errors import UserError
from bytefit.run.folder import RunFolder
from tests.audit.planting import edit, verdicts


def test_an_honest_run_passes(finished, dataset, capsys) -> None:
    findings = audit(finished, dataset)
    assert [finding.number for finding in findings] == list(range(1, 41))
    assert not [finding for finding in findings if finding.verdict == "fail"]
    assert sum(finding.verdict == "pass" for finding in findings) >= 30
    assert all(finding.evidence for finding in findings)
    assert "0 fail" in as_text(findings)
    capsys.readouterr()
    assert main(["audit", str(finished.path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["title"] for row in record] == list(CLASSES.values())
    assert json.loads(finished.audit.read_text()) == record


def test_a_run_without_adaptation_passes_too(tiny_run, dataset) -> None:
    found = verdicts(audit(tiny_run, dataset))
    assert "fail" not in found.values()
    assert found[3] == found[10] == "not applicable"


def test_the_command_says_which_classes_fail(finished, dataset, tmp_path, capsys) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    edit(RunFolder(copy).score, lambda s: s.update(artifact_sha256="0" * 64))
    assert main(["audit", str(copy)]) == 1
    out, err = capsys.readouterr()
    assert "FAIL  other bytes counted" in out
    assert ">1 fail</b>" in RunFolder(copy).report.read_text()  # the report shows the audit that was just made
    assert err.strip().splitlines()[-1] == "bytefit: the audit fails in 1 of 40 classes (30)"


def test_a_run_that_is_not_finished(finished, dataset, tmp_path, capsys) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    RunFolder(copy).score.unlink()
    with pytest.raises(UserError, match=r"has no score.json yet; make it with: bytefit score"):
        audit(RunFolder(copy), dataset)
    assert main(["audit", str(tmp_path / "nowhere")]) == 2
