"""The run folder: who may write there, and where each file lies."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bytefit.config import first_difference, to_json
from bytefit.data.dataset import Dataset
from bytefit.errors import UserError
from bytefit.files import read_json, write_json
from bytefit.progress import say
from bytefit.recipes.recipe import Recipe, as_written_now, read_recipe
from bytefit.train.checkpoint import load_checkpoint
from bytefit.train.machine import describe_machine


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.json"

    @property
    def env(self) -> Path:
        return self.path / "env.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def calibration(self) -> Path:
        return self.path / "calibration.safetensors"

    @property
    def artifact(self) -> Path:
        return self.path / "model.bytefit"

    @property
    def pack(self) -> Path:
        return self.path / "pack.json"

    @property
    def score(self) -> Path:
        return self.path / "score.json"

    @property
    def proof(self) -> Path:
        return self.path / "proof.json"

    @property
    def proof_text(self) -> Path:
        return self.path / "proof.bytefitz"

    @property
    def compressors(self) -> Path:
        return self.path / "compressors.json"

    @property
    def details(self) -> Path:
        return self.path / "details.json"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def audit(self) -> Path:
        return self.path / "audit.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def read_recipe(self) -> Recipe:
        """Raises UserError where this is not a run folder, or the recipe does not fit this version."""
        if not self.recipe.exists():
            raise UserError(f"{self.path} is not a run folder (no recipe.json); make one with: bytefit run RECIPE --out {self.path}")
        return read_recipe(self.recipe)

    def training_finished(self) -> bool:
        state = self.checkpoint / "state.json"
        return state.exists() and bool(read_json(state).get("finished"))


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Nobody else trains, packs, scores or proves in the folder meanwhile: two runs would delete each other's checkpoints, and what is
    scored must stay what was packed. It is made where it is missing, and goes again if nothing comes to lie in it.

    Raises:
        UserError: another process has it, or it cannot be made.
    """
    existed = path.exists()
    if existed and not path.is_dir():
        raise UserError(f"{path} exists and is not a run folder; choose another --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is at work in {path}; wait for it (or, to train, choose another --out)") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
        if not existed:
            with suppress(OSError):
                path.rmdir()


def open_run(path: Path, recipe: Recipe, dataset: Dataset, *, resume: bool, world: int = 1) -> RunFolder:
    """Make the folder, or take up the run in it.

    A run may be taken up with other ``calibrate``, ``pack`` and ``score`` settings: then these steps are done again. Its model, training
    and dataset must be the same.

    Raises:
        UserError: the folder holds another run, or one that was not asked to be resumed.
    """
    folder = RunFolder(path)
    record = json.loads(json.dumps(to_json(recipe)))
    if folder.recipe.exists():
        if not resume:
            raise UserError(f"{path} already holds a run; go on with it by --resume, or choose another --out")
        held = as_written_now(read_json(folder.recipe))
        difference = first_difference(_training_part(held), _training_part(record))
        if difference:
            raise UserError(f"{path} holds a run of another recipe ({difference}); choose another --out")
        trained_on = read_json(folder.env).get("dataset_sha256") if folder.env.exists() else None
        if trained_on not in (None, dataset.sha256):
            raise UserError(f"{path} was started on another dataset than {dataset.folder}; give the same --data, or another --out")
        if held != record:
            if folder.pack.exists():
                say(f"{path}: {first_difference(held, record)}: packing, scoring and proving again")
            for result in (folder.pack, folder.score, folder.proof, folder.details, folder.summary, folder.audit, folder.report):
                result.unlink(missing_ok=True)
    elif path.exists() and any(not entry.name.endswith(".partial") for entry in path.iterdir()):
        raise UserError(f"{path} exists and is not a run folder; choose another --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}") from None
    write_json(folder.recipe, record)  # first: by it a folder is known as a run's
    write_json(folder.env, describe_machine(world) | {"data": str(dataset.folder.resolve()), "dataset_sha256": dataset.sha256})
    return folder


def trained_weights(folder: RunFolder) -> dict[str, Tensor]:
    """The weights to pack: those that the finished run chose, else its last ones. Raises UserError where there are none."""
    if not (folder.checkpoint / "state.json").exists():
        raise UserError(f"{folder.path} holds no trained weights; train first with: bytefit train RECIPE --out {folder.path}")
    checkpoint = load_checkpoint(folder.checkpoint)
    return checkpoint.final or checkpoint.weights


def _training_part(record: Any) -> Any:
    """A recipe without the settings that a trained run may still change."""
    return (
        {key: value for key, value in record.items() if key not in ("calibrate", "pack", "score")} if isinstance(record, dict) else record
    )
