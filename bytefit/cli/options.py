"""Options that several verbs share."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from bytefit.artifact.container import MAGIC
from bytefit.cli.verbs import VERBS
from bytefit.config import apply_settings
from bytefit.data.dataset import Dataset
from bytefit.errors import UserError
from bytefit.files import is_stream, read_bytes, read_json
from bytefit.recipes import AS_SUBMITTED, SYSTEMS, find_recipe
from bytefit.recipes.recipe import Recipe
from bytefit.run.beside import data_of, dataset_for
from bytefit.run.folder import RunFolder
from bytefit.submit.bundle import with_room_for_code
from bytefit.train.machine import keep_freed_memory

Verbs = Any  # argparse's sub-parsers object, whose class is private


def add_verb(verbs: Verbs, name: str, examples: str, summary: str | None = None) -> argparse.ArgumentParser:
    """A verb with ``--json`` and examples under its help; ``summary`` where it is not one of ``VERBS``."""
    summary = summary or VERBS[name].summary
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return verb


def add_recipe_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "recipe",
        help=f"{', '.join(SYSTEMS)}; or pocket; NAME{AS_SUBMITTED} is a contest system as it really ran; or a .json file, as every run has",
    )
    verb.add_argument("--size", help="full, lab or tiny (default: lab)")
    verb.add_argument("--bytes", type=int, metavar="N", help="most bytes of the artifact, and of the code where that counts")
    verb.add_argument("--count-code", action="store_true", help="leave room in --bytes for the code of a submission (docs/submission.md)")
    verb.add_argument("--seconds", type=float, metavar="S", help="training seconds")
    verb.add_argument("--steps", type=int, metavar="N", help="training steps instead of seconds (comparable across machines)")
    verb.add_argument("--seed", type=int, metavar="N", help="seed of weights and batches")
    verb.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="replace any field of the recipe, e.g. model.dim=96")


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe that is named, or lies in the file, with the options' replacements. Raises UserError."""
    recipe = find_recipe(options.recipe, options.size)
    if options.seconds is not None and options.steps is not None:
        raise UserError("give --seconds or --steps, not both")
    settings: list[tuple[str, str]] = []
    if options.seconds is not None or options.steps is not None:
        settings += [("train.seconds", json.dumps(options.seconds)), ("train.steps", json.dumps(options.steps))]
    if options.seed is not None:
        settings.append(("seed", str(options.seed)))
    if options.bytes is not None:
        settings.append(("pack.budget_bytes", str(options.bytes)))
    for assignment in options.set:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: write PATH=VALUE, for example --set model.dim=96")
        if path in ("name", "size"):
            raise UserError(f"--set {assignment}: {'name the recipe itself' if path == 'name' else f'write --size {text}'}")
        if path.split(".")[0] == "tokenizer" and getattr(options, "data", None) is not None:
            raise UserError(f"--set {assignment}: the dataset has its tokenizer; make another dataset with: bytefit data build")
        settings.append((path, text))
    recipe = apply_settings(recipe, settings)
    return with_room_for_code(recipe) if options.count_code else recipe


def add_run_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--data", type=Path, metavar="DIR", help="dataset folder (default: the embedded corpus)")
    verb.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/RECIPE-SIZE-sSEED)")
    verb.add_argument("--resume", action="store_true", help="go on with the run in --out, from its last checkpoint")


def open_finished(run_path: Path, data: Path | None) -> tuple[RunFolder, Recipe, Dataset]:
    """A run folder, its recipe, and its dataset (or the one that is named).

    Raises:
        UserError: no dataset is named, and where the run's own was lies another.
    """
    keep_freed_memory()
    folder = RunFolder(run_path)
    recipe = folder.read_recipe()
    dataset = dataset_for(recipe, data or data_of(folder))
    trained_on = read_json(folder.env).get("dataset_sha256") if folder.env.exists() else None
    if data is None and trained_on not in (None, dataset.sha256):
        raise UserError(
            f"{dataset.folder} is not what {run_path} was trained on: the dataset was built anew, or the embedded corpus from other "
            "libraries; say where the run's own lies with --data (bytefit run … --resume --data DIR writes it down for every verb)"
        )
    return folder, recipe, dataset


def out_of(options: argparse.Namespace, recipe: Recipe) -> Path:
    return options.out or Path("runs") / f"{recipe.name}-{recipe.size}-s{recipe.seed}"


def artifact_of(text: str) -> Path:
    """An artifact file; of a run's folder, the artifact in it."""
    path = Path(text)
    packed = RunFolder(path).artifact
    return packed if os.path.isfile(packed) else path  # False for a folder that may not be looked into; reading it says so


def add_artifact(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("artifact", type=artifact_of, help="artifact file, or the folder of the run that packed it")


def check_outputs(outs: list[Path], inputs: list[Path], *, option: str = "--out") -> None:
    """Raises UserError where an output would take the place of a folder, of an input, of a model, or of another output, or where nothing
    can be written: before minutes of work."""
    read = {path.resolve() for path in inputs}
    for path in (out for out in outs if not is_stream(out.absolute())):
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder; name a file")
        if path.resolve() in read:
            raise UserError(f"{option} {path} is a file that is read here and would be lost; name another one")
        if path.is_file() and read_bytes(path).startswith(MAGIC):
            raise UserError(f"{option} {path} holds a model, which would be lost; name another file")
        above = next(parent for parent in path.absolute().parents if os.path.exists(parent))
        if not above.is_dir():
            raise UserError(f"{option} {path}: {above} is not a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise UserError(f"{option} {path}: nothing can be written in {above}; name a file elsewhere")
    if len({path.resolve() for path in outs}) < len(outs):
        raise UserError(f"{option} names a file twice; each document needs one of its own")


def show_result(options: argparse.Namespace, value: Any, text: str, out: Path | None = None) -> None:
    """The JSON document where it was asked for, else the text: on stderr where the output went to a stream (``--out /dev/stdout``)."""
    piped = out is not None and is_stream(out.absolute())
    print(json.dumps(value, indent=2) if options.json else text, file=sys.stderr if piped else sys.stdout, flush=True)
