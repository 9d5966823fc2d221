"""Fake quantisation and CROWN-Q in real training runs: when they are on, what they do to the weights, and that runs resume."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch

from bytefit.errors import Interrupted
from bytefit.ledger import Ledger
from bytefit.model.linear import Linear
from bytefit.optim.average import AverageConfig
from bytefit.optim.schedule import WarmdownConfig
from bytefit.quant.clip import RowMaximum
from bytefit.quant.crown import CrownQConfig
from bytefit.quant.fake import FakeQuantConfig, FakeQuantiser, SigmoidGradient, SoftRound, StraightThrough
from bytefit.quant.grid import RowGrid
from bytefit.recipes import find_recipe
from bytefit.train import loop
from bytefit.train.config import ReplayConfig
from bytefit.train.metrics import read_metrics
from bytefit.train.step import Preparation, Stepper
from tests.conftest import ONE_RANK
from tests.train.test_train import RECIPE, config, losses, new_model, same, train, train_tiny

STE = FakeQuantConfig(rounding=StraightThrough(), lowest=-3, highest=3, clip=RowMaximum(), below=0.5)
KINDS = {
    "straight-through": STE,
    "sigmoid": dataclasses.replace(STE, rounding=SigmoidGradient(tau=0.1)),
    "soft": dataclasses.replace(STE, rounding=SoftRound()),
    "damped": dataclasses.replace(STE, dampen=0.1),
}
REPLAY = ReplayConfig(batches=2, epochs=2, lr_scale=0.9)


def records(folder: Path):
    return read_metrics(folder / "metrics.jsonl")


def model_of(dataset, weights=None):
    model = new_model(dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, vocab_size=dataset.tokenizer.vocab_size)))
    if weights is not None:
        model.load_state_dict(weights)
    return model


# --- what it does to the weights ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """Weights after the same run without and with each kind of rounding."""
    folder = tmp_path_factory.mktemp("kinds")
    settings = config(steps=120, schedule=WarmdownConfig(fraction=0.6), warmup_steps=0)
    return {
        name: train_tiny(dataset, folder / str(name), dataclasses.replace(settings, fake_quant=fake))
        for name, fake in {"off": None, **KINDS}.items()
    }


def rounded_loss(dataset, weights) -> float:
    """Validation loss with the maps rounded as packing rounds them, to seven codes."""
    model = model_of(dataset, weights)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, Linear):
                steps, _ = RowGrid(lowest=-3, highest=3).steps(part.weight, 1.0, RowMaximum())
                part.weight.copy_((part.weight / steps[:, None]).round().clamp(-3, 3) * steps[:, None])
        tokens = torch.from_numpy(dataset.val.all()[: 50 * 64 + 1]).long()
        return float(model(tokens[:-1].view(-1, 64), tokens[1:].view(-1, 64)))


@pytest.mark.parametrize("kind", KINDS)
def test_rounded_weights_lose_less_after_training_with_rounding(dataset, trained, kind) -> None:
    assert rounded_loss(dataset, trained[kind]) < rounded_loss(dataset, trained["off"]) - 0.02


def test_weights_move_to_the_grid_where_something_moves_them(dataset, trained) -> None:
    """A soft slope or dampening does. The plain straight-through gradient does not: it leaves weights crowded around thresholds."""
    far = {name: FakeQuantiser(STE, model_of(dataset, weights)).distance() for name, weights in trained.items()}
    assert far["off"] == pytest.approx(1 / 12, rel=0.1)
    assert far["straight-through"] > far["off"]
    assert far["sigmoid"] < 0.9 * far["off"]
    assert far["soft"] < 0.9 * far["off"]
    assert far["damped"] < 0.4 * far["off"]


def test_distance_falls_over_the_phase_and_is_logged(dataset, tmp_path) -> None:
    settings = config(steps=120, schedule=WarmdownConfig(fraction=0.6), fake_quant=dataclasses.replace(KINDS["damped"], below=0.99))
    train_tiny(dataset, tmp_path / "a", settings)
    seen = {record["step"]: record["grid_distance"] for record in records(tmp_path / "a") if "grid_distance" in record}
    assert list(seen) == [60, 80, 100, 120]
    assert sorted(seen.values(), reverse=True) == list(seen.values())
    assert seen[120] < 0.5 * seen[60]


# --- when it is on ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch):
    """At every step: (factor on the rates, how many maps are rounded, blend, sharpness)."""
    seen, real = [], Stepper.step

    def step(self, optimizers, **options):
        quantiser = self.preparation.rounding
        rounded = sum(part.rounding is not None for part in quantiser.maps)
        seen.append((options["lr_scale"], rounded, float(quantiser.blend), float(quantiser.sharpness)))
        return real(self, optimizers, **options)

    monkeypatch.setattr(Stepper, "step", step)
    return seen


def test_on_from_its_moment_to_the_end_of_the_replay(dataset, tmp_path, watched) -> None:
    """The replay's rates are above the threshold again; rounding stays on, and as sharp as it was."""
    soft = dataclasses.replace(KINDS["soft"], ramp_steps=4)
    folder, model = tmp_path / "a", model_of(dataset)
    folder.mkdir()
    settings = config(steps=40, replay=REPLAY, fake_quant=soft, warmup_steps=0)
    train(model, settings, dataset.train, seed=5, folder=folder, ledger=Ledger(), ranks=ONE_RANK)
    first = next(i for i, (scale, *_) in enumerate(watched) if scale < 0.5)
    assert 20 < first < 36
    assert [rounded for _, rounded, *_ in watched] == [0] * first + [2 * 6] * (40 - first)
    assert [blend for _, _, blend, _ in watched[first:]] == [0.25, 0.5, 0.75] + [1.0] * (40 - first - 3)
    assert {scale for scale, *_ in watched[36:]} == {0.9}
    sharpness = [sharp for *_, sharp in watched[first:]]
    assert sharpness == sorted(sharpness)
    assert sharpness[0] < 3
    assert sharpness[-1] > 13
    assert all(part.rounding is None for part in model.modules() if isinstance(part, Linear))


