"""Recipes by name. A recipe is a function that returns one complete ``Recipe``; a variant replaces fields of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from bytefit.errors import UserError
from bytefit.recipes import baseline, pocket, pr128, pr578, pr693, pr1171
from bytefit.recipes.recipe import Recipe, read_recipe
from bytefit.recipes.sizes import LAB, TINY, Known, scaled

Sizes = Mapping[str, Callable[[], Recipe]]
AS_SUBMITTED = "_as_submitted"


def _system(full: Callable[..., Recipe], known: Known, *, as_submitted: bool) -> Sizes:
    """The sizes of a contest system, in its repaired form or in the one that really ran."""

    def at(size: str) -> Recipe:
        recipe = full(as_submitted=as_submitted)
        if as_submitted:
            recipe = replace(recipe, name=recipe.name + AS_SUBMITTED)
        return recipe if size == "full" else scaled(recipe, {"lab": LAB, "tiny": TINY}[size], known)

    return {size: partial(at, size) for size in ("full", "lab", "tiny")}


SYSTEMS: dict[str, tuple[Callable[..., Recipe], Known]] = {
    "baseline": (baseline.baseline, baseline.KNOWN),
    "pr128": (pr128.pr128, pr128.KNOWN),
    "pr578": (pr578.pr578, pr578.KNOWN),
    "pr606": (pr693.pr606, pr693.KNOWN_606),
    "pr693": (pr693.pr693, pr693.KNOWN_693),
    "pr1171": (pr1171.pr1171, pr1171.KNOWN),
}

RECIPES: dict[str, Sizes] = {
    "pocket": pocket.SIZES,
    **{name: _system(full, known, as_submitted=False) for name, (full, known) in SYSTEMS.items()},
    **{name + AS_SUBMITTED: _system(full, known, as_submitted=True) for name, (full, known) in SYSTEMS.items()},
}


def find_recipe(name: str, size: str | None = None) -> Recipe:
    """The named recipe at a size (without one: ``lab``); of a ``.json`` file, the recipe that it holds.

    Raises:
        UserError: unknown name or size; lists the known ones. A file that holds no recipe, or a size beside a file.
    """
    if name.endswith(".json"):
        if size is not None:
            raise UserError(f"{name} holds a recipe of one size; leave out --size {size}")
        return read_recipe(Path(name))
    if name not in RECIPES:
        known = [known for known in RECIPES if not known.endswith(AS_SUBMITTED)]
        raise UserError(
            f"unknown recipe {name!r}; known recipes: {', '.join(known)}; the contest's also as NAME{AS_SUBMITTED}; or name a .json file"
        )
    sizes = RECIPES[name]
    wanted = size or "lab"
    if wanted not in sizes:
        raise UserError(f"recipe {name!r} has no size {wanted!r}; it has: {', '.join(sizes)}")
    return sizes[wanted]()
