"""Two tiny runs with different seeds, the record that is made of them, and a place where only its packages are installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from bytefit.artifact.pack import room_for_code
from bytefit.cli import main
from bytefit.config import apply_settings
from bytefit.data.dataset import Dataset
from bytefit.recipes import find_recipe
from bytefit.recipes.recipe import Recipe
from bytefit.run.folder import RunFolder
from bytefit.run.pipeline import run
from bytefit.submit.bundle import script_for
from tests.conftest import ONE_RANK

CAP = 100_000
SEEDS = (1, 2)
AUTHOR = ["--author", "A. Name", "--github", "aname", "--title", "A tiny record"]


def tiny_recipe(dataset: Dataset) -> Recipe:
    """Eight steps in fp32, and the room that the script is given."""
    settings = {
        "train.steps": "8", "train.dtype": "float32", "train.optimizer.matrices.dtype": "float32", "calibrate.windows": "16",
        "score.max_bytes": "1500", "score.proof_bytes": "60", "pack.budget_bytes": str(CAP),
        "model.vocab_size": str(dataset.tokenizer.vocab_size),
    }  # fmt: skip
    recipe = apply_settings(find_recipe("pocket", "tiny"), list(settings.items()))
    return replace(recipe, pack=replace(recipe.pack, code_bytes=room_for_code(len(script_for(recipe, "float32")))))


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Runs and scripts compute with as many threads, so that they compute the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def runs(dataset, tmp_path_factory) -> list[RunFolder]:
    """Finished runs; tests read them and must not change them."""
    folders = []
    for seed in SEEDS:
        out = tmp_path_factory.mktemp("submit") / f"s{seed}"
        run(replace(tiny_recipe(dataset), seed=seed), data=dataset.folder, out=out, resume=False, ranks=ONE_RANK)
        folders.append(RunFolder(out))
    return folders


@dataclass(frozen=True)
class Record:
    folder: Path
    submission: dict

    @property
    def script(self) -> Path:
        return self.folder / "train_gpt.py"


@pytest.fixture(scope="package")
def record(runs, tmp_path_factory) -> Record:
    out = tmp_path_factory.mktemp("records") / "record"
    assert main(["submit", *(str(run.path) for run in reversed(runs)), "--out", str(out), *AUTHOR]) == 0
    return Record(out, json.loads((out / "submission.json").read_text()))


def top_entries(package: str) -> set[str]:
    """What a package puts into site-packages, what it requires included."""
    entries: set[str] = set()
    waiting, seen = [package], set()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # required on other platforms only
        assert name != "bytefit"
        entries |= {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for requirement in distribution.requires or []:
            if "extra ==" not in requirement:
                waiting.append(re.match(r"[\w.-]+", requirement)[0])
    return entries


@pytest.fixture(scope="package")
def site(record, tmp_path_factory) -> Path:
    """Like the site-packages of a fresh environment after ``pip install -r requirements.txt``."""
    site = tmp_path_factory.mktemp("site")
    for line in (record.folder / "requirements.txt").read_text().splitlines():
        package = line.partition("==")[0]
        home = Path(str(importlib.metadata.distribution(package).locate_file("")))
        for entry in top_entries(package):
            if not (site / entry).exists():
                (site / entry).symlink_to(home / entry)
    return site


ALONE = """
import atexit, json, runpy, sys
sys.path.append({site!r})
try:
    import bytefit
except ModuleNotFoundError as error:
    assert error.name == "bytefit"
else:
    sys.exit("bytefit can be imported without the script")
atexit.register(lambda: json.dump([name for name in sys.modules if name.startswith("bytefit")], open({loaded!r}, "w")))
sys.argv = [{script!r}, *{arguments!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str
    loaded: list[str]


@pytest.fixture
def alone(site, tmp_path):
    """Run a script in an empty folder: isolated from the environment, without site-packages, with the record's packages alone."""

    def run_it(script: Path, *arguments: object) -> Outcome:
        empty, loaded = tmp_path / "empty", tmp_path / "loaded.json"
        empty.mkdir()
        values = {"site": str(site), "script": str(script), "arguments": [str(a) for a in arguments], "loaded": str(loaded)}
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        command = [sys.executable, "-I", "-S", "-c", ALONE.format(**values)]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        return Outcome(done.returncode, done.stdout, done.stderr, json.loads(loaded.read_text()) if loaded.exists() else [])

    return run_it
