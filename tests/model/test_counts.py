"""The full-size recipes have exactly their originals' parameters, and every parameter has one owner."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from bytefit.model.inspect import cost_by_part, num_parameters
from bytefit.model.roles import Role, role_of
from bytefit.optim.groups import assign
from bytefit.recipes import AS_SUBMITTED, RECIPES, SYSTEMS, find_recipe
from tests.model.parts import CONFIGS, random_model

NUM_PARAMETERS = {
    "baseline": 17_059_912,
    "pr128": 21_778_504,
    "pr578": 26_993_756,
    "pr606": 33_580_124,
    "pr693": 27_124_848,
    "pr1171": 33_317_980,
}
ROLES = {  # ends of names; every other parameter is a gain
    "embedding.weight": Role.TABLE,
    "table.weight": Role.TABLE,
    "projection.weight": Role.PROJECTION,
    "query.weight": Role.ATTENTION,
    "key.weight": Role.ATTENTION,
    "value.weight": Role.ATTENTION,
    "attention.out.weight": Role.ATTENTION_OUT,
    "mlp.gate.weight": Role.MLP,
    "up.weight": Role.MLP,
    "down.weight": Role.MLP,
    "head.matrix.weight": Role.HEAD,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_roles(name) -> None:
    for info in random_model(CONFIGS[name]).parameter_infos():
        expected = [role for end, role in ROLES.items() if info.name.endswith(end) and not info.name.endswith("mix_embedding")]
        assert [info.role] == (expected or [Role.GAIN]), info.name


@pytest.mark.parametrize("name", SYSTEMS)
def test_full_size_has_exactly_the_originals_parameters(name) -> None:
    assert num_parameters(find_recipe(name, "full").model) == NUM_PARAMETERS[name]
    assert num_parameters(find_recipe(name + AS_SUBMITTED, "full").model) == NUM_PARAMETERS[name]


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in RECIPES.items() for size in sizes])
def test_every_parameter_has_a_role_and_one_optimizer(name, size) -> None:
    recipe = find_recipe(name, size)
    with torch.device("meta"):
        model = recipe.model.build(orthogonalise=False)
    infos = list(model.parameter_infos())
    assert [info.parameter for info in infos] == list(model.parameters())
    owners = Counter(info.name for entry in assign(recipe.train.optimizer, infos).values() for info in entry)
    assert owners == Counter(info.name for info in infos if info.parameter.numel())
    matrices = assign(recipe.train.optimizer, infos)["matrices"]
    assert all(info.parameter.ndim == 2 for info in matrices)  # Muon takes nothing else
    assert {info.role for info in matrices} >= {Role.ATTENTION, Role.MLP}


@pytest.mark.parametrize("name", CONFIGS)
def test_inspection_counts_what_is_there(name) -> None:
    model = random_model(CONFIGS[name])
    assert num_parameters(CONFIGS[name]) == sum(p.numel() for p in model.parameters())
    rows = {row.part: row for row in cost_by_part(CONFIGS[name])}
    assert {part: (row.role, row.shape) for part, row in rows.items()} == {
        made: (role_of(p), tuple(p.shape)) for made, p in model.named_parameters()
    }
    blocks = {info.block for info in model.parameter_infos()}
    assert blocks == {None, *range(len(model.blocks))}


def test_the_eleven_layer_systems_send_66_matrices_to_their_blocks() -> None:
    """Six a block; the two small projections are on their own (Muon in some systems, Adam in others)."""
    for name, projections in (("pr578", 2), ("pr693", 2), ("pr606", 2), ("pr1171", 0)):
        recipe = find_recipe(name, "full")
        with torch.device("meta"):
            model = recipe.model.build(orthogonalise=False)
        entries = assign(recipe.train.optimizer, model.parameter_infos())
        assert len(entries["matrices"]) == 66 + projections
        assert len(entries["tables"]) == 3
        assert sum(info.role is Role.PROJECTION for info in entries["gains"]) == 2 - projections
