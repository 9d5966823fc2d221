"""The steps of a run. Each reads what the steps before it left in the run folder, and leaves its own files there."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bytefit.artifact.fit import MIN_LOG
from bytefit.artifact.load import Artifact, load_artifact
from bytefit.artifact.pack import Packed, Packer, pack
from bytefit.config import to_json
from bytefit.data.dataset import Dataset
from bytefit.data.tokenizer import BOS_ID
from bytefit.dtypes import DtypeName, resolve_dtype
from bytefit.errors import UserError
from bytefit.files import read_bytes, read_json, write_bytes, write_json
from bytefit.ledger import Entry, Ledger
from bytefit.model.language_model import LanguageModel
from bytefit.optim.muon import ONE_RANK
from bytefit.progress import progress_bar, say
from bytefit.quant.calibrate import (
    CalibrationConfig,
    OwnText,
    Statistics,
    TrainingText,
    calibration_batches,
    collect,
    load_statistics,
    nothing_known,
    recollect,
    save_statistics,
)
from bytefit.quant.grid import RowGrid
from bytefit.ranks import Ranks
from bytefit.recipes.recipe import Recipe
from bytefit.run.folder import RunFolder, trained_weights
from bytefit.score.harness import ChunkResult, Watch
from bytefit.score.journal import Journal
from bytefit.score.scorer import Score, ScoreProtocol, score
from bytefit.train.batches import Batches
from bytefit.train.choose import hold_out
from bytefit.train.loop import train
from bytefit.train.machine import describe_machine, hardware_of, wait_for
from bytefit.train.step import plans_of

CPU_WINDOWS = 4  # of calibration at once, where a clock ends it
TITLES = {
    "float_full": "scoring the float weights",
    "full": "scoring the artifact",
    "sliding": "scoring the artifact, sliding",
    "adapt": "scoring the artifact, adapting",
}


def fit_recipe_to(recipe: Recipe, dataset: Dataset, *, tell: bool = True) -> Recipe:
    """The recipe with the dataset's vocabulary size."""
    vocab_size = dataset.tokenizer.vocab_size
    if vocab_size == recipe.model.vocab_size:
        return recipe
    if tell:
        say(f"the dataset's tokenizer has {vocab_size} ids; the recipe's {recipe.model.vocab_size} is replaced")
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=vocab_size))


def new_model(recipe: Recipe) -> LanguageModel:
    """A fresh model; the recipe's seed decides its weights."""
    torch.manual_seed(recipe.seed)
    try:
        return recipe.model.build()
    except ValueError as error:
        raise UserError(f"model: {error}") from None


def train_step(folder: RunFolder, recipe: Recipe, dataset: Dataset, ledger: Ledger, ranks: Ranks, *, resume: bool) -> None:
    """Train, leaving ``checkpoint/`` and ``metrics.jsonl``."""
    train(
        new_model(recipe), recipe.train, dataset.train,
        seed=recipe.seed, folder=folder.path, ledger=ledger, ranks=ranks, resume=resume,
    )  # fmt: skip


def trained_model(folder: RunFolder, recipe: Recipe) -> LanguageModel:
    """The float model that training left. Raises UserError where there is none or it has another shape."""
    model = new_model(recipe)
    try:
        model.load_state_dict(trained_weights(folder))
    except RuntimeError:
        raise UserError(f"the weights in {folder.checkpoint} do not fit recipe.json; train into another --out") from None
    return model.eval()


