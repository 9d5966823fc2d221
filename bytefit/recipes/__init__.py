"""Recipes by name. A recipe is a function that returns one complete ``Recipe``; a variant replaces fields of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bytefit.errors import UserError
from bytefit.recipes import baseline, pocket
from bytefit.recipes.recipe import Recipe

RECIPES: dict[str, Mapping[str, Callable[[], Recipe]]] = {"pocket": pocket.SIZES, "baseline": baseline.SIZES}


def find_recipe(name: str, size: str | None = None) -> Recipe:
    """The named recipe at a size (without one: ``lab``).

    Raises:
        UserError: unknown name or size; lists the known ones.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; known recipes: {', '.join(RECIPES)}")
    sizes = RECIPES[name]
    wanted = size or "lab"
    if wanted not in sizes:
        raise UserError(f"recipe {name!r} has no size {wanted!r}; it has: {', '.join(sizes)}")
    return sizes[wanted]()
