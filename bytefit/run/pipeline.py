"""``bytefit run``: train → pack → score → prove → report, and the closing summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from bytefit.data.dataset import Dataset
from bytefit.files import read_json, write_json
from bytefit.ledger import Ledger
from bytefit.model.inspect import num_parameters
from bytefit.progress import say
from bytefit.ranks import Ranks, all_cores
from bytefit.recipes.recipe import Recipe
from bytefit.report.page import write_report
from bytefit.run.beside import compare_compressors, data_of, dataset_for, prove_step
from bytefit.run.details import details_step
from bytefit.run.folder import RunFolder, claimed, open_run
from bytefit.run.steps import (
    check_before_training,
    fit_recipe_to,
    forget_progress,
    fresh,
    pack_step,
    score_step,
    train_step,
)
from bytefit.train.loop import LEDGER_ENTRIES
from bytefit.train.machine import HARDWARE, describe_machine, hardware_of, keep_freed_memory

PACKING, SCORING = ("calibrate", "fit", "encode"), ("score", "adapt")  # entries of the ledger


def run(recipe: Recipe, *, data: Path | None, out: Path, resume: bool, ranks: Ranks) -> dict[str, Any] | None:
    """Do everything that is not done yet; returns the summary (None on ranks other than the first), whether or not the proof holds.

    Raises:
        Interrupted: training was stopped; the checkpoint is saved.
        UserError: bad input of any kind.
    """
    with claimed(out) if ranks.is_first else nullcontext():
        return _run(recipe, data=data, out=out, resume=resume, ranks=ranks)


def _run(recipe: Recipe, *, data: Path | None, out: Path, resume: bool, ranks: Ranks) -> dict[str, Any] | None:
    folder, recipe, dataset = prepare(recipe, data=data, out=out, resume=resume, ranks=ranks)
    ledger = ledger_of(folder) if resume else Ledger()
    if folder.training_finished():
        say(f"training is finished already ({folder.path}); going on from its weights")
    else:
        train_step(folder, recipe, dataset, ledger, ranks, resume=resume)

    def pack_it() -> None:
        with all_cores(ranks):
            pack_step(folder, recipe, dataset, ledger, ranks.device)

    if ranks.is_first:
        _unless_there(folder, ledger, folder.pack, [folder.checkpoint / "state.json"], PACKING, pack_it)
    ranks.barrier()
    if ranks.any(ranks.is_first and not fresh(folder.score, [folder.pack])):
        with counted(folder, ledger, *SCORING, write=ranks.is_first):
            record = score_step(folder, recipe, dataset, ledger, ranks)
            if ranks.is_first:
                write_json(folder.score, record)
                forget_progress(folder)
    return after_scoring(folder, recipe, dataset, ledger, ranks) if ranks.is_first else None


def after_scoring(folder: RunFolder, recipe: Recipe, dataset: Dataset, ledger: Ledger, ranks: Ranks) -> dict[str, Any]:
    """The first rank's last steps, as far as their results are not there: proof, compressors, details, summary, report."""

    def prove_it() -> None:
        with all_cores(ranks):
            write_json(folder.proof, prove_step(folder, recipe, dataset, ledger).to_json())

    def compare_it() -> None:
        write_json(folder.compressors, compare_compressors(dataset, recipe, ledger))

    def look_closely() -> None:
        details_step(folder, recipe, dataset, ledger)

    if recipe.score.proof_bytes:
        _unless_there(folder, ledger, folder.proof, [folder.pack], ("prove",), prove_it)
    _unless_there(folder, ledger, folder.compressors, [folder.score], ("report",), compare_it)
    _unless_there(folder, ledger, folder.details, [folder.pack, folder.score], (), look_closely)  # its seconds come on top
    return finish(folder, recipe, dataset, ledger)


def _unless_there(
    folder: RunFolder, ledger: Ledger, result: Path, sources: list[Path], entries: tuple[str, ...], do: Callable[[], None]
) -> None:
    """Do a step unless its result is there and newer than what it is made from."""
    if not fresh(result, sources):
        with counted(folder, ledger, *entries):
            do()


