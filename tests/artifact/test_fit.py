from __future__ import annotations

import dataclasses
import math
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bytefit.artifact.fit import ATTEMPTS, MAX_LOG, MIN_LOG, STUCK, solve
from bytefit.artifact.load import parse_artifact
from bytefit.artifact.pack import Packer, pack
from bytefit.errors import UserError
from bytefit.quant.calibrate import collect, nothing_known
from bytefit.quant.grid import StepGrid, integer_grid
from bytefit.quant.prune import PruneConfig
from bytefit.quant.quantise import MatrixQuant, QuantConfig
from bytefit.recipes import find_recipe


@dataclass
class Sized:
    data: range  # has a length and takes no memory


class FakePacker:
    """A known curve of bytes against octaves of the dial, with noise that depends on the position alone."""

    def __init__(self, *, weights: int, fixed: int, bits: float, slope: float = 1.0, noise: int = 8, told: float = 1.0):
        self.weights, self.fixed, self.bits, self.slope, self.noise = weights, fixed, bits, slope, noise
        self.num_codes = int(weights * told)
        self.attempts = 0

    def size(self, log_dial: float) -> int:
        bits = self.slope * math.log2(1 + 2 ** (log_dial + self.bits))  # a straight line at high rate, nothing at low
        jitter = zlib.crc32(f"{log_dial:.9f}".encode()) % (2 * self.noise + 1) - self.noise
        return max(1, self.fixed + round(self.weights / 8 * bits) + jitter)

    def at(self, dial: float) -> Sized:
        self.attempts += 1
        return Sized(range(self.size(math.log2(dial))))

    def eased(self, packed: Sized, budget: int) -> Sized:
        return packed

    def refined(self, packed: Sized, budget: int) -> Sized:
        return packed


CURVES = {
    "as real ones": {"weights": 100_000, "fixed": 3000, "bits": 4.0},
    "smooth": {"weights": 100_000, "fixed": 3000, "bits": 4.0, "noise": 0},
    "large": {"weights": 30_000_000, "fixed": 9000, "bits": 5.0},
    "steep": {"weights": 100_000, "fixed": 3000, "bits": 4.0, "slope": 5.0},
    "flat": {"weights": 100_000, "fixed": 20_000, "bits": 4.0, "slope": 0.15},
    "far off": {"weights": 100_000, "fixed": 3000, "bits": -6.0},
    "far off the other way": {"weights": 100_000, "fixed": 3000, "bits": 13.0},
    "fewer codes than it says": {"weights": 100_000, "fixed": 3000, "bits": 4.0, "told": 10.0},
    "more codes than it says": {"weights": 100_000, "fixed": 3000, "bits": 4.0, "told": 0.05},
}


@pytest.mark.parametrize("curve", CURVES)
def test_any_budget_is_met_within_a_thousandth(curve) -> None:
    rng = np.random.default_rng(0)
    packer = FakePacker(**CURVES[curve])
    least, finest = packer.size(MIN_LOG) + 100, packer.size(MAX_LOG) - 100
    attempts = []
    for budget in np.exp(rng.uniform(math.log(max(least, 17_000)), math.log(finest), size=60)).astype(int).tolist():
        packer.attempts = 0
        packed, log_dial, count = solve(packer, budget)
        assert 0.999 * budget < len(packed.data) <= budget
        assert len(packed.data) == packer.size(log_dial)
        assert count == packer.attempts <= ATTEMPTS
        attempts.append(count)
    assert np.mean(attempts) < 12


def test_a_curve_with_much_noise_is_searched_on_both_sides() -> None:
    """Compressed steps make small files jump by half a percent from one position to the next. Then any position near by may be the one, as
    long as no attempt is spent on one that was tried already."""
    packer = FakePacker(weights=30_000, fixed=3000, bits=4.0, noise=20)
    rng = np.random.default_rng(1)
    for budget in rng.integers(14_000, 30_000, size=40).tolist():
        positions = []
        real = packer.at
        packer.at = lambda dial, real=real, positions=positions: (positions.append(dial), real(dial))[1]
        packed, _, _ = solve(packer, budget)
        packer.at = real
        assert len(set(positions)) == len(positions)
        assert 0.999 * budget < len(packed.data) <= budget


@pytest.mark.parametrize("seed", range(3))
def test_a_handful_of_attempts_is_enough_for_curves_like_the_real_ones(seed) -> None:
    rng = np.random.default_rng(seed)
    packer = FakePacker(weights=1_000_000, fixed=5000, bits=5.0)
    counts = [solve(packer, int(budget))[2] for budget in rng.uniform(300_000, 1_200_000, size=20)]
    assert np.mean(counts) <= 6
    assert max(counts) <= 12


def test_the_budget_is_never_exceeded_by_a_byte() -> None:
    """Whatever the curve does: jumps leave a gap, and then the file is the largest that was seen below it."""

    class Jump(FakePacker):
        def size(self, log_dial: float) -> int:
            return super().size(log_dial) + (9000 if log_dial > 0.3 else 0)

    packer = Jump(weights=100_000, fixed=3000, bits=4.0)
    below = packer.size(0.3)
    for budget in (below + 50, below + 4000, below + 8900):
        packed, log_dial, _ = solve(packer, budget)
        assert below - 100 < len(packed.data) <= budget
        assert log_dial <= 0.3


