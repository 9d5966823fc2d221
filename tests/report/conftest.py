"""Copies of a finished tiny run, as folders that a test may change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.threads import one_thread


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def change(path: Path, **values: Any) -> None:
    """Replace keys of a JSON file."""
    path.write_text(json.dumps(read(path) | values))


@pytest.fixture(scope="package", autouse=True)
def _one_thread(_few_threads: None):
    with one_thread():
        yield


@pytest.fixture(scope="session")
def copied(tiny_run, tmp_path_factory) -> Callable[..., Path]:
    """Makes a copy of the tiny run under a name; further arguments replace keys of its summary."""

    def make(name: str, **summary: Any) -> Path:
        folder = tmp_path_factory.mktemp("report") / name
        shutil.copytree(tiny_run.path, folder)
        change(folder / "summary.json", **summary)
        _cut_into_blocks(folder / "score.json")
        return folder

    return make


def _cut_into_blocks(path: Path) -> None:
    """The tiny text is a single block; in eight of one size each but unlike costs there is a curve to draw. Sums stay."""
    scores = read(path)
    for score in scores.values():
        if isinstance(score, dict):
            targets, nats, size = score["targets"] // 8, score["nats"] / 8, score["bytes"] // 8
            blocks = [[targets, nats * (1.35 - 0.1 * i), size] for i in range(7)]
            sums = [sum(block[k] for block in blocks) for k in range(3)]
            last = [score[key] - held for key, held in zip(("targets", "nats", "bytes"), sums, strict=True)]
            score["blocks"] = [*blocks, last]
    path.write_text(json.dumps(scores))