def check_before_training(recipe: Recipe, dataset: Dataset, ranks: Ranks) -> None:
    """Raises UserError for what would otherwise come to light after minutes: short splits, uneven ranks, impossible budgets."""
    stream, _ = hold_out(recipe.train, dataset.train)
    Batches(recipe.train, stream, recipe.seed, ranks)
    model = new_model(recipe)
    if recipe.score.proof_bytes:
        try:
            dataset.tokenizer.byte_ids  # noqa: B018
        except UserError as error:
            raise UserError(f"{error}, or do without a proof (--set score.proof_bytes=0)") from None
    if recipe.calibrate is not None and isinstance(recipe.calibrate.source, OwnText):
        next(calibration_batches(recipe.calibrate, model, train=stream, tokenizer=dataset.tokenizer, seq_len=recipe.train.seq_len, seed=0))
    try:
        for plan in plans_of(model, recipe.train):
            model.run_plan(plan)
    except ValueError as error:
        raise UserError(f"train.{'cadence' if recipe.train.cadence else 'curriculum'}: {error}") from None
    infos = list(model.parameter_infos())
    packer = Packer(_weights(model), infos, recipe.model, dataset.tokenizer, recipe.pack, statistics=nothing_known(infos))
    floor = packer.at(2.0**MIN_LOG)
    if len(floor.data) > recipe.pack.artifact_bytes:
        raise UserError(
            f"a budget of {recipe.pack.artifact_bytes:,} bytes is impossible: even untrained and as coarse as can be, this model "
            f"takes {len(floor.data):,} bytes; raise --bytes or make the model smaller (--set model.dim=...)"
        )


def _weights(model: LanguageModel) -> dict[str, Tensor]:
    return {name: p.detach().float() for name, p in model.named_parameters()}


