"""Fake quantisation and CROWN-Q: values and gradients against formulas written down again, and that they really run, compiled or not."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from bytefit.config import from_json, to_json
from bytefit.errors import UserError
from bytefit.model.bigram import BigramHashConfig
from bytefit.model.head import HeadConfig
from bytefit.model.language_model import LanguageModel
from bytefit.model.linear import Linear
from bytefit.model.roles import Role
from bytefit.optim.groups import Optimizers
from bytefit.optim.muon import Muon
from bytefit.quant.clip import Percentile, RowMaximum
from bytefit.quant.crown import CrownQ, CrownQConfig
from bytefit.quant.fake import FakeQuantConfig, FakeQuantiser, Rounding, SigmoidGradient, SoftRound, StraightThrough
from bytefit.quant.grid import RowGrid
from bytefit.recipes import find_recipe

STE = FakeQuantConfig(rounding=StraightThrough(), lowest=-4, highest=3, clip=Percentile(share=0.8), below=0.5)
SIGMOID = dataclasses.replace(STE, rounding=SigmoidGradient(), lowest=-3, clip=RowMaximum())
SOFT = dataclasses.replace(STE, rounding=SoftRound())
KINDS = {"straight-through": STE, "sigmoid": SIGMOID, "soft": SOFT}
LATE = 0.01  # a factor on the learning rates at which every kind is as sharp as it gets, or nearly
RECIPE = find_recipe("pocket", "tiny")


def new_model(**changes) -> LanguageModel:
    """Two blocks and a side table; nothing is zero."""
    torch.manual_seed(1)
    parts = {"vocab_size": 64, "bigram": BigramHashConfig(buckets=50, dim=16)} | changes
    model = dataclasses.replace(RECIPE.model, **parts).build()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def weights_of(quantiser: FakeQuantiser) -> list[torch.nn.Parameter]:
    return [part.weight for part in quantiser.maps]


def run(loss_of, model: LanguageModel) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss, and every parameter's gradient."""
    ids = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(2))
    model.zero_grad(set_to_none=True)
    loss = loss_of(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.float32)
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


# --- formulas, in float64 and without torch ------------------------------------------------------------------------------------


def soft_round(y: np.ndarray, a: float) -> np.ndarray:
    """A logistic step in each cell, stretched to reach from one code to the next."""
    low, place = np.floor(y), y - np.floor(y)
    step = 1 / (1 + np.exp(-2 * a * (place - 0.5)))
    first, last = 1 / (1 + np.exp(a)), 1 / (1 + np.exp(-a))
    return low + (step - first) / (last - first)


def slope(y: np.ndarray, a: float) -> np.ndarray:
    """By differences inside the cell."""
    h = 1e-6
    return (soft_round(y + h, a) - soft_round(y - h, a)) / (2 * h)


def expected(config: FakeQuantConfig, w: np.ndarray, a: float) -> tuple[np.ndarray, np.ndarray]:
    """What the matmul sees, and the factor on the gradient."""
    magnitudes = np.abs(w)
    reach = magnitudes.max(1) if isinstance(config.clip, RowMaximum) else np.quantile(magnitudes, config.clip.share, axis=1)
    scale = np.maximum(reach, 1e-8)[:, None] / config.highest
    if config.floor is not None:
        scale = np.maximum(scale, config.floor)
    y = w / scale
    hard = np.clip(np.round(y), config.lowest, config.highest) * scale
    if isinstance(config.rounding, StraightThrough):
        return hard, np.ones_like(w)
    if isinstance(config.rounding, SigmoidGradient):
        return hard, slope(y, a)
    soft = soft_round(y, a)
    inside = (soft >= config.lowest) & (soft <= config.highest)
    return np.clip(soft, config.lowest, config.highest) * scale, slope(y, a) * inside


