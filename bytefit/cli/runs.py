"""``run`` and its single steps: ``train``, ``pack``, ``score``, ``prove``, ``report``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bytefit.artifact.load import load_artifact
from bytefit.cli.options import Verbs, add_recipe_options, add_run_options, add_verb, out_of, recipe_of, show_result
from bytefit.config import apply_settings, to_json
from bytefit.data.dataset import Dataset, open_dataset
from bytefit.dtypes import resolve_dtype
from bytefit.errors import CheckFailed, UserError
from bytefit.files import read_json, write_json
from bytefit.ledger import Ledger
from bytefit.ranks import join_ranks
from bytefit.recipes.recipe import Recipe
from bytefit.report.page import write_report
from bytefit.report.scoreboard import scoreboard
from bytefit.run.folder import RunFolder, data_of
from bytefit.run.pipeline import prepare, run
from bytefit.run.steps import check_fits, dataset_for, pack_step, prove_step, score_step, tell_inactive, train_step, val_tokens
from bytefit.score.compressed import default_protocol
from bytefit.score.prove import Proof, cut_documents, prove
from bytefit.score.scorer import score
from bytefit.score.windows import Full, Sliding
from bytefit.train.machine import keep_freed_memory

PROOF_BYTES = 65_536


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "run", "do everything: train, pack, score, prove, report",
        "  bytefit run pocket\n  bytefit run pocket --data mydata --bytes 250000 --seconds 60\n"
        "  bytefit run pocket --set train.optimizer.matrices.lr=0.01 --out runs/try --resume\n"
        "  torchrun --nproc-per-node 2 -m bytefit run pocket --data mydata",
    )  # fmt: skip
    add_recipe_options(verb)
    add_run_options(verb)
    verb.set_defaults(do=do_run)
    verb = add_verb(verbs, "train", "train only, leaving a checkpoint", "  bytefit train pocket --data mydata --out runs/a")
    add_recipe_options(verb)
    add_run_options(verb)
    verb.set_defaults(do=do_train)
    verb = add_verb(
        verbs, "pack", "pack the trained weights of a run into N bytes",
        "  bytefit pack runs/a\n  bytefit pack runs/a --bytes 500000\n  bytefit pack runs/a --set pack.quant.gain_step=null",
    )  # fmt: skip
    verb.add_argument("run", type=Path, help="run folder")
    verb.add_argument("--bytes", type=int, metavar="N", help="another budget than the recipe's")
    verb.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="replace a field of calibrate or pack")
    verb.set_defaults(do=do_pack)
    verb = add_verb(
        verbs, "score", "score a run, or any artifact on any dataset",
        "  bytefit score runs/a\n  bytefit score model.bytefit --data mydata --protocol sliding --stride 64 --bytes 200000",
    )  # fmt: skip
    _add_target(verb)
    verb.add_argument("--protocol", choices=("full", "sliding"), help="for an artifact (default: full)")
    verb.add_argument("--window", type=int, metavar="T", help="tokens a window (default: the artifact's own)")
    verb.add_argument("--stride", type=int, metavar="T", help="targets a sliding window (default: the artifact's own)")
    verb.set_defaults(do=do_score)
    verb = add_verb(
        verbs, "prove", "compress validation text with the artifact, restore it, compare",
        "  bytefit prove runs/a\n  bytefit prove model.bytefit --data mydata --bytes 20000",
    )  # fmt: skip
    _add_target(verb)
    verb.set_defaults(do=do_prove)
    verb = add_verb(verbs, "report", "write report.html again from a run's files", "  bytefit report runs/a")
    verb.add_argument("run", type=Path, help="run folder")
    verb.set_defaults(do=do_report)


def _add_target(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("target", type=Path, help="run folder or artifact file")
    verb.add_argument("--data", type=Path, metavar="DIR", help="dataset folder (needed for an artifact)")
    verb.add_argument("--bytes", type=int, metavar="N", help="only the first N bytes of validation text")


def do_run(options: argparse.Namespace) -> None:
    recipe = recipe_of(options)
    out = out_of(options, recipe)
    summary = run(recipe, data=options.data, out=out, resume=options.resume, ranks=join_ranks())
    if summary is not None:
        show_result(options, summary, f"{scoreboard(summary)}\nreport: {out / 'report.html'}")


def do_train(options: argparse.Namespace) -> None:
    recipe, ranks = recipe_of(options), join_ranks()
    out = out_of(options, recipe)
    folder, recipe, dataset = prepare(recipe, data=options.data, out=out, resume=options.resume, ranks=ranks)
    train_step(folder, recipe, dataset, Ledger(), ranks, resume=options.resume)
    if ranks.is_first:
        state = read_json(folder.checkpoint / "state.json")
        show_result(options, state, f"trained {state['step']} steps; checkpoint in {folder.checkpoint}; next: bytefit pack {out}")


def _open(run_path: Path, data: Path | None) -> tuple[RunFolder, Recipe, Dataset]:
    keep_freed_memory()
    folder = RunFolder(run_path)
    recipe = folder.read_recipe()
    return folder, recipe, dataset_for(recipe, data or data_of(folder))


def do_pack(options: argparse.Namespace) -> None:
    folder, recipe, dataset = _open(options.run, None)
    if not folder.training_finished():
        raise UserError(f"the training in {options.run} is not finished; go on with the command that started it, and --resume")
    settings = [assignment.partition("=")[::2] for assignment in options.set]
    for path, _ in settings:
        if path.split(".")[0] not in ("calibrate", "pack"):
            raise UserError(f"--set {path}: the model is trained; only fields of calibrate and pack can still change")
    if options.bytes is not None:
        settings.append(("pack.budget_bytes", str(options.bytes)))
    recipe = apply_settings(recipe, settings)
    tell_inactive(recipe)
    packed = pack_step(folder, recipe, dataset, Ledger())
    write_json(folder.recipe, to_json(recipe))
    size, budget = len(packed.data), recipe.pack.budget_bytes
    show_result(options, read_json(folder.pack), f"{folder.artifact}: {size:,} of {budget:,} bytes ({budget - size:,} left)")


def do_score(options: argparse.Namespace) -> None:
    if options.target.is_dir():
        _score_run(options)
        return
    artifact, dataset = load_artifact(options.target), _needed_data(options)
    check_fits(artifact, dataset)
    keep_freed_memory()
    own = default_protocol(artifact)
    window = own.window if options.window is None else options.window
    stride = min(own.stride, window) if options.stride is None else options.stride
    if options.protocol == "full" and options.stride is not None:
        raise UserError(f"--stride {options.stride} belongs to --protocol sliding")
    try:
        protocol = Full(window=window) if options.protocol != "sliding" else Sliding(window=window, stride=stride)
    except ValueError as error:
        raise UserError(str(error)) from None
    result = score(artifact.model, val_tokens(dataset, options.bytes), dataset.byte_table, protocol, resolve_dtype("auto", "cpu"))
    text = f"{result.bits_per_byte:.5f} bits per byte ({result.bytes:,} bytes, {result.targets:,} tokens, {result.seconds:.1f} s)"
    show_result(options, result.to_json(), text)


def _score_run(options: argparse.Namespace) -> None:
    given = [name for name in ("protocol", "window", "stride") if getattr(options, name) is not None]
    if given:
        raise UserError(f"--{given[0]} is for an artifact; a run is scored by its recipe (or name {options.target / 'model.bytefit'})")
    folder, recipe, dataset = _open(options.target, options.data)
    if options.bytes is not None:
        recipe = apply_settings(recipe, [("score.max_bytes", str(options.bytes))])
    record = score_step(folder, recipe, dataset, Ledger())
    if options.bytes is None and options.data is None:  # else it is not the run's own score
        write_json(folder.score, record)
    lines = [f"{name}: {record[name]['bits_per_byte']:.5f} bits per byte" for name in ("float_full", "full", "sliding")]
    show_result(options, record, "\n".join(lines))


def _needed_data(options: argparse.Namespace) -> Dataset:
    if options.data is None:
        raise UserError(f"{options.target} is an artifact; say which text: --data DIR")
    return open_dataset(options.data)


def do_prove(options: argparse.Namespace) -> None:
    if options.target.is_dir():
        folder, recipe, dataset = _open(options.target, options.data)
        if options.bytes is None and options.data is None and recipe.score.proof_bytes:
            proof = prove_step(folder, recipe, dataset, Ledger())
            write_json(folder.proof, proof.to_json())
        else:  # not the run's own proof: leave that alone
            proof = _prove_aside(folder.artifact, dataset, options.bytes)
    else:
        proof = _prove_aside(options.target, _needed_data(options), options.bytes)
    came_back = "restored" if proof.restored else "NOT restored"
    text = f"{proof.bytes_in:,} bytes -> {proof.bytes_out:,} bytes -> {came_back}; {proof.agreement:+.3%} against the score"
    show_result(options, proof.to_json(), text)
    if not proof.holds:
        raise CheckFailed("the proof does not hold")


def _prove_aside(artifact: Path, dataset: Dataset, num_bytes: int | None) -> Proof:
    """A proof that leaves no file behind."""
    wanted = PROOF_BYTES if num_bytes is None else num_bytes
    documents = cut_documents(dataset.val_documents(wanted), wanted)
    with tempfile.TemporaryDirectory() as scratch:
        return prove(artifact, documents, Path(scratch) / "proof.bytefitz", resolve_dtype("auto", "cpu"))


def do_report(options: argparse.Namespace) -> None:
    folder = RunFolder(options.run)
    folder.read_recipe()
    if not folder.summary.exists():
        raise UserError(f"{options.run} has no summary.json yet; finish it with: bytefit run … --out {options.run} --resume")
    write_report(folder.path, folder.report)
    show_result(options, {"report": str(folder.report)}, f"report: {folder.report}")
