"""``submit``: runs to a Parameter Golf record folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from bytefit.cli.options import Verbs, add_verb, show_result
from bytefit.submit.record import Author, make_record
from bytefit.train.machine import keep_freed_memory


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "submit",
        "  bytefit run pr578 --size full --data DIR --seed 1 --out runs/s1 --count-code\n"
        '  bytefit submit runs/s1 runs/s2 runs/s3 --out record --author "A. Name" --github aname --title "11 layers"\n\n'
        "the folder's train_gpt.py trains and evaluates alone. Code counts: a run that was packed with --count-code left room for it.\n"
        "Exit code 1 where code and artifact are over the cap, or the audit of a run fails.",
    )  # fmt: skip
    verb.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="record folder to make")
    verb.add_argument("--author", required=True, metavar="NAME")
    verb.add_argument("--github", required=True, metavar="NAME", help="GitHub account")
    verb.add_argument("--title", required=True, metavar="TEXT", help="what the record is called")
    verb.set_defaults(do=do_submit)


def do_submit(options: argparse.Namespace) -> None:
    keep_freed_memory()
    submission = make_record(options.runs, Author(options.author, options.github, options.title), options.out)
    spread = submission["val_bpb_std"]
    score = f"{submission['val_bpb']:.5f} bits per byte" + (f" (standard deviation {spread:.5f})" if spread is not None else "")
    code, model, total = (submission[f"bytes_{part}"] for part in ("code", "model", "total"))
    text = f"{options.out}: {score}, {code:,} bytes of code + {model:,} of model = {total:,} of {submission['bytes_cap']:,}"
    show_result(options, submission, text)
