from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import pytest

from bytefit.quant.codes import trellis_points
from bytefit.quant.grid import EqualDamageGrid
from bytefit.quant.trellis_tables import TRELLIS
from bytefit.quant.viterbi import LOWEST_SPREAD, PRICES, choose_column
from tests.quant import reference
from tests.quant.tools import quantise

SPREADS = len(PRICES)


def machine(states: int) -> tuple[np.ndarray, np.ndarray]:
    """Transitions, and which row of the prices each state's codes are paid by."""
    if states == 1:
        return np.zeros((1, 2), dtype=np.int64), np.array([0])
    following = np.array([reference.FOLLOWING[states][state] for state in range(states)], dtype=np.int64)
    return following, np.array([2 if state in reference.ODD_STATES[states] else 1 for state in range(states)])


def choose(targets: np.ndarray, spreads: np.ndarray, states: int, prices: np.ndarray, weight: float) -> np.ndarray:
    following, quantisers = machine(states)
    back, chosen = np.empty((len(targets), states), dtype=np.uint8), np.empty((len(targets), states), dtype=np.int32)
    codes = np.empty(len(targets), dtype=np.int32)
    choose_column(
        targets.astype(np.float32), spreads, following, quantisers, prices, weight, np.ones(0, dtype=np.bool_), back, chosen, codes
    )
    return codes


def cost_of(codes: list[int], targets: np.ndarray, spreads: np.ndarray, states: int, prices: np.ndarray, weight: float) -> float:
    points, visited = reference.walk(codes, states)
    quantisers = machine(states)[1]
    errors = sum((float(target) - point) ** 2 for target, point in zip(targets, points, strict=True))
    bits = sum(float(prices[spread, quantisers[state], abs(code)]) for spread, state, code in zip(spreads, visited, codes, strict=True))
    return errors + weight * bits


@pytest.mark.parametrize("states", [4, 8])
def test_tables_are_those_of_the_standard(states) -> None:
    following, quantiser = TRELLIS[states]
    assert {state: tuple(row) for state, row in enumerate(following.tolist())} == reference.FOLLOWING[states]
    assert tuple(np.flatnonzero(quantiser)) == reference.ODD_STATES[states]


@pytest.mark.parametrize("states", [4, 8])
def test_points_follow_the_state_machine(states) -> None:
    codes = np.random.default_rng(0).integers(-9, 10, size=(60, 12)).astype(np.int32)
    points = trellis_points(codes, states)
    for column in range(12):
        assert points[:, column].tolist() == reference.walk(codes[:, column].tolist(), states)[0]


@pytest.mark.parametrize("weight", [0.0, 0.35, 1.5])
@pytest.mark.parametrize("states", [1, 4, 8])
def test_the_path_is_the_best_of_all(states, weight) -> None:
    """Against every sequence of codes -2...2, under made-up prices that differ by spread, quantiser and magnitude."""
    rng = np.random.default_rng(states)
    rows = 5
    width = 1.0 if states == 1 else 2.0
    found = set()
    for trial in range(12):
        rise = 0.5 + np.cumsum(0.3 + 2 * rng.random((SPREADS, 3, 256)), axis=2)
        prices = rise.astype(np.float32)
        spreads = rng.integers(0, SPREADS, size=rows)
        targets = np.clip(width * rng.normal(size=rows) * (0.5 + trial / 12), -1.6 * width, 1.6 * width).astype(np.float32)
        ours = choose(targets, spreads, states, prices, weight).tolist()
        best = min(cost_of(list(codes), targets, spreads, states, prices, weight) for codes in itertools.product(range(-2, 3), repeat=rows))
        assert cost_of(ours, targets, spreads, states, prices, weight) == pytest.approx(best, rel=1e-5, abs=1e-5)
        found.update(ours)
    assert len(found) >= 3


@pytest.mark.parametrize("states", [1, 4, 8])
def test_the_path_is_the_best_under_its_own_prices(states) -> None:
    rng = np.random.default_rng(10 + states)
    for _ in range(8):
        spreads = rng.integers(-8 - LOWEST_SPREAD, 4 - LOWEST_SPREAD, size=5)
        targets = np.clip(rng.normal(size=5) * (1 if states == 1 else 2), -3, 3).astype(np.float32)
        ours = choose(targets, spreads, states, PRICES, 0.37).tolist()
        best = min(cost_of(list(codes), targets, spreads, states, PRICES, 0.37) for codes in itertools.product(range(-2, 3), repeat=5))
        assert cost_of(ours, targets, spreads, states, PRICES, 0.37) == pytest.approx(best, rel=1e-5, abs=1e-5)


