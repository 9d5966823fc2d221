"""A recipe's lengths in optimizer steps, for a run of another number of steps than it was made for; as settings, so that they can be
repeated by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bytefit.config import to_json
from bytefit.recipes.recipe import Recipe
from bytefit.recipes.sizes import with_lengths


def settings_for(recipe: Recipe, factor: float) -> list[str]:
    """``train.…=…`` for a run of ``factor`` times the steps; nothing where no length changes."""
    return list(_changes(to_json(recipe.train), to_json(with_lengths(recipe.train, factor)), "train"))


def _changes(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in new:
            yield from _changes(old[key], new[key], f"{path}.{key}")
    elif old != new:
        yield f"{path}={json.dumps(new)}"