def test_an_impossible_budget_names_the_least() -> None:
    packer = FakePacker(**CURVES["smooth"])
    least = packer.size(MIN_LOG)
    with pytest.raises(UserError, match=f"a budget of {least - 1:,} bytes is impossible .* the least it packs into is {least:,} bytes"):
        solve(packer, least - 1)
    assert len(solve(packer, least)[0].data) <= least


def test_a_budget_beyond_the_finest_says_so(capsys) -> None:
    packer = FakePacker(**CURVES["smooth"])
    finest = packer.size(MAX_LOG)
    packed, log_dial, _ = solve(packer, 10 * finest)
    assert (len(packed.data), log_dial) == (finest, MAX_LOG)
    assert f"is more than the finest codes need; the file takes {finest:,}" in capsys.readouterr().err


def test_what_was_taken_too_much_is_given_back_once() -> None:
    class Eases(FakePacker):
        eased_from: tuple[int, ...] = ()

        def eased(self, packed: Sized, budget: int) -> Sized:
            self.eased_from += (len(packed.data),)
            return Sized(range(budget))

    packer = Eases(weights=100_000, fixed=3000, bits=4.0)
    packed, log_dial, _ = solve(packer, 40_000)
    assert packer.eased_from == (packer.size(log_dial),)
    assert len(packed.data) == 40_000


def test_where_no_position_lands_near_enough_single_matrices_do() -> None:
    class Jump(FakePacker):
        refined_after: tuple[int, ...] = ()

        def size(self, log_dial: float) -> int:
            return super().size(log_dial) + (900 if log_dial > 0.3 else 0)

        def refined(self, packed: Sized, budget: int) -> Sized:
            self.refined_after += (self.attempts,)
            return Sized(range(budget - 1))

    packer = Jump(weights=100_000, fixed=3000, bits=4.0)
    budget = packer.size(0.3) + 450
    packed, log_dial, count = solve(packer, budget)
    assert (len(packed.data), count, packer.refined_after) == (budget - 1, STUCK, (STUCK,))
    assert log_dial <= 0.3


# Real models


def model_of(name: str, dataset, **pack_changes):
    """Weights whose rows differ widely, what their matrices see, and the rest that a packer needs."""
    recipe = find_recipe(name, "tiny")
    config = dataclasses.replace(recipe.model, vocab_size=dataset.tokenizer.vocab_size)
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn_like(p) * (torch.randn(p.shape[:1] + (1,) * (p.ndim - 1)).exp() if p.ndim else 1))
    infos = list(model.parameter_infos())
    statistics = nothing_known(infos)
    if name == "pr1171":
        text = torch.from_numpy(dataset.train.read(0, 8 * 64).reshape(8, 64))
        statistics = collect(model, [text], gradients=False)
    weights = {info.name: info.parameter.detach() for info in infos}
    return weights, infos, config, dataset.tokenizer, dataclasses.replace(recipe.pack, **pack_changes), statistics


@pytest.fixture(scope="module")
def models(dataset):
    """By recipe: the model, its packer, its least and its finest size."""
    made = {}
    for name in ("pocket", "pr578", "pr1171"):
        model = model_of(name, dataset)
        *start, statistics = model
        packer = Packer(*start, statistics=statistics)
        made[name] = (model, packer, *(len(packer.at(2.0**log).data) for log in (MIN_LOG, MAX_LOG)))
    return made


def budgets(least: int, finest: int, count: int, seed: int) -> list[int]:
    """Spread evenly over the octaves between the two."""
    return np.exp(np.random.default_rng(seed).uniform(math.log(least), math.log(finest), size=count)).astype(int).tolist()


@pytest.mark.parametrize(
    ("name", "which"), [(name, i) for name, count in (("pocket", 8), ("pr578", 6), ("pr1171", 6)) for i in range(count)]
)
def test_random_budgets_of_real_models(models, name, which) -> None:
    _, packer, least, finest = models[name]
    budget = budgets(least, finest, 8, seed=len(name))[which]
    packed, _, _ = solve(packer, budget)
    assert 0.999 * budget < len(packed.data) <= budget
    assert sum(packed.parts.values()) == len(packed.data)


