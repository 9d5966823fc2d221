from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bytefit.model.head import HeadConfig
from bytefit.model.roles import ParameterInfo, Role, parameter
from bytefit.optim.groups import AdamConfig, MuonConfig, OptimizerConfig, Optimizers, assign
from bytefit.recipes import RECIPES, find_recipe

CONFIG = OptimizerConfig(matrices=MuonConfig(lr=0.1), tables=AdamConfig(lr=0.2), gains=AdamConfig(lr=0.3))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_exactly_one_optimizer_group(name, tied) -> None:
    recipe = find_recipe(name, "tiny")
    model = dataclasses.replace(recipe.model, head=HeadConfig(tied=tied)).build()
    infos = list(model.parameter_infos())
    assigned = assign(recipe.train.optimizer, infos)
    assert sorted(info.name for group in assigned.values() for info in group) == sorted(name for name, _ in model.named_parameters())
    optimizers = Optimizers(recipe.train.optimizer, infos, torch.float32)
    held = [id(p) for part in (optimizers.muon, optimizers.adam) for group in part.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_projections_of_side_tables_go_where_the_system_sent_them() -> None:
    """Muon in PR #578 and #693, scalar AdamW in PR #1171."""
    for name, entry in (("pr578", "matrices"), ("pr693", "matrices"), ("pr1171", "gains")):
        recipe = find_recipe(name, "tiny")
        assigned = assign(recipe.train.optimizer, recipe.model.build().parameter_infos())
        found = {group for group, infos in assigned.items() if any(info.role is Role.PROJECTION for info in infos)}
        assert found == {entry}


def test_learning_rates_and_momentum_reach_their_groups() -> None:
    optimizers = Optimizers(CONFIG, find_recipe("pocket", "tiny").model.build().parameter_infos(), torch.float32)
    for group in [*optimizers.muon.param_groups, *optimizers.adam.param_groups]:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizers.step(lr_scale=0.5, step=250)
    assert {group["lr"] for group in optimizers.muon.param_groups} == {0.05}
    assert optimizers.muon.param_groups[0]["momentum"] == pytest.approx(0.9)  # half way from 0.85 to 0.95 in 500 steps
    assert [group["lr"] for group in optimizers.adam.param_groups] == [0.1, 0.15]


@pytest.mark.parametrize("when", ["after averaging", "before averaging"])
@pytest.mark.parametrize("norm", [0.5, 1e6])
def test_clipping_scales_the_global_norm_over_all_optimizers(when, norm) -> None:
    """Adam with a large eps moves in proportion to its gradient, so its step shows the factor; Muon's momentum holds its gradient."""
    torch.manual_seed(0)
    matrix, vector = parameter(torch.zeros(6, 4), Role.MLP), parameter(torch.zeros(5), Role.GAIN)
    infos = [ParameterInfo("m", matrix, Role.MLP, None), ParameterInfo("v", vector, Role.GAIN, None)]
    config = dataclasses.replace(
        CONFIG, gains=AdamConfig(lr=1.0, eps=1e6), matrices=MuonConfig(lr=0.1, momentum_start=0.0), clip_norm=norm, clip_when=when
    )
    optimizers = Optimizers(config, infos, torch.float32)
    matrix.grad, vector.grad = torch.randn(6, 4), torch.randn(5)
    g, h = matrix.grad.clone(), vector.grad.clone()
    factor = min(1.0, norm / math.sqrt(float(g.square().sum() + h.square().sum())))
    optimizers.step(lr_scale=1.0, step=0)
    assert torch.allclose(vector, -h * factor / 1e6, rtol=1e-4)
    assert torch.allclose(optimizers.muon.state_tensors()["0.momentum"][0], g * factor, rtol=1e-4)


def test_adamw_decay_is_decoupled_and_reaches_gains() -> None:
    vector, matrix = parameter(torch.ones(3), Role.GAIN), parameter(torch.ones(2, 2), Role.MLP)
    infos = [ParameterInfo("v", vector, Role.GAIN, None), ParameterInfo("m", matrix, Role.MLP, None)]
    config = dataclasses.replace(CONFIG, gains=AdamConfig(lr=0.1, weight_decay=0.04), matrices=MuonConfig(lr=0.1, weight_decay=0.04))
    optimizers = Optimizers(config, infos, torch.float32)
    vector.grad, matrix.grad = torch.zeros(3), torch.zeros(2, 2)
    optimizers.step(lr_scale=0.5, step=0)
    assert torch.allclose(vector, torch.full((3,), 1 - 0.05 * 0.04))
    assert torch.allclose(matrix, torch.full((2, 2), 1 - 0.05 * 0.04))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MuonConfig(lr=-1), "lr -1"),
        (lambda: MuonConfig(lr=1, momentum=1.0), "momentum 0.85 to 1.0"),
        (lambda: MuonConfig(lr=1, iterations=0), "iterations 0"),
        (lambda: MuonConfig(lr=1, mousse_beta=1.0), "mousse_beta 1.0"),
        (lambda: MuonConfig(lr=1, momentum_warmup_steps=-3), "momentum_warmup_steps -3"),
        (lambda: AdamConfig(lr=1, weight_decay=-0.1), "weight_decay -0.1"),
        (lambda: dataclasses.replace(CONFIG, clip_norm=0.0), "clip_norm 0.0"),
    ],
)
def test_bad_settings_are_named(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_adams_own_settings_reach_it() -> None:
    config = dataclasses.replace(CONFIG, gains=AdamConfig(lr=0.3, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.7))
    optimizers = Optimizers(config, find_recipe("pocket", "tiny").model.build().parameter_infos(), torch.float32)
    tables, gains = optimizers.adam.param_groups
    assert (gains["betas"], gains["eps"], gains["weight_decay"]) == ((0.5, 0.6), 1e-3, 0.7)
    assert tables["betas"] == AdamConfig(lr=0.2).betas
