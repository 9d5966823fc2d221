"""``run`` and its steps up to the artifact, ``train`` and ``pack``; and ``report``."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

from bytefit.cli.options import (
    Verbs,
    add_recipe_options,
    add_run_options,
    add_verb,
    check_outputs,
    open_finished,
    out_of,
    recipe_of,
    show_result,
)
from bytefit.config import apply_settings, to_json
from bytefit.data.dataset import Dataset
from bytefit.errors import CheckFailed, UserError
from bytefit.files import read_json, write_json
from bytefit.ledger import Ledger
from bytefit.progress import say
from bytefit.ranks import join_ranks
from bytefit.recipes.recipe import Recipe
from bytefit.report.files import read_runs
from bytefit.report.page import write_report
from bytefit.report.scoreboard import scoreboard
from bytefit.run.details import details_step
from bytefit.run.folder import RunFolder, claimed
from bytefit.run.pipeline import PACKING, after_scoring, counted, ledger_of, prepare, run
from bytefit.run.steps import fresh, pack_step, train_step
from bytefit.submit.bundle import with_room_for_code


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "run",
        "  bytefit run pocket\n  bytefit run pocket --data mydata --bytes 250000 --seconds 60\n"
        "  bytefit run pocket --set train.optimizer.matrices.lr=0.01 --out runs/try --resume\n"
        "  torchrun --nproc-per-node 2 -m bytefit run pocket --data mydata",
    )  # fmt: skip
    add_recipe_options(verb)
    add_run_options(verb)
    verb.set_defaults(do=do_run)
    verb = add_verb(verbs, "train", "  bytefit train pocket --data mydata --out runs/a")
    add_recipe_options(verb)
    add_run_options(verb)
    verb.set_defaults(do=do_train)
    verb = add_verb(
        verbs, "pack",
        "  bytefit pack runs/a\n  bytefit pack runs/a --bytes 500000\n  bytefit pack runs/a --set pack.quant.gain_step=null",
    )  # fmt: skip
    verb.add_argument("run", type=Path, help="run folder")
    verb.add_argument("--bytes", type=int, metavar="N", help="another budget than the recipe's")
    verb.add_argument("--count-code", action="store_true", help="leave room in it for the code of a submission (docs/submission.md)")
    verb.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="replace a field of calibrate or pack")
    verb.set_defaults(do=do_pack)
    verb = add_verb(
        verbs, "report",
        "  bytefit report runs/a\n  bytefit report runs/a runs/b runs/c --out three.html",
    )  # fmt: skip
    verb.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder; of further ones the curves and headlines are shown")
    verb.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the first run's folder")
    verb.set_defaults(do=do_report)


def do_run(options: argparse.Namespace) -> None:
    recipe = recipe_of(options)
    out = out_of(options, recipe)
    summary = run(recipe, data=options.data, out=out, resume=options.resume, ranks=join_ranks())
    if summary is not None:
        show_result(options, summary, f"{scoreboard(summary)}\nreport: {out / 'report.html'}")
        proof = RunFolder(out).proof
        if recipe.score.proof_bytes and not read_json(proof)["holds"]:
            raise CheckFailed(f"the proof did not hold; see {proof}")


def do_train(options: argparse.Namespace) -> None:
    recipe, ranks = recipe_of(options), join_ranks()
    out = out_of(options, recipe)
    with claimed(out) if ranks.is_first else nullcontext():
        folder, recipe, dataset = prepare(recipe, data=options.data, out=out, resume=options.resume, ranks=ranks)
        train_step(folder, recipe, dataset, Ledger(), ranks, resume=options.resume)
    if ranks.is_first:
        state = read_json(folder.checkpoint / "state.json")
        show_result(options, state, f"trained {state['step']} steps; checkpoint in {folder.checkpoint}; next: bytefit pack {out}")


def do_pack(options: argparse.Namespace) -> None:
    folder, recipe, dataset = open_finished(options.run, None)
    if not folder.training_finished():
        raise UserError(f"the training in {options.run} is not finished; go on with the command that started it, and --resume")
    with claimed(options.run):
        _pack(options, folder, recipe, dataset)


def _pack(options: argparse.Namespace, folder: RunFolder, recipe: Recipe, dataset: Dataset) -> None:
    settings = [assignment.partition("=")[::2] for assignment in options.set]
    for path, _ in settings:
        if path.split(".")[0] not in ("calibrate", "pack"):
            raise UserError(f"--set {path}: the model is trained; only fields of calibrate and pack can still change")
    if options.bytes is not None:
        settings.append(("pack.budget_bytes", str(options.bytes)))
    recipe = apply_settings(recipe, settings)
    if options.count_code:
        recipe = with_room_for_code(recipe)
    ledger = ledger_of(folder)
    with counted(folder, ledger, *PACKING):
        packed = pack_step(folder, recipe, dataset, ledger, join_ranks().device)
    write_json(folder.recipe, to_json(recipe))
    for of_another in (folder.score, folder.proof, folder.proof_text, folder.details, folder.summary, folder.audit, folder.report):
        of_another.unlink(missing_ok=True)
    size, budget = len(packed.data), recipe.pack.artifact_bytes
    show_result(options, read_json(folder.pack), f"{folder.artifact}: {size:,} of {budget:,} bytes ({budget - size:,} left)")


def do_report(options: argparse.Namespace) -> None:
    first, *others = options.runs
    folder = RunFolder(first)
    _finish_steps(folder)
    read_runs(options.runs)  # a folder that is no run is said before anything is made
    if not fresh(folder.details, [folder.pack, folder.score]):
        _look_closely(folder)
    out = options.out or folder.report
    check_outputs([out], [])
    write_report(first, out, others)
    show_result(options, {"report": str(out)}, f"report: {out}", out)


def _finish_steps(folder: RunFolder) -> None:
    """What ``run`` leaves at its end, where the steps before it were made one by one."""
    if folder.summary.exists() or not (folder.training_finished() and folder.pack.exists() and folder.score.exists()):
        return
    _, recipe, dataset = open_finished(folder.path, None)
    with claimed(folder.path):
        after_scoring(folder, recipe, dataset, ledger_of(folder), join_ranks())


def _look_closely(folder: RunFolder) -> None:
    """Make ``details.json`` where the run's files still allow it: folders of older versions lack it."""
    try:
        _, recipe, dataset = open_finished(folder.path, None)
        details_step(folder, recipe, dataset, Ledger())
    except UserError as error:
        say(f"the report goes without matrices, passage and samples: {error}")
