"""Handing over what was made: ``unpack`` (an artifact), ``metrics`` (a run's log)."""

from __future__ import annotations

import argparse
from pathlib import Path

from bytefit.artifact.load import load_artifact
from bytefit.artifact.unpack import UNPACKED, unpack_artifact
from bytefit.cli.options import Verbs, add_artifact, add_verb, show_result
from bytefit.errors import UserError
from bytefit.run.folder import RunFolder
from bytefit.tools.dashboards import export_metrics

PROJECT = "bytefit"  # Trackio's, where none is named


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "unpack",
        "  bytefit unpack runs/demo/model.bytefit --out demo-unpacked\n\n"
        "in Python, bytefit.hub reads such a folder (from_pretrained) and puts it on the hub (push_to_hub); docs/sharing.md.",
    )  # fmt: skip
    add_artifact(verb)
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    verb.set_defaults(do=do_unpack)
    verb = add_verb(
        verbs, "metrics",
        "  bytefit metrics runs/demo --to tensorboard && tensorboard --logdir runs\n"
        "  bytefit metrics runs/a --to tensorboard --out logs --follow\n"
        "  bytefit metrics runs/demo --to trackio --project golf",
    )  # fmt: skip
    verb.add_argument("run", type=Path, help="run folder")
    verb.add_argument("--to", choices=("tensorboard", "trackio"), required=True)
    verb.add_argument("--out", type=Path, metavar="DIR", help="TensorBoard's log folder (default: RUN/tensorboard)")
    verb.add_argument("--project", metavar="NAME", help=f"Trackio's project (default: {PROJECT})")
    verb.add_argument("--follow", action="store_true", help="go on until the training is finished (Ctrl-C stops)")
    verb.set_defaults(do=do_metrics)


def do_unpack(options: argparse.Namespace) -> None:
    unpack_artifact(load_artifact(options.artifact), options.out)
    sizes = {name: (options.out / name).stat().st_size for name in UNPACKED}
    text = "\n".join(f"  {name:<18} {size:>13,} bytes" for name, size in sizes.items())
    show_result(options, {"out": str(options.out), "bytes": sizes}, f"{options.out}:\n{text}")


def do_metrics(options: argparse.Namespace) -> None:
    if options.out is not None and options.to == "trackio":
        raise UserError("--out is TensorBoard's; Trackio has a --project")
    if options.project is not None and options.to == "tensorboard":
        raise UserError("--project is Trackio's; TensorBoard has a folder: --out")
    project = options.project or PROJECT
    steps = export_metrics(RunFolder(options.run), options.to, place=options.out, project=project, follow=options.follow)
    record = {"run": str(options.run), "to": options.to, "steps": steps}
    show_result(options, record, f"{options.run}: {steps:,} steps sent to {options.to}")
