"""What a record's script does: train by its recipe, pack and evaluate, or evaluate an artifact. Started by ``loader.py``.

Only what this module needs is in the script; the verbs, the report, the proof and the audit are not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch

from bytefit.artifact.load import load_artifact
from bytefit.artifact.pack import room_for_code
from bytefit.config import from_json
from bytefit.data.dataset import Dataset, open_dataset
from bytefit.errors import CheckFailed, Interrupted, UserError
from bytefit.ledger import Ledger
from bytefit.ranks import Ranks, all_cores, join_ranks, run_process
from bytefit.recipes.recipe import Recipe
from bytefit.run.folder import RunFolder, claimed, open_run
from bytefit.run.steps import check_before_training, check_fits, fit_recipe_to, pack_step, train_step, val_tokens
from bytefit.score.harness import Watch
from bytefit.score.scorer import score
from bytefit.train.machine import keep_freed_memory

CONTEST_DATA = Path("data/datasets/fineweb10B_sp1024")  # where the contest's own download puts it


def enter(script: Path, settings: dict[str, Any]) -> NoReturn:
    """Run and leave the process with an exit code (0 done, 1 over the cap, 2 the user's mistake, 130 interrupted)."""

    def attempt() -> int:
        try:
            main(script, settings, sys.argv[1:])
        except UserError as error:
            code, said = 2, str(error)
        except CheckFailed as error:
            code, said = 1, str(error)
        except Interrupted as stop:
            code, said = 130, f"{stop}; go on with --resume"
        except KeyboardInterrupt:
            code, said = 130, "interrupted"
        else:
            return 0
        print(f"{script.name}: {said}", file=sys.stderr)
        return code

    run_process(attempt)


def main(script: Path, settings: dict[str, Any], arguments: Sequence[str]) -> None:
    """Do what the arguments say.

    Args:
        script: the file that is executed; its size is what the code costs.
        settings: ``recipe`` (without a seed), and ``score_dtype`` in which the record's scores were made.

    Raises:
        CheckFailed: script and artifact together are over the cap.
    """
    recipe: Recipe = from_json(Recipe, settings["recipe"])
    options = parser_for(script, recipe).parse_args(arguments)
    keep_freed_memory()
    ranks, code_bytes = join_ranks(), script.stat().st_size
    dataset = open_dataset(options.data)
    artifact = options.evaluate
    if artifact is None:
        out = options.out or Path(f"run_seed{options.seed}")
        artifact = train_and_pack(for_seed(recipe, options.seed, code_bytes), dataset, out, ranks, resume=options.resume)
    record = evaluate(artifact, recipe, dataset, getattr(torch, settings["score_dtype"]), ranks)
    if not ranks.is_first:
        return
    record |= {"bytes_code": code_bytes, "bytes_total": code_bytes + record["bytes_model"], "bytes_cap": recipe.pack.budget_bytes}
    print(json.dumps(record, indent=2) if options.json else as_text(record), flush=True)
    if record["bytes_total"] > record["bytes_cap"]:
        raise CheckFailed(f"{record['bytes_total'] - record['bytes_cap']:,} bytes over the cap of {record['bytes_cap']:,}")


def parser_for(script: Path, recipe: Recipe) -> argparse.ArgumentParser:
    what = f"Train {recipe.name} ({recipe.size}), pack it into {recipe.pack.budget_bytes:,} bytes less this script, and evaluate it."
    parser = argparse.ArgumentParser(prog=script.name, description=what)
    parser.add_argument("--data", type=Path, default=CONTEST_DATA, metavar="DIR", help=f"dataset folder (default: {CONTEST_DATA})")
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="evaluate this artifact; nothing is trained")
    parser.add_argument("--seed", type=int, default=recipe.seed, metavar="N", help=f"of weights and batches (default: {recipe.seed})")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the run goes (default: run_seedN)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--unpack", metavar="DIR", help="as the only option: write this script's modules as files and stop")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def for_seed(recipe: Recipe, seed: int, code_bytes: int) -> Recipe:
    """The recipe with a seed, leaving the room under its cap for the code that the record's runs left. Raises UserError."""
    try:
        return dataclasses.replace(recipe, seed=seed, pack=dataclasses.replace(recipe.pack, code_bytes=room_for_code(code_bytes)))
    except ValueError as error:
        raise UserError(str(error)) from None


def train_and_pack(recipe: Recipe, dataset: Dataset, out: Path, ranks: Ranks, *, resume: bool) -> Path:
    """Train into the run folder ``out`` on all ranks, pack on the first; returns the artifact."""
    recipe = fit_recipe_to(recipe, dataset, tell=ranks.is_first)
    folder, ledger = RunFolder(out), Ledger()
    with claimed(out) if ranks.is_first else nullcontext():
        if ranks.is_first:
            check_before_training(recipe, dataset, ranks)
            open_run(out, recipe, dataset, resume=resume, world=ranks.world)
        ranks.barrier()
        train_step(folder, recipe, dataset, ledger, ranks, resume=resume)
        if ranks.is_first:
            with all_cores(ranks):
                pack_step(folder, recipe, dataset, ledger, ranks.device)
        ranks.barrier()
    return folder.artifact


def evaluate(path: Path, recipe: Recipe, dataset: Dataset, dtype: torch.dtype, ranks: Ranks) -> dict[str, Any]:
    """Score an artifact under the recipe's headline protocol, on all ranks.

    Returns:
        ``val_loss`` (nats a target), ``val_bpb`` (bits a byte), ``bytes_model``, ``eval_seconds``, and ``score``, the whole of it.
    """
    artifact = load_artifact(path)
    check_fits(artifact, dataset)
    tokens = val_tokens(dataset, recipe.score.max_bytes)
    watch = Watch(title="evaluating", ranks=ranks)
    result = score(artifact.model.to(ranks.device), tokens, dataset.byte_table, recipe.score.scored, dtype, watch)
    return {
        "val_loss": result.nats / result.targets,
        "val_bpb": result.nats / math.log(2) / result.bytes,
        "bytes_model": artifact.size,
        "eval_seconds": result.seconds,
        "score": result.to_json(),
    }


def as_text(record: dict[str, Any]) -> str:
    score = record["score"]
    return (
        f"val_loss: {record['val_loss']:.8f} val_bpb: {record['val_bpb']:.8f} ({score['protocol']['type'].lower()}, {score['dtype']}, "
        f"{score['targets']:,} targets, {score['bytes']:,} bytes of text, {record['eval_seconds']:.1f} s)\n"
        f"bytes: {record['bytes_code']:,} code + {record['bytes_model']:,} model = {record['bytes_total']:,} of {record['bytes_cap']:,}"
    )
