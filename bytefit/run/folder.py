"""The run folder: who may write there, and where each file lies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bytefit.config import from_json, to_json
from bytefit.errors import UserError
from bytefit.files import read_json, write_json
from bytefit.recipes.recipe import Recipe
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
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def read_recipe(self) -> Recipe:
        """Raises UserError where this is not a run folder, or the recipe does not fit this version."""
        if not self.recipe.exists():
            raise UserError(f"{self.path} is not a run folder (no recipe.json); make one with: bytefit run RECIPE --out {self.path}")
        try:
            return from_json(Recipe, read_json(self.recipe))
        except UserError as error:
            raise UserError(f"{self.recipe}: {error}") from None

    def training_finished(self) -> bool:
        state = self.checkpoint / "state.json"
        return state.exists() and bool(read_json(state).get("finished"))


def open_run(path: Path, recipe: Recipe, data: Path | None, *, resume: bool) -> RunFolder:
    """Make the folder, or take up the run in it.

    Raises:
        UserError: the folder holds another run, or one that was not asked to be resumed.
    """
    folder = RunFolder(path)
    record = to_json(recipe)
    if folder.recipe.exists():
        if not resume:
            raise UserError(f"{path} already holds a run; go on with it by --resume, or choose another --out")
        held = read_json(folder.recipe)
        if held != json.loads(json.dumps(record)):
            raise UserError(f"{path} holds a run of another recipe ({_first_difference(held, record)}); choose another --out")
    elif path.exists() and any(path.iterdir()):
        raise UserError(f"{path} exists and is not a run folder; choose another --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}") from None
    write_json(folder.recipe, record)
    write_json(folder.env, describe_machine() | {"data": str(data.resolve()) if data else None})
    return folder


def data_of(folder: RunFolder) -> Path | None:
    """The dataset folder that the run was started with (None: the embedded corpus)."""
    data = read_json(folder.env).get("data") if folder.env.exists() else None
    return Path(data) if data else None


def finished_weights(folder: RunFolder) -> tuple[dict[str, object], dict[str, object]]:
    """The weights to pack (averaged where an average was kept) and the training progress. Raises UserError."""
    if not (folder.checkpoint / "state.json").exists():
        raise UserError(f"{folder.path} holds no trained weights; train first with: bytefit train RECIPE --out {folder.path}")
    checkpoint = load_checkpoint(folder.checkpoint)
    return dict(checkpoint.average or checkpoint.weights), checkpoint.progress


def _first_difference(held: object, wanted: object, path: str = "") -> str:
    if isinstance(held, dict) and isinstance(wanted, dict):
        for key in [*held, *(key for key in wanted if key not in held)]:
            if held.get(key) != wanted.get(key):
                return _first_difference(held.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    return f"{path} is {held!r}, not {wanted!r}"
