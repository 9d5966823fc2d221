from __future__ import annotations

import pytest

from bytefit.recipes import find_recipe
from tests.artifact.tools import rich_model, spread_out


@pytest.fixture(scope="module")
def tiny(dataset):
    return spread_out(find_recipe("pocket", "tiny"), dataset)


@pytest.fixture(scope="module")
def rich(dataset):
    return rich_model(dataset)
