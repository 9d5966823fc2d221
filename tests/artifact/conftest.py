from __future__ import annotations

import dataclasses

import pytest

from bytefit.recipes import find_recipe
from tests.artifact.tools import spread_out


@pytest.fixture(scope="module")
def tiny(dataset):
    return spread_out(find_recipe("pocket", "tiny"), dataset)


@pytest.fixture(scope="module")
def rich(dataset):
    """Side tables, a value embedding, an untied head."""
    recipe = find_recipe("pr693", "tiny")
    head = dataclasses.replace(recipe.model.head, tied=False)
    bigram = dataclasses.replace(recipe.model.bigram, buckets=40)
    return spread_out(dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, head=head, bigram=bigram)), dataset)