def prepare(recipe: Recipe, *, data: Path | None, out: Path, resume: bool, ranks: Ranks) -> tuple[RunFolder, Recipe, Dataset]:
    """Open the dataset, adapt the recipe to it, and open the run folder (the first rank before the others).

    A run that is resumed without ``data`` goes on with the dataset that it was started on.
    """
    keep_freed_memory()
    if data is None and resume:
        data = data_of(RunFolder(out))
    if not ranks.is_first:
        ranks.barrier()  # the first rank builds the embedded corpus and makes the folder
    dataset = dataset_for(recipe, data)
    recipe = fit_recipe_to(recipe, dataset, tell=ranks.is_first)
    folder = RunFolder(out)
    if ranks.is_first:
        with all_cores(ranks):
            check_before_training(recipe, dataset, ranks)
        folder = open_run(out, recipe, dataset, resume=resume, world=ranks.world)
        ranks.barrier()
    return folder, recipe, dataset


def ledger_of(folder: RunFolder) -> Ledger:
    """The seconds so far: training's from its checkpoint once it is finished, of what comes after it from ``ledger.json``."""
    spent = read_json(folder.ledger) if folder.ledger.exists() else {}
    ledger = Ledger({entry: seconds for entry, seconds in spent.items() if entry not in LEDGER_ENTRIES})
    if folder.training_finished():
        ledger.add(read_json(folder.checkpoint / "state.json")["seconds"])
    return ledger


@contextmanager
def counted(folder: RunFolder, ledger: Ledger, *entries: str, write: bool = True) -> Iterator[None]:
    """Do a step, anew where it was done before: its seconds take the place of those, in ``ledger.json`` too."""
    ledger.seconds |= dict.fromkeys(entries, 0.0)
    yield
    if write:
        write_json(folder.ledger, ledger.seconds)


def finish(folder: RunFolder, recipe: Recipe, dataset: Dataset, ledger: Ledger) -> dict[str, Any]:
    """Leave ``summary.json`` and ``report.html``; returns the summary."""
    summary = summarise(folder, recipe, dataset, ledger)
    write_json(folder.summary, summary)
    write_report(folder.path, folder.report)
    return summary


def summarise(folder: RunFolder, recipe: Recipe, dataset: Dataset, ledger: Ledger) -> dict[str, Any]:
    """The keys that other programs rely on (docs/design.md), from the step files."""
    packed, scores, state = read_json(folder.pack), read_json(folder.score), read_json(folder.checkpoint / "state.json")
    proof = read_json(folder.proof) if folder.proof.exists() else {}
    earlier = [hardware_of(machine) | {"until_step": machine["until_step"]} for machine in state.get("earlier_machines", [])]
    return {
        "recipe": recipe.name,
        "size": recipe.size,
        "seed": recipe.seed,
        "val_bpb": scores[recipe.score.headline]["bits_per_byte"],
        "val_bpb_float": scores["float_full"]["bits_per_byte"],
        "val_bpb_full": scores["full"]["bits_per_byte"],
        "val_bpb_sliding": scores["sliding"]["bits_per_byte"],
        "val_bpb_adapted": scores["adapt"]["bits_per_byte"] if "adapt" in scores else None,
        "val_bytes": scores["full"]["bytes"],
        "artifact_bytes": packed["bytes"],
        "budget_bytes": packed["budget"],
        "code_bytes": recipe.pack.code_bytes,
        "bytes_by_part": packed["parts"],
        "num_parameters": num_parameters(recipe.model),
        "average": state["average"],
        "steps": state["step"],
        "tokens_seen": state["position"].get("tokens", state["step"] * recipe.train.batch_tokens),
        "dtype": state["dtype"],
        "muon_dtype": state["muon_dtype"],
        "train_seconds": round(ledger.seconds["train"], 3),
        "ledger": ledger.to_json(),
        "proof_bytes_in": proof.get("bytes_in"),
        "proof_bytes_out": proof.get("bytes_out"),
        "proof_restored": proof.get("restored"),
        "proof_agreement": proof.get("agreement"),
        "compressors_bpb": read_json(folder.compressors),
        "tokenizer": {"vocab_size": dataset.tokenizer.vocab_size, "lossless": dataset.tokenizer.lossless},
        "dataset_sha256": dataset.sha256,
        "text_sha256": scores.get("text_sha256"),
        "hardware": hardware_of(state["machine"]),  # that trained; another may pack and score
        "earlier_hardware": earlier,
        "versions": {key: value for key, value in describe_machine().items() if key not in HARDWARE},
        "sample": read_json(folder.details)["samples"][0]["text"],
    }
