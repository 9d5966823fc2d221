"""``audit``: every check of a run that a program can make."""

from __future__ import annotations

import argparse
from pathlib import Path

from bytefit.audit.checklist import as_text, audit
from bytefit.cli.options import Verbs, add_verb, show_result
from bytefit.errors import CheckFailed
from bytefit.files import write_json
from bytefit.report.page import write_report
from bytefit.run.beside import data_of, dataset_for
from bytefit.run.folder import RunFolder
from bytefit.train.machine import keep_freed_memory


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "audit",
        "  bytefit audit runs/a\n  bytefit audit runs/a --json\n\n"
        "each class is pass, fail or not applicable, with its evidence, in audit.json and report.html. Exit code 1 where one fails.",
    )  # fmt: skip
    verb.add_argument("run", type=Path, help="run folder")
    verb.add_argument("--data", type=Path, metavar="DIR", help="dataset folder (default: the run's own)")
    verb.set_defaults(do=do_audit)


def do_audit(options: argparse.Namespace) -> None:
    keep_freed_memory()
    folder = RunFolder(options.run)
    # Whatever lies there: class 20 says whether it is what the run was trained on.
    dataset = dataset_for(folder.read_recipe(), options.data or data_of(folder))
    findings = audit(folder, dataset)
    record = [finding.to_json() for finding in findings]
    if options.data is None:
        write_json(folder.audit, record)
        if folder.report.exists():
            write_report(folder.path, folder.report)
    show_result(options, record, as_text(findings))
    wrong = [str(finding.number) for finding in findings if finding.verdict == "fail"]
    if wrong:
        raise CheckFailed(f"the audit fails in {len(wrong)} of {len(findings)} classes ({', '.join(wrong)})")
