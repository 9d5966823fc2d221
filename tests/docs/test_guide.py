"""docs/recipes.md, "Add a technique in three steps": done to a copy of the source, it is a part like the others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks_of

GUIDE = ROOT / "docs" / "recipes.md"


def apply_diff(text: str, lines: tuple[str, ...]) -> str:
    """Each hunk (hunks are parted by ``...``) replaces the one place that looks like its lines without the ``+``."""
    for hunk in "\n".join(lines).split("\n...\n"):
        old = "\n".join(line[1:] for line in hunk.split("\n") if not line.startswith("+"))
        new = "\n".join(line[1:] for line in hunk.split("\n") if not line.startswith("-"))
        anchored = re.compile(rf"^{re.escape(old)}$" if old else r"(?!)", re.M)
        if not old:
            raise AssertionError(f"a hunk without a line that is there: {hunk}")
        assert len(anchored.findall(text)) == 1, hunk
        text = anchored.sub(lambda _, new=new: new, text)
    return text


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the source with what the guide says."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("bytefit", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for block in blocks_of(GUIDE):
        kind, _, path = block.info.partition(" ")
        if path and kind == "python":
            (folder / path).write_text(block.text)
        elif path and kind == "diff":
            (folder / path).write_text(apply_diff((folder / path).read_text(), block.lines))
    return folder


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def test_the_guides_technique_passes_the_tests(clone) -> None:
    said = run(clone, "pytest", "-vv", "-p", "no:cacheprovider", "tests/model", "-k", "final")
    assert int(re.search(r"(\d+) passed", said)[1]) >= 5
    assert "failed" not in said


def test_the_guides_technique_trains(clone, dataset) -> None:
    quick = ["--size", "tiny", "--steps", "6", "--seed", "1", "--data", str(dataset.folder), "--set", "score.proof_bytes=100"]
    run(clone, "bytefit", "run", "pocket", *quick, "--out", "runs/plain")
    run(clone, "bytefit", "run", "pocket", *quick, "--set", "model.final_gain={}", "--out", "runs/final-gain")
    assert "model.final_gain" in run(clone, "bytefit", "compare", "runs/plain", "runs/final-gain", "--json")