def test_above_one_means_from_the_first_step(dataset, tmp_path, watched) -> None:
    train_tiny(dataset, tmp_path / "a", config(steps=6, fake_quant=dataclasses.replace(STE, below=1.01), warmup_steps=0))
    assert [rounded for _, rounded, *_ in watched] == [12] * 6


def test_a_rise_at_the_start_does_not_turn_it_on(dataset, tmp_path, watched) -> None:
    schedule = WarmdownConfig(fraction=1.0, ramp_steps=8)
    train_tiny(dataset, tmp_path / "a", config(steps=30, schedule=schedule, fake_quant=STE, crown_q=CrownQConfig(), warmup_steps=0))
    assert watched[0][0] < 0.15
    on = [rounded > 0 for _, rounded, *_ in watched]
    assert on == [False] * 16 + [True] * 14
    assert ["crown_q" in record for record in records(tmp_path / "a")] == [False] * 26 + [True] * 4


def test_until_then_the_run_is_the_same(dataset, tmp_path) -> None:
    train_tiny(dataset, tmp_path / "a", config(steps=30))
    train_tiny(dataset, tmp_path / "b", config(steps=30, fake_quant=STE, crown_q=CrownQConfig()))
    without, with_it = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert with_it[:22] == without[:22]
    assert all(one != other for one, other in zip(with_it[23:], without[23:], strict=True))


def test_rounding_is_off_where_the_average_is_chosen_and_after_an_interruption(dataset, tmp_path, monkeypatch) -> None:
    real, at_the_choice = loop.choose_weights, []

    def choose(model, *arguments, **options):
        at_the_choice.extend(part.rounding for part in model.modules() if isinstance(part, Linear))
        return real(model, *arguments, **options)

    monkeypatch.setattr(loop, "choose_weights", choose)
    average = AverageConfig(ema_decay=0.8, use="held_out", held_out_tokens=1000)
    always = config(steps=6, average=average, fake_quant=dataclasses.replace(STE, below=1.01))
    train_tiny(dataset, tmp_path / "a", always)
    assert at_the_choice == [None] * 12
    model, step, again = model_of(dataset), Stepper.step, dataclasses.replace(always, warmup_steps=0)

    def step_then_signal(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments, **options)

    monkeypatch.setattr(Stepper, "step", step_then_signal)
    (tmp_path / "b").mkdir()
    with pytest.raises(Interrupted):
        train(model, again, dataset.train, seed=5, folder=tmp_path / "b", ledger=Ledger(), ranks=ONE_RANK)
    assert all(part.rounding is None for part in model.modules() if isinstance(part, Linear))


