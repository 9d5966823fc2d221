"""The dataset of a run is found where it was; where it is gone the user is told what to name."""

from __future__ import annotations

import json
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


def test_the_embedded_corpus_is_made_again_where_its_cache_was_cleared(tmp_path) -> None:
    cache = platformdirs.user_cache_path("bytefit").resolve()
    assert data_of(started_on(cache / "embedded-0123456789ab", tmp_path)) is None