def test_large_targets_get_large_codes() -> None:
    targets = np.array([3000.3, -2999.6, 0.2, 501.0], dtype=np.float32)
    for states in (1, 4, 8):
        codes = choose(targets, np.full(4, 40), states, PRICES, 0.0)
        points = reference.walk(codes.tolist(), states)[0]
        assert np.abs(points - targets).max() <= (0.5 if states == 1 else 2.0)


def test_prices_are_those_of_a_normal_with_tails() -> None:
    """By numerical integration of 97 % of a normal and 3 % of one three times as wide, over cells that leave nothing out."""

    def mass(low: float, high: float, spread: float) -> float:
        x = np.linspace(low, high, 2001)
        density = sum(
            share * np.exp(-((x / (spread * f)) ** 2) / 2) / (spread * f * math.sqrt(2 * math.pi)) for share, f in ((0.97, 1), (0.03, 3))
        )
        return float(np.sum((density[1:] + density[:-1]) / 2) * (x[1] - x[0]))

    for quarters in (-8, 0, 5, 12):
        spread = 2 ** (quarters / 4)
        for quantiser in range(3):
            priced = PRICES[quarters - LOWEST_SPREAD, quantiser]
            shares = 2.0 ** -priced.astype(np.float64)
            assert shares[0] + 2 * shares[1:].sum() == pytest.approx(1, abs=2e-4)  # a price that wastes nothing
            for code in range(6):
                # In steps. The odd quantiser's points are 0, 0.5, 1.5...: its cells begin half a step earlier, its zero at a quarter.
                low, high = (code - 0.5, code + 0.5) if quantiser < 2 else (max(code - 1, 0.25), code) if code else (-0.25, 0.25)
                want = mass(low, high, spread)
                if want > 1e-9:
                    assert shares[code] == pytest.approx(want, rel=1e-3)


def gap(states: int, step: float, rate_weight: float = 1.0, rescale: Literal["none", "matrix"] = "none") -> tuple[float, float]:
    """Bits a weight over the limit 0.5·log2(variance / error) for normal numbers, and bits a weight."""
    W = np.random.default_rng(5).normal(size=(2000, 10)).astype(np.float32)
    grid = EqualDamageGrid(step=step, row_factors=False, trellis=states, rate_weight=rate_weight, damp=0.0, rescale=rescale)
    codes = quantise(W, grid, H=np.eye(W.shape[1]))
    quantisers = np.zeros(codes.codes.shape, dtype=int)
    if states:
        visited = [reference.walk(column.tolist(), states)[1] for column in codes.codes.T]
        quantisers = np.isin(np.array(visited).T, reference.ODD_STATES[states]).astype(int)
    parts = [codes.codes[quantisers == q] for q in (0, 1)]
    bits = sum(part.size * reference.entropy_bits(part) for part in parts if part.size) / W.size
    error = np.mean((W.astype(np.float64) - codes.weights()) ** 2)
    return bits - 0.5 * math.log2(np.mean(W.astype(np.float64) ** 2) / error), bits


def test_a_trellis_comes_nearer_to_the_limit() -> None:
    """Uniform steps and an ideal entropy coder stay a quarter of a bit above the limit; 4 states leave 0.15 and 8 states 0.12."""
    scalar, bits = gap(0, 0.5)
    assert 2.5 < bits < 3.5
    four, bits = gap(4, 0.75)
    assert 2.5 < bits < 3.5
    eight, bits = gap(8, 0.75)
    assert 2.5 < bits < 3.5
    assert scalar < 0.26
    assert four < 0.16
    assert eight < 0.13
    assert eight < four - 0.01 < scalar - 0.06


@pytest.mark.parametrize("states", [0, 4, 8])
def test_an_eye_on_the_price_pays_at_low_rate(states) -> None:
    step = 1.6 if states == 0 else 2.2
    watched, bits = gap(states, step, 1.0)
    blind, more_bits = gap(states, step, 0.0)
    assert bits < more_bits - 0.05
    assert 0.7 < bits < 1.6
    assert watched < blind


@pytest.mark.parametrize("states", [0, 4, 8])
def test_scaling_the_matrix_again_pays_at_low_rate(states) -> None:
    """At no price at all: the codes, and so the bits, stay."""
    step = 1.6 if states == 0 else 2.2
    plain, bits = gap(states, step, 0.0)
    scaled, same_bits = gap(states, step, 0.0, "matrix")
    assert same_bits == bits
    assert scaled < plain - 0.05
