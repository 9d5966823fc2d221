"""A finished run for the tests of the audit."""

from __future__ import annotations

import dataclasses

import pytest

from bytefit.recipes import find_recipe
from bytefit.run.folder import RunFolder
from bytefit.run.pipeline import run
from tests.conftest import ONE_RANK


@pytest.fixture(scope="session")
def finished(dataset, tmp_path_factory) -> RunFolder:
    """A run of a system that adapts; tests read it and must not change it."""
    out = tmp_path_factory.mktemp("runs") / "pr578"
    recipe = find_recipe("pr578", "tiny")
    recipe = dataclasses.replace(recipe, score=dataclasses.replace(recipe.score, max_bytes=6000, proof_bytes=2000))
    run(recipe, data=dataset.folder, out=out, resume=False, ranks=ONE_RANK)
    return RunFolder(out)
