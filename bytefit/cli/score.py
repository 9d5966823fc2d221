"""``score`` and ``prove``: what a run or an artifact is worth, and that it is so."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from bytefit.artifact.load import load_artifact
from bytefit.cli.options import Verbs, add_verb, open_finished, show_result
from bytefit.cli.protocols import CODED, PROTOCOLS, protocol_of
from bytefit.config import apply_settings
from bytefit.data.dataset import Dataset, open_dataset
from bytefit.dtypes import resolve_dtype
from bytefit.errors import CheckFailed, UserError
from bytefit.files import write_json
from bytefit.ledger import Ledger
from bytefit.ranks import join_ranks
from bytefit.recipes.recipe import Recipe
from bytefit.run.beside import prove_step
from bytefit.run.folder import RunFolder, claimed
from bytefit.run.pipeline import SCORING, counted, finish, ledger_of
from bytefit.run.steps import agreed_dtype, check_fits, forget_progress, journal_of, score_step, val_tokens
from bytefit.score.adapt import CodedProtocol
from bytefit.score.harness import ChunkResult, Watch
from bytefit.score.prove import Proof, cut_documents, prove
from bytefit.score.scorer import score
from bytefit.score.windows import Full
from bytefit.train.machine import keep_freed_memory

PROOF_BYTES = 65_536


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "score",
        "  bytefit score runs/a\n"
        "  bytefit score model.bytefit --data mydata --protocol sliding --stride 64 --bytes 200000\n"
        "  bytefit score model.bytefit --data mydata --protocol adapt --set optimizer.lr=0.001 --set epochs=1\n"
        "  bytefit score model.bytefit --data mydata --protocol documents --set rank=4 --json\n"
        "  torchrun --nproc-per-node 2 -m bytefit score runs/a\n\n"
        "with --json every chunk is a line of its own as soon as it is scored; the last line is the result.\n"
        "a score that was stopped goes on where it was when the same command is given again.",
    )  # fmt: skip
    _add_target(verb)
    verb.add_argument("--protocol", choices=PROTOCOLS, help="for an artifact (default: the one it was packed with)")
    verb.add_argument("--window", type=int, metavar="T", help="tokens a window (default: the artifact's own)")
    verb.add_argument("--stride", type=int, metavar="T", help="targets a sliding window (default: the artifact's own)")
    verb.add_argument("--contest", action="store_true", help="drop or repeat the tail as the Parameter Golf scripts do (full, sliding)")
    verb.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="replace a field of the protocol (adapt, documents)")
    verb.set_defaults(do=do_score)
    verb = add_verb(
        verbs, "prove",
        "  bytefit prove runs/a\n  bytefit prove model.bytefit --data mydata --bytes 20000\n"
        "  bytefit prove model.bytefit --data mydata --protocol adapt",
    )  # fmt: skip
    _add_target(verb)
    verb.add_argument("--protocol", choices=CODED, help="for an artifact (default: the one it was packed with)")
    verb.set_defaults(do=do_prove)


def _add_target(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("target", type=Path, help="run folder or artifact file")
    verb.add_argument("--data", type=Path, metavar="DIR", help="dataset folder (needed for an artifact)")
    verb.add_argument("--bytes", type=int, metavar="N", help="only the first N bytes of validation text, to the end of a document")


def _check_bytes(options: argparse.Namespace) -> None:
    if options.bytes is not None and options.bytes < 1:
        raise UserError(f"--bytes {options.bytes} must be at least 1")


def do_score(options: argparse.Namespace) -> None:
    _check_bytes(options)
    if options.target.is_dir():
        _score_run(options)
        return
    artifact, dataset, ranks = load_artifact(options.target), _needed_data(options), join_ranks()
    check_fits(artifact, dataset)
    keep_freed_memory()
    given = {"window": options.window, "stride": options.stride, "contest": options.contest, "settings": options.set}
    protocol = protocol_of(artifact, options.protocol, **given)
    tokens, dtype = val_tokens(dataset, options.bytes), agreed_dtype("auto", ranks)
    target: Path = options.target
    journal = journal_of(target.with_name(f"{target.name}.score"), artifact, dataset, len(tokens) - 1, protocol, dtype)
    stream = _streaming(options) if ranks.is_first else None
    watch = Watch(ranks=ranks, journal=journal, on_chunk=None if stream is None else lambda result: stream(None, result))
    result = score(artifact.model.to(ranks.device), tokens, dataset.byte_table, protocol, dtype, watch)
    if ranks.is_first:
        text = f"{result.bits_per_byte:.5f} bits per byte ({result.bytes:,} bytes, {result.targets:,} tokens, {result.seconds:.1f} s)"
        _show(options, result.to_json(), text)
        with contextlib.suppress(OSError):  # a folder that cannot be written to holds none
            journal.path.unlink(missing_ok=True)


def _streaming(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """What prints every chunk as a line of JSON, where JSON was asked for."""
    if not options.json:
        return None

    def show(name: str | None, result: ChunkResult) -> None:
        print(json.dumps(({} if name is None else {"score": name}) | asdict(result)), flush=True)

    return show


def _show(options: argparse.Namespace, record: dict[str, object], text: str) -> None:
    print(json.dumps(record) if options.json else text, flush=True)


def _score_run(options: argparse.Namespace) -> None:
    given = [name for name in ("protocol", "window", "stride", "contest", "set") if getattr(options, name)]
    if given:
        raise UserError(f"--{given[0]} is for an artifact; a run is scored by its recipe (or name {options.target / 'model.bytefit'})")
    ranks = join_ranks()
    folder, recipe, dataset = open_finished(options.target, options.data)
    if options.bytes is not None:
        recipe = apply_settings(recipe, [("score.max_bytes", str(options.bytes))])
    own, ledger = options.bytes is None and options.data is None, ledger_of(folder)
    stem = "score" if own else "aside"  # a score of other text leaves the progress of the run's own alone
    with claimed(folder.path) if ranks.is_first else contextlib.nullcontext():
        with counted(folder, ledger, *SCORING, write=own and ranks.is_first):
            record = score_step(folder, recipe, dataset, ledger, ranks, _streaming(options) if ranks.is_first else None, stem=stem)
            if own and ranks.is_first:
                write_json(folder.score, record)
        if not ranks.is_first:
            return
        forget_progress(folder, stem)
        _bring_up_to_date(folder, recipe, dataset, ledger, changed=own)
    lines = [f"{name}: {part['bits_per_byte']:.5f} bits per byte" for name, part in record.items() if isinstance(part, dict)]
    _show(options, record, "\n".join(lines))


def _needed_data(options: argparse.Namespace) -> Dataset:
    if options.data is None:
        raise UserError(f"{options.target} is an artifact; say which text: --data DIR")
    return open_dataset(options.data)


def do_prove(options: argparse.Namespace) -> None:
    _check_bytes(options)
    if options.target.is_dir():
        if options.protocol is not None:
            raise UserError(f"--protocol is for an artifact; a run is proven by its recipe (or name {options.target / 'model.bytefit'})")
        folder, recipe, dataset = open_finished(options.target, options.data)
        if options.bytes is None and options.data is None and recipe.score.proof_bytes:
            ledger = ledger_of(folder)
            with claimed(folder.path):
                with counted(folder, ledger, "prove"):
                    proof = prove_step(folder, recipe, dataset, ledger)
                    write_json(folder.proof, proof.to_json())
                _bring_up_to_date(folder, recipe, dataset, ledger, changed=True)
        else:  # not the run's own proof: leave that alone
            proof = _prove_aside(folder.artifact, dataset, options.bytes, None)
    else:
        protocol = protocol_of(load_artifact(options.target), options.protocol) if options.protocol else None
        assert not isinstance(protocol, Full)
        proof = _prove_aside(options.target, _needed_data(options), options.bytes, protocol)
    came_back = "restored" if proof.restored else "NOT restored"
    text = f"{proof.bytes_in:,} bytes -> {proof.bytes_out:,} bytes -> {came_back}; {proof.agreement:+.3%} against the score"
    show_result(options, proof.to_json(), text)
    if not proof.holds:
        raise CheckFailed("the proof does not hold")


def _bring_up_to_date(folder: RunFolder, recipe: Recipe, dataset: Dataset, ledger: Ledger, *, changed: bool) -> None:
    """A finished run's summary and report say what its score and its proof now are; its audit was of those before."""
    if changed and folder.summary.exists():
        folder.audit.unlink(missing_ok=True)
        finish(folder, recipe, dataset, ledger)


def _prove_aside(artifact: Path, dataset: Dataset, num_bytes: int | None, protocol: CodedProtocol | None) -> Proof:
    """A proof that leaves no file behind."""
    wanted = PROOF_BYTES if num_bytes is None else num_bytes
    documents = cut_documents(dataset.val_documents(wanted), wanted)
    with tempfile.TemporaryDirectory() as scratch:
        return prove(artifact, documents, Path(scratch) / "proof.bytefitz", resolve_dtype("auto", "cpu"), protocol)
