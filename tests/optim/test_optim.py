from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from bytefit.model.head import HeadConfig
from bytefit.model.roles import Role
from bytefit.optim.average import ExponentialAverage
from bytefit.optim.groups import AdamConfig, MuonConfig, OptimizerConfig, assign, build_optimizers
from bytefit.optim.muon import Muon
from bytefit.optim.newton_schulz import orthogonalise
from bytefit.optim.schedule import Moment, WarmdownConfig, linear_warmup, lr_scale
from bytefit.recipes import find_recipe


@pytest.mark.parametrize("shape", [(12, 12), (8, 24), (24, 8)])
def test_newton_schulz_flattens_singular_values(shape) -> None:
    torch.manual_seed(0)
    stack = torch.randn(3, *shape)
    out = orthogonalise(stack, 5, torch.float32)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.3
    assert values.max() < 1.3
    assert torch.allclose(out[1], orthogonalise(stack[1:2], 5, torch.float32)[0], atol=1e-5)  # batched equals alone


def test_muon_step_equals_the_formula_and_torchs() -> None:
    """Our batched step, the formula written out, and torch.optim.Muon agree to bf16 rounding."""
    torch.manual_seed(0)
    start = [torch.randn(16, 8), torch.randn(16, 8), torch.randn(8, 16)]
    gradients = [[torch.randn_like(w) for w in start] for _ in range(3)]
    ours, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    muon = Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.01, iterations=5, dtype=torch.bfloat16)
    outside = torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True, adjust_lr_fn="original")
    by_hand, momenta = [w.clone() for w in start], [torch.zeros_like(w) for w in start]
    for step_gradients in gradients:
        for i, g in enumerate(step_gradients):
            ours[i].grad = g.clone()
            momenta[i] = 0.9 * momenta[i] + g
            update = orthogonalise((g + 0.9 * momenta[i])[None], 5, torch.float32)[0]
            by_hand[i] = (1 - 0.1 * 0.01) * by_hand[i] - 0.1 * max(1, g.shape[0] / g.shape[1]) ** 0.5 * update
            # torch averages (m <- 0.9 m + 0.1 g), a constant factor that the normalisation removes
            theirs[i].grad = g.clone()
        muon.step()
        outside.step()
    for a, b, c in zip(ours, by_hand, theirs, strict=True):
        assert torch.allclose(a, b, atol=0.02)
        assert torch.allclose(a, c, atol=0.02)


def test_muon_refuses_what_is_not_a_matrix() -> None:
    with pytest.raises(ValueError, match="takes matrices"):
        Muon([nn.Parameter(torch.zeros(3))], lr=1, momentum=0, weight_decay=0, iterations=5, dtype=torch.float32)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_exactly_one_optimizer_group(tied) -> None:
    recipe = find_recipe("baseline", "tiny")
    model = dataclasses.replace(recipe.model, head=HeadConfig(tied=tied)).build()
    infos = list(model.parameter_infos())
    assigned = assign(infos)
    assert sorted(info.name for group in assigned.values() for info in group) == sorted(name for name, _ in model.named_parameters())
    assert all(info.role in (Role.ATTENTION, Role.MLP) for info in assigned["matrices"])
    optimizers = build_optimizers(recipe.train.optimizer, infos, torch.float32)
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_learning_rates_reach_their_groups() -> None:
    config = OptimizerConfig(matrices=MuonConfig(lr=0.1), tables=AdamConfig(lr=0.2), gains=AdamConfig(lr=0.3))
    muon, adam = build_optimizers(config, find_recipe("pocket", "tiny").model.build().parameter_infos(), torch.float32)
    assert {group["base_lr"] for group in muon.param_groups} == {0.1}
    assert [group["base_lr"] for group in adam.param_groups] == [0.2, 0.3]


def test_warmdown_by_fraction() -> None:
    config = WarmdownConfig(fraction=0.5, floor=0.1)
    scales = [lr_scale(config, Moment(step, 0.0, 100, None)) for step in (0, 50, 75, 99, 100)]
    assert scales == pytest.approx([1.0, 1.0, 0.5, 0.1, 0.1])
    assert lr_scale(config, Moment(3, 75.0, None, 100.0)) == pytest.approx(0.5)


def test_warmdown_in_steps_follows_the_clock() -> None:
    """Spec 1.9: 10 s spent on 100 steps and 5 s left are 50 steps left."""
    config = WarmdownConfig(steps=200)
    assert lr_scale(config, Moment(100, 10.0, None, 15.0)) == pytest.approx(0.25)
    assert lr_scale(config, Moment(0, 0.0, None, 15.0)) == 1.0
    assert lr_scale(config, Moment(950, 0.0, 1000, None)) == pytest.approx(0.25)


def test_ramp_and_momentum_warmup() -> None:
    assert lr_scale(WarmdownConfig(fraction=0.1, ramp_steps=4), Moment(0, 0.0, 100, None)) == 0.25
    assert linear_warmup(0.8, 1.0, 10, 5) == pytest.approx(0.9)
    assert linear_warmup(0.8, 1.0, 10, 50) == 1.0


def test_schedule_needs_one_length() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        WarmdownConfig()
    with pytest.raises(ValueError, match="exactly one"):
        WarmdownConfig(fraction=0.5, steps=3)


def test_average_is_the_formula_and_leaves_the_weights_alone() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = ExponentialAverage({"p": p}, 0.9)
    with torch.no_grad():
        p += 10.0
    average.update({"p": p})
    assert torch.allclose(average.average["p"], torch.tensor([2.0, 3.0]))
    assert p.tolist() == [11.0, 12.0]
