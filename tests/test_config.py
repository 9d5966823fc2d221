from __future__ import annotations

import json

import pytest

from bytefit.config import apply_settings, first_difference, from_json, to_json
from bytefit.errors import UserError
from bytefit.quant.grid import RowGrid
from bytefit.recipes import RECIPES
from bytefit.recipes.recipe import Recipe

EVERY = [(name, size) for name, sizes in RECIPES.items() for size in sizes]


def test_a_key_that_is_missing_where_the_other_is_null_is_no_difference() -> None:
    assert first_difference({"a": {"x": 1}}, {"a": {"x": 1, "b": None}}) == ""
    assert first_difference({"a": {"x": 1}}, {"a": {"b": None, "x": 2}}) == "a.x is 1, not 2"


@pytest.mark.parametrize(("name", "size"), EVERY)
def test_recipes_reload_exactly(name, size) -> None:
    recipe = RECIPES[name][size]()
    assert from_json(Recipe, json.loads(json.dumps(to_json(recipe)))) == recipe
    assert (recipe.name, recipe.size) == (name, size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["train"].update(typo=1), "train: unknown key 'typo'"),
        (lambda r: r["train"].pop("seq_len"), "train: key 'seq_len' is missing"),
        (lambda r: r["model"].update(dim="8"), "model.dim: expected int, got '8'"),
        (lambda r: r["model"].update(dim=True), "model.dim: expected int, got True"),
        (lambda r: r["train"]["loader"].update(type="Magic"), "train.loader: type 'Magic' is not one of"),
        (lambda r: r["model"]["plan"][0].update(block=7), "model: plan uses blocks"),
        (lambda r: r.update(size="giant"), "size: 'giant' is not one of 'full', 'lab', 'tiny'"),
    ],
)
def test_recipes_reload_strictly(change, message) -> None:
    record = json.loads(json.dumps(to_json(RECIPES["pocket"]["tiny"]())))
    change(record)
    with pytest.raises(UserError) as caught:
        from_json(Recipe, record)
    assert message in str(caught.value)


def test_settings_replace_leaves_and_whole_parts() -> None:
    recipe = RECIPES["pocket"]["tiny"]()
    assert apply_settings(recipe, [("train.optimizer.matrices.lr", "0.5")]).train.optimizer.matrices.lr == 0.5
    changed = apply_settings(recipe, [("pack.quant.mlp.grid", '{"type": "RowGrid", "lowest": -31, "highest": 31}')])
    assert changed.pack.quant.mlp.grid == RowGrid(lowest=-31, highest=31)
    assert recipe.pack.quant.mlp != changed.pack.quant.mlp
    with pytest.raises(UserError, match=r"seed\.x: 1337 has no field 'x'"):
        apply_settings(recipe, [("seed.x", "1")])


def test_settings_that_depend_on_each_other_change_together() -> None:
    recipe = RECIPES["pocket"]["tiny"]()
    changed = apply_settings(recipe, [("train.steps", "null"), ("train.seconds", "9.5")])
    assert (changed.train.steps, changed.train.seconds) == (None, 9.5)
    changed = apply_settings(recipe, [("model.attention.num_kv_heads", "4"), ("model.attention.num_heads", "8")])
    assert changed.model.attention.num_heads == 8
