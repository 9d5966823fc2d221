"""Every verb of the command line: what it does, and the module that does it.

Only modules that are asked for are imported, for together they take seconds: the list of verbs is said without them.
"""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    module: str
    summary: str


VERBS = {
    "run": Verb("runs", "do everything: train, pack, score, prove, report"),
    "train": Verb("runs", "train only, leaving a checkpoint"),
    "pack": Verb("runs", "pack the trained weights of a run into N bytes"),
    "report": Verb("runs", "write report.html again from a run's files, with other runs beside it"),
    "score": Verb("score", "score a run, or any artifact on any dataset"),
    "prove": Verb("score", "compress validation text with the artifact, restore it, compare"),
    "audit": Verb("audit", "check a finished run against forty known ways of getting a score wrong"),
    "compare": Verb("compare", "compare runs: seeds, means, tests, equivalence, the contest's rule"),
    "submit": Verb("submit", "make a Parameter Golf record folder from runs of one recipe with different seeds"),
    "data": Verb("data", "make datasets"),
    "show": Verb("show", "show a recipe's parameters, arithmetic and settings before training"),
    "generate": Verb("use", "continue a text with an artifact"),
    "compress": Verb("use", "compress files with an artifact"),
    "decompress": Verb("use", "restore what compress wrote"),
    "page": Verb("page", "write one HTML file that holds an artifact and runs it in a browser"),
    "unpack": Verb("share", "write an artifact as safetensors, config, tokenizer and model card"),
    "metrics": Verb("share", "send a run's metrics to TensorBoard or Trackio (extras tensorboard, trackio)"),
}