CASES = {
    "straight-through": (STE, 0.3, 1.0),
    "row maximum": (dataclasses.replace(STE, clip=RowMaximum(), lowest=-3), 0.3, 1.0),
    "floor": (dataclasses.replace(STE, floor=0.05), 0.3, 1.0),
    "sigmoid, hot": (SIGMOID, 0.1, 1 / 2000),
    "sigmoid, cold": (SIGMOID, 0.01, 5.0),
    "sigmoid, very hot": (dataclasses.replace(SIGMOID, rounding=SigmoidGradient(tau=1e6)), 0.1, 5e-7),
    "soft, at the start": (SOFT, 0.5, 1.0),
    "soft, half-way": (SOFT, 0.25, 8.5),
    "soft, at the end": (SOFT, 0.0, 16.0),
    "soft, from the first step": (dataclasses.replace(SOFT, below=1.01), 0.5, 8.5),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_formula(name) -> None:
    config, lr_scale, a = CASES[name]
    part = Linear(40, 6, Role.MLP)
    with torch.no_grad():  # rows of different size, one of zeros; no weight on a threshold or a code, where slopes jump
        part.weight.copy_(torch.randn(6, 40, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 1, 6)[:, None])
        part.weight[2] = 0.0
    quantiser = FakeQuantiser(config, part)
    quantiser.update(0, lr_scale)
    made = part.weight_as(torch.float32)
    upstream = torch.randn(6, 40, generator=torch.Generator().manual_seed(4))
    made.backward(upstream)
    w = part.weight.detach().double().numpy()
    values, factors = expected(config, w, a)
    assert made.detach().double().numpy() == pytest.approx(values, rel=1e-5, abs=1e-6)
    off_codes = np.abs(w).argmax(1)[:, None] != np.arange(40)  # the row's maximum lies on a code, or an ulp beside it
    off_codes[2] = False  # as does every zero
    found = (part.weight.grad.double() / upstream.double()).numpy()
    assert found[off_codes] == pytest.approx(factors[off_codes], rel=1e-3, abs=1e-4)
    assert np.isfinite(found).all()
    if not isinstance(config.rounding, SoftRound):
        assert set(np.unique(np.round(values[5] / (values[5][values[5] > 0].min() or 1)))) <= set(range(-4, 4))


@pytest.mark.parametrize("a", [5e-7, 1 / 2000, 1.0, 5.0, 16.0])
def test_a_cell_is_as_long_as_before(a) -> None:
    """The mean slope over a cell is 1, so that the learning rate means the same."""
    y = torch.linspace(-3, -2, 4002)[1:-1]
    mean = float(SigmoidGradient().rounded(y, torch.tensor(a), -8, 8)[1].mean())
    assert mean == pytest.approx(1.0, abs=2e-3)


def test_blending_in() -> None:
    for config in KINDS.values():
        part = Linear(24, 4, Role.MLP)
        quantiser = FakeQuantiser(dataclasses.replace(config, ramp_steps=4), part)
        values, blends = [], []
        for steps_on in range(6):
            quantiser.update(steps_on, LATE)
            blends.append(float(quantiser.blend))
            values.append(part.weight_as(torch.float32).detach())
        assert blends == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
        whole = values[-1] - part.weight.detach()
        for blend, value in zip(blends, values, strict=True):
            assert torch.allclose(value - part.weight.detach(), blend * whole, atol=1e-6)
        quantiser.blend.fill_(0.0)
        made = part.weight_as(torch.float32)
        assert torch.equal(made, part.weight)
        made.sum().backward()
        assert torch.equal(part.weight.grad, torch.ones_like(part.weight))


def test_steps_are_the_exporters() -> None:
    w = torch.randn(8, 50) * torch.logspace(-2, 1, 8)[:, None]
    for clip in (RowMaximum(), Percentile(share=0.95)):
        steps, _ = RowGrid(lowest=-4, highest=3, clip=clip, scale_dtype="float32").steps(w, 1.0, clip)
        assert torch.allclose(dataclasses.replace(STE, clip=clip).scales(w).squeeze(-1), steps, rtol=1e-6)


# --- in a model ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("banked", [False, True], ids=["plain", "banked"])
@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_active(kind, banked) -> None:
    """On differs from off; the gradient is that at the rounded weights, times the kind's own factor."""
    model = new_model()
    if banked:
        Optimizers(RECIPE.train.optimizer, model.parameter_infos(), torch.float32)
    quantiser = FakeQuantiser(KINDS[kind], model)
    off_loss, off = run(model, model)
    quantiser.update(0, LATE)
    on_loss, on = run(model, model)
    assert on_loss != pytest.approx(off_loss, abs=1e-5)
    factors = {}
    for part in quantiser.maps:
        (factors[id(part.weight)],) = torch.autograd.grad(part.weight_as(torch.float32).sum(), part.weight)
    rounded = {id(part.weight): part.weight_as(torch.float32).detach().clone() for part in quantiser.maps}
    quantiser.update(None, 1.0)
    with torch.no_grad():
        for weight in weights_of(quantiser):
            weight.copy_(rounded[id(weight)])
    there_loss, there = run(model, model)
    assert there_loss == pytest.approx(on_loss, abs=1e-6)
    for name, weight in model.named_parameters():
        factor = factors.get(id(weight), torch.tensor(1.0))
        assert torch.allclose(on[name], there[name] * factor, rtol=1e-4, atol=1e-7), name
        if id(weight) in factors:
            assert apart(on[name], off[name]) > 0.01, name
            assert torch.equal(factor, torch.ones_like(factor)) == (kind == "straight-through"), name


class TwoMaps(torch.nn.Module):
    """As little as compiles quickly; a language model is traced in ``tests/train/test_fake_quant.py``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up, self.down = Linear(16, 24, Role.MLP), Linear(24, 16, Role.MLP)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.down(self.up(x).relu().square()) - x).square().mean()


def test_compiled_rounding_is_active_and_compiled_once() -> None:
    """Every kind, before and after the weights become views of banks: as in eager, another loss than without, no further compilation."""
    model, x = TwoMaps(), torch.randn(32, 16, generator=torch.Generator().manual_seed(2))
    weights = [model.up.weight, model.down.weight]

    def run_on(loss_of) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad(set_to_none=True)
        loss = loss_of(x)
        loss.backward()
        return float(loss.detach()), [weight.grad.clone() for weight in weights]

    compiled = torch.compile(model, dynamic=False, fullgraph=True)
    quantisers = {kind: FakeQuantiser(config, model) for kind, config in KINDS.items()}
    off_loss, off = run_on(compiled)
    for quantiser in quantisers.values():
        quantiser.update(0, 0.5)
        run_on(compiled)
        quantiser.update(None, 1.0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for banked in (False, True):
            if banked:
                Muon(weights, lr=0.1)
            for (kind, quantiser), lr_scale in itertools.product(quantisers.items(), (0.4, LATE)):
                quantiser.update(0, lr_scale)
                (loss, gradients), (eager_loss, eager) = run_on(compiled), run_on(model)
                quantiser.update(None, 1.0)
                assert loss == pytest.approx(eager_loss, rel=1e-5), kind
                assert loss != pytest.approx(off_loss, rel=1e-3), kind
                for found, expected_one, without in zip(gradients, eager, off, strict=True):
                    assert torch.allclose(found, expected_one, rtol=1e-4, atol=1e-6), kind
                    assert apart(found, without) > 0.01, kind
            assert run_on(compiled)[0] == off_loss


def test_nothing_of_the_model_changes_but_what_is_rounded() -> None:
    model = new_model(head=HeadConfig(tied=False))
    before = list(model.state_dict()), [(i.name, i.role, i.block) for i in model.parameter_infos()]
    quantiser = FakeQuantiser(STE, model)
    assert len(quantiser.maps) == 2 * 6 + 1  # query, key, value, out, up and down of both blocks, the bigram's projection
    assert all(part.rounding is None for part in quantiser.maps)
    quantiser.update(0, 0.3)
    assert all(isinstance(part.rounding, Rounding) for part in quantiser.maps)
    assert model.head.matrix.rounding is None
    assert (list(model.state_dict()), [(i.name, i.role, i.block) for i in model.parameter_infos()]) == before
    quantiser.update(None, 1.0)
    assert all(part.rounding is None for part in quantiser.maps)


def test_distance_to_the_grid() -> None:
    part = Linear(4000, 8, Role.MLP)
    quantiser = FakeQuantiser(dataclasses.replace(STE, lowest=-40, highest=40, clip=RowMaximum()), part)
    assert quantiser.distance() == pytest.approx(1 / 12, rel=0.02)  # weights lie anyhow
    quantiser.update(0, 0.3)
    rounded = part.weight_as(torch.float32).detach().clone()
    with torch.no_grad():
        part.weight.copy_(rounded)
    assert quantiser.distance() < 1e-9
    with torch.no_grad():
        part.weight[:, 1::2] += 0.25 * part.rounding.scale * (part.weight[:, 1::2] < 0)
    assert quantiser.distance() == pytest.approx(0.25**2 / 4, rel=0.1)
    clipped = FakeQuantiser(dataclasses.replace(STE, clip=Percentile(share=0.5)), part)
    assert clipped.distance() < 1 / 4  # what lies beyond the grid, many steps away, does not count


def test_dampening_pulls_towards_the_grid() -> None:
    """The gradient against autograd's, and only inside the grid and while the phase is on."""
    part = Linear(60, 5, Role.MLP)
    quantiser = FakeQuantiser(dataclasses.replace(STE, dampen=0.3), part)
    part.weight.grad = torch.ones_like(part.weight)
    quantiser.dampen()
    assert torch.equal(part.weight.grad, torch.ones_like(part.weight))
    quantiser.update(0, 0.3)
    quantiser.dampen()
    copy = part.weight.detach().clone().requires_grad_()
    codes = (copy / STE.scales(copy)).detach().round()
    inside = (codes >= -4) & (codes <= 3)
    assert 0 < int((~inside).sum()) < 30
    (0.3 * ((copy - codes * STE.scales(copy).detach()) * inside).square().sum()).backward()
    assert torch.allclose(part.weight.grad - 1, copy.grad, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lowest": 0}, "lowest 0 and highest 3"),
        ({"highest": 9999}, "highest 9999"),
        ({"floor": 0.0}, r"floor 0\.0"),
        ({"below": 0.0}, r"below 0\.0"),
        ({"ramp_steps": -1}, "ramp_steps -1"),
        ({"dampen": -0.1}, r"dampen -0\.1"),
        ({"rounding": {"type": "SigmoidGradient", "tau": 0.0}}, r"tau 0\.0"),
        ({"rounding": {"type": "SigmoidGradient", "late_tau": 1e9}}, "late_tau 1000000000"),
        ({"rounding": {"type": "SigmoidGradient", "late_below": -1}}, "late_below -1"),
        ({"rounding": {"type": "SoftRound", "start": 3, "end": 2}}, r"start 3\.0 and end 2\.0"),
        ({"rounding": {"type": "Hard"}}, "Hard"),
    ],
)
def test_bad_settings_are_named(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        from_json(FakeQuantConfig, to_json(STE) | changes)


def test_settings_survive_json() -> None:
    for config in KINDS.values():
        assert from_json(FakeQuantConfig, to_json(config)) == config


# --- CROWN-Q ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("banked", [False, True], ids=["plain", "banked"])
def test_crown_q_is_the_penalty_of_its_formula(banked) -> None:
    """Value and gradient against autograd; added once to what is there."""
    model = new_model()
    if banked:
        Optimizers(RECIPE.train.optimizer, model.parameter_infos(), torch.float32)
    _, before = run(model, model)
    penalty = CrownQ(CrownQConfig(weight=0.7, levels=15), model).add_gradient()
    maps = {name: m.weight.detach().double().requires_grad_() for name, m in model.named_modules() if isinstance(m, Linear)}
    total = sum(0.7 * (w.square().mean(1) * (w.abs().amax(1) / 15).square() / 12).sum() for w in maps.values())
    total.backward()
    assert float(penalty) == pytest.approx(float(total.detach()), rel=1e-5)
    for name, p in model.named_parameters():
        w = maps.get(name.removesuffix(".weight"))
        added = torch.zeros_like(p) if w is None else w.grad.float()
        if p.grad is not None:
            assert torch.allclose(p.grad - before[name], added, rtol=1e-4, atol=1e-7 + 1e-5 * float(before[name].abs().max())), name


def test_crown_q_gives_ties_to_the_first() -> None:
    part = Linear(3, 1, Role.MLP)
    with torch.no_grad():
        part.weight.copy_(torch.tensor([[0.5, -2.0, 2.0]]))
    part.weight.grad = torch.zeros_like(part.weight)
    CrownQ(CrownQConfig(weight=12 * 225.0), part).add_gradient()
    power = (0.25 + 4 + 4) / 3
    assert part.weight.grad[0].tolist() == pytest.approx([2 / 3 * 0.5 * 4, -2 / 3 * 2 * 4 - 2 * 2 * power, 2 / 3 * 2 * 4])


@pytest.mark.parametrize(
    ("changes", "message"), [({"weight": -1}, r"weight -1\.0"), ({"levels": 0}, "levels 0"), ({"below": 0}, "below 0")]
)
def test_bad_crown_q_settings_are_named(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        from_json(CrownQConfig, to_json(CrownQConfig()) | changes)