def calibrate_step(folder: RunFolder, recipe: Recipe, dataset: Dataset, ledger: Ledger, device: str = "cpu") -> Statistics:
    """What the trained model's matrices see, from ``calibration.safetensors`` where that was measured like this already."""
    config = _calibration_of(recipe, device)
    if config is None:
        return {}
    gradients = recipe.pack.quant.needs_gradients
    wanted = {"config": to_json(config), "gradients": gradients, "seed": recipe.seed}
    if isinstance(config.source, OwnText):
        wanted["text"] = hashlib.sha256(read_bytes(Path(config.source.path))).hexdigest()
    if fresh(folder.calibration, [folder.checkpoint / "state.json"]):
        held = load_statistics(folder.calibration)
        if held is not None and isinstance(held[1], dict) and held[1].get("wanted") == wanted:
            ledger.add({"calibrate": held[1]["seconds"]})  # whoever measured may have been stopped before it wrote a ledger
            return held[0]
    model, before, read = trained_model(folder, recipe).to(device), ledger.read("calibrate"), 0

    def counted(batches: Iterator[Tensor]) -> Iterator[Tensor]:
        nonlocal read
        for batch in batches:
            read += 1
            yield batch

    with ledger.measure("calibrate"):
        batches = counted(_batches(model, config, recipe, dataset, ledger))
        bar = progress_bar(batches, total=-(-config.windows // config.batch_windows), desc="calibrating", unit=" batches")
        statistics = collect(model, bar, gradients=gradients, seed=recipe.seed)
    spent = ledger.read("calibrate") - before
    save_statistics(folder.calibration, statistics, {"wanted": wanted, "seconds": spent, "batches": read})
    return statistics


def _batches(model: LanguageModel, config: CalibrationConfig, recipe: Recipe, dataset: Dataset, ledger: Ledger) -> Iterator[Tensor]:
    """The text to calibrate on; training text ends when the seconds that training left for it are used, or its share of them where the
    same text is read again: a forward pass for each block and for what stands around them, where the first took no less."""
    clock, by_the_clock = recipe.train, _reads_by_the_clock(recipe)
    left = min(clock.reserved_seconds, (clock.seconds or 0.0) - ledger.read("train"))  # the last step may have gone over
    left -= ledger.read("average") if clock.chooses_on_text else 0.0
    if config.sequential:
        left /= 1 + 2 + len({info.block for info in model.parameter_infos() if info.block is not None})
    batches, device = 0, model.embedding.weight.device

    def out_of_time() -> bool:
        """Whether another batch like those so far would go over it."""
        nonlocal batches
        batches += 1
        wait_for(device)
        foreseen = ledger.read("calibrate") * (1 + 1 / batches)
        return by_the_clock and foreseen > left

    return calibration_batches(
        config, model, train=dataset.train, tokenizer=dataset.tokenizer, seq_len=clock.seq_len, seed=recipe.seed, stop_at=out_of_time
    )


def _reads_by_the_clock(recipe: Recipe) -> bool:
    return recipe.train.reserved_seconds > 0 and recipe.calibrate is not None and isinstance(recipe.calibrate.source, TrainingText)


def _calibration_of(recipe: Recipe, device: str) -> CalibrationConfig | None:
    """By the clock and on a CPU in batches of a few windows: one is read however busy the machine is, and it should not go over."""
    config = recipe.calibrate
    if config is None or device != "cpu" or not _reads_by_the_clock(recipe):
        return config
    return dataclasses.replace(config, batch_windows=min(config.batch_windows, CPU_WINDOWS))


def _same_batches(model: LanguageModel, folder: RunFolder, recipe: Recipe, dataset: Dataset) -> list[Tensor]:
    """What the calibration in the folder has read, once more: as much of it as the clock let it."""
    config, held = _calibration_of(recipe, model.embedding.weight.device.type), load_statistics(folder.calibration)
    assert config is not None
    text = calibration_batches(
        config, model, train=dataset.train, tokenizer=dataset.tokenizer, seq_len=recipe.train.seq_len, seed=recipe.seed
    )
    return list(islice(text, held[1].get("batches") if held is not None else None))


def pack_step(folder: RunFolder, recipe: Recipe, dataset: Dataset, ledger: Ledger, device: str = "cpu") -> Packed:
    """Calibrate, quantise and pack, leaving ``model.bytefit`` and ``pack.json``.

    Args:
        device: of the calibration; rounding and encoding are done on the CPU.
    """
    statistics = calibrate_step(folder, recipe, dataset, ledger, device)
    model = trained_model(folder, recipe)
    notes = {"recipe": recipe.name, "size": recipe.size, "protocol": to_json(recipe.score.coded)}

    infos = list(model.parameter_infos())

    def packed_with(statistics: Statistics) -> Packed:
        with ledger.measure("fit" if recipe.pack.fit else "encode"):
            return pack(_weights(model), infos, recipe.model, dataset.tokenizer, recipe.pack, statistics=statistics, notes=notes)

    packed = packed_with(statistics)
    if recipe.calibrate is not None and recipe.calibrate.sequential:
        with ledger.measure("calibrate"):
            rounded = {name: torch.from_numpy(packed.quantised.weights(name)) for name, _ in model.named_parameters()}
            model.to(device)
            statistics = recollect(model, rounded, _same_batches(model, folder, recipe, dataset), statistics)
        packed = packed_with(statistics)
    say_where_training_aimed_elsewhere(recipe, packed.dial)
    write_bytes(folder.artifact, packed.data)
    record = {"bytes": len(packed.data), "budget": recipe.pack.budget_bytes, "parts": packed.parts, "dial": packed.dial}
    record |= {"attempts": packed.attempts, "zeroed": packed.zeroed, "floor_rows": packed.quantised.floor_rows}
    record["pruned"] = packed.quantised.pruned
    write_json(folder.pack, record)
    return packed


def say_where_training_aimed_elsewhere(recipe: Recipe, dial: float) -> None:
    """A word where fake quantisation rounded to codes that are far from those which the budget leaves."""
    aimed, grid = recipe.train.fake_quant, recipe.pack.quant.mlp.grid
    if aimed is None or not isinstance(grid, RowGrid) or grid.highest is None:
        return
    lowest, highest = grid.ends(dial)
    if not 2 / 3 <= highest / aimed.highest <= 3 / 2:
        say(
            f"training rounded to codes {aimed.lowest}..{aimed.highest}, but the budget leaves {lowest}..{highest}; train for those with "
            f"--set train.fake_quant.lowest={lowest} --set train.fake_quant.highest={highest}"
        )


def val_tokens(dataset: Dataset, max_bytes: int | None) -> np.ndarray:
    """Validation tokens: all, or whole documents until ``max_bytes`` bytes of text are reached."""
    tokens = dataset.val.all()
    if max_bytes is None:
        return tokens
    counts = np.cumsum(dataset.byte_table.count(tokens[1:], tokens[:-1]))
    starts = np.flatnonzero(tokens == BOS_ID)
    ends = starts[1:][counts[starts[1:] - 1] >= max_bytes]
    return tokens[: ends[0]] if len(ends) else tokens


def check_fits(artifact: Artifact, dataset: Dataset) -> None:
    """Raises UserError where the artifact's tokenizer is not the dataset's: its ids would mean other text."""
    ours, theirs = artifact.tokenizer, dataset.tokenizer
    if ours.token_bytes != theirs.token_bytes or bool((ours.is_control != theirs.is_control).any()):
        raise UserError(f"the artifact's tokenizer is not the one of {dataset.folder}; score it on the dataset it was trained on")


def score_step(
    folder: RunFolder,
    recipe: Recipe,
    dataset: Dataset,
    ledger: Ledger,
    ranks: Ranks = ONE_RANK,
    on_chunk: Callable[[str, ChunkResult], None] | None = None,
    stem: str = "score",
) -> dict[str, Any]:
    """Score the float model (full) and the artifact (full, sliding, and adapting where the recipe says how), on all ranks.

    A score that was stopped goes on where it was, from the progress files in the folder, whose names begin with ``stem``;
    ``forget_progress`` removes them.
    """
    settings = recipe.score
    dtype = _scoring_dtype(folder, recipe, ranks)
    tokens = val_tokens(dataset, settings.max_bytes)
    artifact = load_artifact(folder.artifact)
    check_fits(artifact, dataset)

    def run(name: str, model: LanguageModel, protocol: ScoreProtocol, title: str) -> Score:
        journal = journal_of(folder.path / f"{stem}_{name}", artifact, dataset, len(tokens) - 1, protocol, dtype)
        watch = Watch(title=title, ranks=ranks, journal=journal, on_chunk=None if on_chunk is None else partial(on_chunk, name))
        entry: Entry = "adapt" if name == "adapt" else "score"
        with ledger.measure(entry):
            result = score(model.to(ranks.device), tokens, dataset.byte_table, protocol, dtype, watch)
        ledger.add({entry: journal.earlier_seconds})
        return result

    record: dict[str, Any] = {}
    for name, protocol in settings.protocols.items():
        model = trained_model(folder, recipe) if name == "float_full" else artifact.model
        record[name] = run(name, model, protocol, TITLES[name]).to_json()
    text = hashlib.sha256(b"\0".join(dataset.val_documents(settings.max_bytes))).hexdigest()
    return record | {"artifact_sha256": artifact.sha256, "dataset_sha256": dataset.sha256, "text_sha256": text}


def journal_of(beside: Path, artifact: Artifact, dataset: Dataset, targets: int, protocol: ScoreProtocol, dtype: torch.dtype) -> Journal:
    """Where a score keeps its progress: a hidden file of that name, one for each model, text, protocol and dtype."""
    what = {"artifact": artifact.sha256, "dataset": dataset.sha256, "targets": targets, "dtype": str(dtype)}
    return Journal.of(beside.parent, beside.name, what | {"protocol": to_json(protocol)})


def forget_progress(folder: RunFolder, stem: str = "score") -> None:
    """Once score.json is written."""
    Journal.clear(folder.path, f"{stem}_*")


def _scoring_dtype(folder: RunFolder, recipe: Recipe, ranks: Ranks) -> torch.dtype:
    """Where the recipe leaves it to the machine: what training found, if this is the hardware that it found it on. Measured anew, a stopped
    score might find the other one and begin again."""
    state = read_json(folder.checkpoint / "state.json")
    # Ranks may be machines of different kinds: whether to measure is for all of them to say, since all must take part in it.
    if recipe.train.dtype != "auto" or ranks.any(hardware_of(state["machine"]) != hardware_of(describe_machine(ranks.world))):
        return agreed_dtype(recipe.train.dtype, ranks)
    found: torch.dtype = getattr(torch, state["dtype"])
    return found


def agreed_dtype(name: DtypeName, ranks: Ranks) -> torch.dtype:
    """The first rank's choice, on every rank: which one is faster is measured."""
    mine = resolve_dtype(name, ranks.device)
    (is_bf16,) = ranks.from_first([float(mine == torch.bfloat16)])
    return torch.bfloat16 if is_bf16 else torch.float32


def fresh(result: Path, sources: list[Path]) -> bool:
    """Whether a step's result exists and is not older than what it was made from (for --resume)."""
    return result.exists() and all(source.exists() and source.stat().st_mtime_ns <= result.stat().st_mtime_ns for source in sources)