@pytest.mark.parametrize("interrupt_at", [20, 28, 38])
def test_resumes_bit_for_bit(dataset, tmp_path, monkeypatch, interrupt_at) -> None:
    """Before the phase, while rounding is being blended in, and in the replay."""
    soft = dataclasses.replace(KINDS["soft"], ramp_steps=6, dampen=0.01)
    settings = config(steps=40, replay=REPLAY, fake_quant=soft, crown_q=CrownQConfig(weight=1.0, below=0.4))
    undisturbed = train_tiny(dataset, tmp_path / "a", settings)
    real, count = Stepper.step, []

    def step_then_signal(self, *arguments, **options):
        count.append(1)
        if len(count) == settings.warmup_steps + interrupt_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Stepper, "step", step_then_signal)
    with pytest.raises(Interrupted, match=f"step {interrupt_at}"):
        train_tiny(dataset, tmp_path / "b", settings)
    monkeypatch.setattr(Stepper, "step", real)
    assert same(train_tiny(dataset, tmp_path / "b", settings, resume=True), undisturbed)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert [r.get("crown_q") for r in records(tmp_path / "a")] == [r.get("crown_q") for r in records(tmp_path / "b")]


# --- compiled -----------------------------------------------------------------------------------------------------------------


def test_compiled_training_follows_eager_and_compiles_nothing_on_the_clock(dataset, tmp_path, monkeypatch, traced) -> None:
    """Rounding that comes on, is blended in and gets sharper: both graphs are made before the first step."""
    soft = dataclasses.replace(KINDS["soft"], ramp_steps=4)
    settings = config(steps=24, fake_quant=soft, crown_q=CrownQConfig())
    graphs, real = [], loop.warm_up

    def warm_up(*arguments):
        torch._dynamo.utils.counters.clear()
        stepper = real(*arguments)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return stepper

    monkeypatch.setattr(loop, "warm_up", warm_up)
    train_tiny(dataset, tmp_path / "eager", settings)
    train_tiny(dataset, tmp_path / "compiled", dataclasses.replace(settings, compile=True))
    assert graphs == [0, 2]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    train_tiny(dataset, tmp_path / "without", dataclasses.replace(settings, fake_quant=None))
    eager, compiled, without = (losses(tmp_path / name) for name in ("eager", "compiled", "without"))
    assert compiled == pytest.approx(eager, abs=2e-3)
    assert max(abs(a - b) for a, b in zip(eager, without, strict=True)) > 0.01


# --- CROWN-Q ------------------------------------------------------------------------------------------------------------------


def test_crown_q_lowers_its_penalty(dataset, tmp_path) -> None:
    settings = config(steps=60, schedule=WarmdownConfig(fraction=0.6))
    ends = {}
    for weight in (0.0, 300.0):
        crown_q = CrownQConfig(weight=weight, below=0.99)
        weights = train_tiny(dataset, tmp_path / str(weight), dataclasses.replace(settings, crown_q=crown_q))
        model = model_of(dataset, weights)
        for part in model.modules():
            if isinstance(part, Linear):
                part.weight.grad = torch.zeros_like(part.weight)
        ends[weight] = float(Preparation(model, dataclasses.replace(settings, crown_q=CrownQConfig(weight=1.0))).crown_q.add_gradient())
    assert ends[300.0] < 0.7 * ends[0.0]
    logged = [record["crown_q"] for record in records(tmp_path / "300.0") if "crown_q" in record]
    assert len(logged) == 35  # of 60, the first 25 at the full rate
    assert logged[-1] < logged[0]


# --- recipes ------------------------------------------------------------------------------------------------------------------


def test_recipes_state_what_the_originals_did() -> None:
    """And what never ran there is off in the form that was submitted; CROWN-Q and PR #128's rounding did run."""
    forms = {name: find_recipe(name, "full").train for name in ("baseline", "pr128", "pr578", "pr606", "pr693", "pr1171")}
    rounding = {name: made.fake_quant for name, made in forms.items() if made.fake_quant is not None}
    assert {name: (type(fake.rounding), fake.lowest, fake.highest, fake.below) for name, fake in rounding.items()} == {
        "pr128": (StraightThrough, -31, 31, 1.01),
        "pr578": (StraightThrough, -32, 31, 0.5),
        "pr606": (SoftRound, -16, 15, 0.5),
        "pr693": (SigmoidGradient, -31, 31, 0.15),
        "pr1171": (StraightThrough, -16, 15, 0.15),
    }
    assert [name for name, made in forms.items() if made.crown_q] == ["pr693"]
    ran = [name for name in forms if find_recipe(f"{name}_as_submitted", "full").train.fake_quant]
    assert ran == ["pr128"]
    assert find_recipe("pr693_as_submitted", "full").train.crown_q == CrownQConfig(weight=0.01, levels=15, below=0.15)