@pytest.mark.parametrize("name", ["pocket", "pr1171"])
def test_the_least_can_be_reached(models, name, capsys) -> None:
    (weights, infos, config, tokenizer, settings, statistics), _, least, finest = models[name]

    def packed_into(budget: int):
        return pack(weights, infos, config, tokenizer, dataclasses.replace(settings, budget_bytes=budget), statistics=statistics)

    with pytest.raises(UserError, match="is impossible for this model") as caught:
        packed_into(least // 2)
    named = int(str(caught.value).split("packs into is ")[1].split(" bytes")[0].replace(",", ""))
    assert named == least
    at_least = packed_into(named)
    assert len(at_least.data) <= named
    parse_artifact(at_least.data)
    capsys.readouterr()
    finest_of_all = packed_into(finest + 50_000)
    assert len(finest_of_all.data) == finest
    assert "is more than the finest codes need" in capsys.readouterr().err
    parse_artifact(finest_of_all.data)


@pytest.mark.parametrize("name", ["pocket", "pr578"])
def test_the_same_inputs_give_the_same_bytes(dataset, name) -> None:
    first, second = (
        pack(weights, infos, config, tokenizer, dataclasses.replace(settings, budget_bytes=30_000), statistics=statistics)
        for weights, infos, config, tokenizer, settings, statistics in (model_of(name, dataset), model_of(name, dataset))
    )
    assert first.data == second.data
    assert (first.dial, first.attempts) == (second.dial, second.attempts)


# Zeroing


def int6(**others) -> QuantConfig:
    grid = MatrixQuant(grid=integer_grid(4))
    return QuantConfig(table=grid, attention=grid, mlp=grid, projection=grid, head=grid, **others)


def test_zeroing_ones_lands_under_the_budget(dataset) -> None:
    *start, settings, statistics = model_of("pocket", dataset)
    config = dataclasses.replace(settings, quant=int6(), fit=False, codec="zlib", budget_bytes=1 << 30)
    plain = pack(*start, config, statistics=statistics)
    codes = plain.quantised.codes
    ones = sum(int((np.abs(held.codes) == 1).sum()) for held in codes.values())
    for less in (100, 900):
        budget = len(plain.data) - less
        tight = dataclasses.replace(config, budget_bytes=budget)
        packed = pack(*start, dataclasses.replace(tight, zero_ones=0.9), statistics=statistics)
        assert budget - 60 < len(packed.data) <= budget  # no more is zeroed than needed
        assert 0 < packed.zeroed < 0.9 * ones
        after = packed.quantised.codes
        assert sum(int((after[name].codes != codes[name].codes).sum()) for name in codes) == packed.zeroed
        changed = np.concatenate([codes[name].codes[after[name].codes != codes[name].codes] for name in codes])
        assert (np.abs(changed) == 1).all()
        for name, p in parse_artifact(packed.data).model.named_parameters():
            assert np.array_equal(p.detach().numpy().ravel(), packed.quantised.weights(name).ravel())
    unlimited = dataclasses.replace(config, zero_ones=0.9)
    assert pack(*start, unlimited, statistics=statistics).zeroed == 0


@pytest.mark.parametrize("zero_ones", [0.0, 0.2])
def test_where_the_recipes_own_steps_do_not_fit_the_dial_is_turned(dataset, capsys, zero_ones) -> None:
    """A training is never for nothing: steps that were to stay as they are become coarser where the budget asks for it, and it is said."""
    *start, settings, statistics = model_of("pocket", dataset)
    config = dataclasses.replace(settings, quant=int6(), fit=False, zero_ones=zero_ones, budget_bytes=1 << 30)
    whole = pack(*start, config, statistics=statistics)
    assert whole.dial == 1.0
    assert "coarser" not in capsys.readouterr().err
    packed = pack(*start, dataclasses.replace(config, budget_bytes=7000), statistics=statistics)
    assert packed.dial < 1.0
    assert 6900 < len(packed.data) <= 7000 < len(whole.data)
    assert "the budget is 7,000, so coarser ones are sought" in capsys.readouterr().err


def test_zeroing_works_together_with_the_dial(dataset) -> None:
    *start, settings, statistics = model_of("pocket", dataset)
    config = dataclasses.replace(settings, quant=int6(), codec="zlib", zero_ones=0.3, budget_bytes=12_000)
    packed = pack(*start, config, statistics=statistics)
    assert 11_988 < len(packed.data) <= 12_000


def test_prune_survives_to_the_artifact(dataset) -> None:
    weights, infos, config, tokenizer, settings, statistics = model_of("pocket", dataset)
    quant = int6(prune=PruneConfig(share=0.3, min_size=0))
    packed = pack(weights, infos, config, tokenizer, dataclasses.replace(settings, quant=quant, budget_bytes=14_000), statistics=statistics)
    for name, p in parse_artifact(packed.data).model.named_parameters():
        if name in packed.quantised.codes:
            smallest = weights[name].abs().flatten().argsort(stable=True)[: int(0.3 * p.numel())]
            assert (p.detach().flatten()[smallest] == 0).all()


def test_the_floor_is_told(dataset, capsys) -> None:
    *start, settings, statistics = model_of("pocket", dataset)
    grid = MatrixQuant(grid=dataclasses.replace(integer_grid(6), floor=0.02))
    quant = QuantConfig(table=MatrixQuant(grid=StepGrid(fineness=4)), attention=grid, mlp=grid, projection=grid, head=grid)
    packed = pack(*start, dataclasses.replace(settings, quant=quant, fit=False, budget_bytes=1 << 20), statistics=statistics)
    matrices = [w for name, w in start[0].items() if name in packed.quantised.codes and name != "embedding.weight"]
    bound = sum(int((w.abs().amax(1) / 31 < 0.02).sum()) for w in matrices)
    assert packed.quantised.floor_rows == bound > 0
    assert f"the floor under the steps binds {bound:,} of " in capsys.readouterr().err
