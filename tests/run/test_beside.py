"""The dataset of a run is found where it was; where it is gone the user is told what to name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import platformdirs
import pytest

from bytefit.cli import main
from bytefit.errors import UserError
from bytefit.run.beside import data_of
from bytefit.run.folder import RunFolder


def started_on(data: Path, folder: Path) -> RunFolder:
    (folder / "env.json").write_text(json.dumps({"data": str(data)}))
    (folder / "recipe.json").write_text("{}")
    return RunFolder(folder)


def test_a_dataset_that_moved_is_asked_for(tiny_run, dataset, tmp_path, capsys) -> None:
    assert data_of(tiny_run) == dataset.folder.resolve()
    assert data_of(RunFolder(tmp_path)) is None
    gone = tmp_path / "moved"
    with pytest.raises(UserError, match=r"moved, the dataset of the run in .* is no longer there"):
        data_of(started_on(gone, tmp_path))
    (tmp_path / "recipe.json").write_text(tiny_run.recipe.read_text())
    assert main(["pack", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"bytefit: {gone}, the dataset of the run" in err
    assert len(err.splitlines()) == 1


def test_a_dataset_that_became_another_changes_no_run(tiny_run, tmp_path, capsys) -> None:
    """Built anew where it was, or the embedded corpus from other libraries: scores of it are not the run's."""
    folder = RunFolder(shutil.copytree(tiny_run.path, tmp_path / "run"))
    env = json.loads(folder.env.read_text())
    folder.env.write_text(json.dumps(env | {"dataset_sha256": "0" * 64}))
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    for verb in ("pack", "score", "prove"):
        assert main([verb, str(folder.path)]) == 2
        assert f"is not what {folder.path} was trained on" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()} == before
    assert main(["score", str(folder.path), "--data", env["data"]]) == 0  # named, it is a score of another text, and beside the run's own
    assert folder.score.read_bytes() == before["score.json"]
    assert main(["audit", str(folder.path)]) == 1
    assert "FAIL  a validation split that is short, damaged or another one" in capsys.readouterr().out


def test_the_embedded_corpus_is_made_again_where_its_cache_was_cleared(tmp_path) -> None:
    cache = platformdirs.user_cache_path("bytefit").resolve()
    assert data_of(started_on(cache / "embedded-0123456789ab", tmp_path)) is None
