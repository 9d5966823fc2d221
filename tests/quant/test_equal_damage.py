from __future__ import annotations

import decimal
import itertools
import math
from typing import Any

import numpy as np
import pytest

from bytefit.quant import equal_damage
from bytefit.quant.codes import Codes, LogSteps
from bytefit.quant.gptq import Gptq
from bytefit.quant.grid import EqualDamageGrid, RowGrid, StepGrid
from bytefit.quant.prune import PruneConfig
from bytefit.quant.viterbi import LOWEST_SPREAD
from tests.quant import reference
from tests.quant.tools import normal_weights, quantise, second_moment, uneven_inputs

COLS = 30
W = normal_weights(50, COLS, seed=3, spread=0.3)
H = second_moment(uneven_inputs(400, COLS, seed=4))
ROWS = np.exp(np.random.default_rng(5).normal(size=50)).astype(np.float32)


def exact_steps(codes: Codes) -> np.ndarray:
    assert isinstance(codes.steps, LogSteps)
    parts = codes.steps.parts
    return codes.steps.base * 2.0 ** (codes.steps.rows[:, None] / parts) * 2.0 ** (codes.steps.columns[None, :] / parts)


def grid_of(**settings: Any) -> EqualDamageGrid:
    """Steps as the formula gives them, not fitted to the codes afterwards."""
    return EqualDamageGrid(**({"rescale": "none"} | settings))


@pytest.mark.parametrize("dial", [1.0, 3.0])
@pytest.mark.parametrize("row_factors", [True, False])
@pytest.mark.parametrize("trellis", [0, 4, 8])
def test_steps_make_every_error_cost_the_same(trellis, row_factors, dial) -> None:
    """c / (L_jj · sqrt(G_ii)), each exponent to the nearest quarter octave (half of that for a trellis, which takes turns)."""
    damped = reference.damped(H, 0.002)
    left = reference.conditional_diagonal(damped, reference.order_of(H, "descending"))
    rows = ROWS + ROWS.mean() / 20  # no row counts for nothing
    want = 0.003 / dial / np.sqrt(left)[None, :] / (np.sqrt(rows)[:, None] if row_factors else np.ones((50, 1)))
    grid = grid_of(step=0.003, row_factors=row_factors, trellis=trellis, damp=0.002)
    codes = quantise(W, grid, H=H, rows=ROWS, dial=dial)
    octaves = np.log2(exact_steps(codes) * (2 if trellis else 1) / want)
    assert np.abs(octaves).max() <= (0.25 if row_factors else 0.125) + 1e-4
    # Rounded for themselves, not shifted: neither rows nor columns lean to one side.
    assert abs(octaves.mean()) < 0.05
    assert np.abs(codes.steps.columns).max() <= 8 * math.log2(left.max() / left.min())
    assert abs(np.median(codes.steps.columns)) <= 1
    assert abs(np.median(codes.steps.rows)) <= 1


def test_a_row_that_never_mattered_still_counts_a_little() -> None:
    rows = np.ones(50, dtype=np.float32)
    rows[7] = 0
    codes = quantise(W, grid_of(step=0.01), H=H, rows=rows)
    assert codes.steps.rows[7] == codes.steps.rows[0] + 9  # sqrt(1.05 / 0.05) is 2.2 octaves
    assert quantise(W, grid_of(step=0.01), H=H, rows=0 * rows).steps.rows.tolist() == [0] * 50


@pytest.mark.parametrize("columns", [30, 150])
def test_without_trellis_and_prices_it_is_plain_successive_cancellation(columns) -> None:
    """150 columns are more than one block."""
    weights = normal_weights(20, columns, seed=6)
    moment = second_moment(uneven_inputs(600, columns, seed=7))
    grid = grid_of(step=0.02, trellis=0, rate_weight=0.0, damp=0.001)
    codes = quantise(weights, grid, H=moment, rows=ROWS[:20])
    damped, order = reference.damped(moment, 0.001), reference.order_of(moment, "descending")
    want = reference.brain_surgeon(weights, exact_steps(codes), -(1 << 20), 1 << 20, damped, order)
    assert len(np.unique(want)) > 10
    assert (codes.codes != want).mean() < 0.005
    assert (codes.codes != want).any(1).sum() <= 2


@pytest.mark.parametrize("trellis", [4, 8])
def test_errors_are_handed_on_with_a_trellis_too(trellis) -> None:
    """Of everything that the columns before it left over, each column is charged with its own rounding only: at most a step or so."""
    codes = quantise(W, grid_of(step=0.003, trellis=trellis, rate_weight=0.0), H=H, rows=ROWS)
    shares = column_damage(W, codes, H, 1e-3, ROWS)
    assert shares.max() < 1.5 * 0.27 * 0.0015**2 * 50  # 0.27 half steps squared a weight, however uneven the inputs are


def column_damage(weights: np.ndarray, codes: Codes, moment: np.ndarray, damp: float, rows: np.ndarray) -> np.ndarray:
    """The damage ``Σ rows · δ H δᵀ`` as a sum of squares, one a column: what the columns before it in the order do not explain."""
    order = reference.order_of(moment, "descending")
    backwards = order[::-1]
    lower = np.linalg.cholesky(reference.damped(moment, damp)[np.ix_(backwards, backwards)])
    parts = (weights.astype(np.float64) - codes.weights())[:, backwards] @ lower
    out = np.empty(len(order))
    out[backwards] = (rows[:, None] * parts**2).sum(0)
    return out


def test_every_column_takes_the_same_damage() -> None:
    weights = normal_weights(400, COLS, seed=8, spread=0.0)
    rows = np.ones(400)
    equal = quantise(weights, grid_of(step=0.02, trellis=0, rate_weight=0.0, damp=0.01, row_factors=False), H=H)
    single = quantise(weights, StepGrid(fineness=4.0), Gptq(damp=0.01), H=H)
    shares, single_shares = (column_damage(weights, codes, H, 0.01, rows) for codes in (equal, single))
    assert shares.sum() == pytest.approx(
        np.einsum("ij,jk,ik->", weights - equal.weights(), reference.damped(H, 0.01), weights - equal.weights()), rel=1e-4
    )
    assert shares.max() / shares.min() < 2
    assert single_shares.max() / single_shares.min() > 20


def bits_at_equal_damage(weights: np.ndarray, codes: Codes, moment: np.ndarray) -> float:
    """Bits a weight for an ideal coder that knows each column, at a damage of one: at high rate a bit is a factor of four."""
    delta = weights.astype(np.float64) - codes.weights()
    damage = np.mean(np.sum(delta @ moment * delta, axis=1))
    bits = np.mean([reference.entropy_bits(column) for column in codes.codes.T])
    assert 1.5 < bits < 6
    return bits + 0.5 * math.log2(damage)


@pytest.mark.parametrize(("spread", "saves"), [(1.0, 0.2), (0.0, 0.0)])
def test_uneven_inputs_make_it_cheaper_than_steps_a_row(spread, saves) -> None:
    weights = normal_weights(3000, 16, seed=9, spread=0.0)
    moment = second_moment(uneven_inputs(400, 16, seed=10, spread=spread))
    rows = bits_at_equal_damage(weights, quantise(weights, RowGrid(lowest=-7, highest=7), Gptq(damp=0.001), H=moment), moment)
    equal = bits_at_equal_damage(
        weights, quantise(weights, grid_of(step=0.05, row_factors=False, trellis=0, rate_weight=0.0), H=moment), moment
    )
    assert equal < rows - saves


def test_the_rate_weight_lowers_the_entropy_at_the_same_steps() -> None:
    weights = normal_weights(2000, 16, seed=9, spread=0.0)
    moment = second_moment(uneven_inputs(400, 16, seed=10))
    bits, steps = [], []
    for rate_weight in (0.0, 0.5, 1.0, 2.0):
        codes = quantise(weights, grid_of(step=0.3, row_factors=False, trellis=0, rate_weight=rate_weight), H=moment)
        bits.append(np.mean([reference.entropy_bits(column) for column in codes.codes.T]))
        steps.append(exact_steps(codes))
    assert all(b < a - 0.01 for a, b in itertools.pairwise(bits))
    assert all(np.array_equal(steps[0], other) for other in steps)


@pytest.mark.parametrize("trellis", [0, 4, 8])
def test_prices_are_looked_up_by_the_spread_that_codes_have(trellis, monkeypatch) -> None:
    """In steps of the quantiser: a trellis has two half steps in each."""
    seen = []

    def round_block(targets, originals, carry, widths, spreads, *others):
        seen.append(2.0 ** ((spreads.astype(float) + LOWEST_SPREAD) / 4))
        return real(targets, originals, carry, widths, spreads, *others)

    real = equal_damage._round_block
    monkeypatch.setattr(equal_damage, "_round_block", round_block)
    weights = normal_weights(400, COLS, seed=8, spread=0.0)
    codes = quantise(weights, grid_of(step=0.015, trellis=trellis, rate_weight=0.0), H=np.eye(COLS))
    assert np.sqrt(np.mean(codes.codes**2.0)) == pytest.approx(np.mean(seen), rel=0.1)
    assert np.mean(seen) > 4


def test_columns_that_never_saw_anything_get_code_zero() -> None:
    inputs = uneven_inputs(400, COLS, seed=4)
    inputs[:, [0, 17]] = 0
    for trellis in (0, 8):
        codes = quantise(W, grid_of(step=0.01, trellis=trellis), H=second_moment(inputs), rows=ROWS)
        assert (codes.codes[:, [0, 17]] == 0).all()
        assert (codes.codes[:, 1] != 0).any()


@pytest.mark.parametrize("trellis", [0, 8])
def test_pruned_weights_stay_zero(trellis) -> None:
    keep = np.ones(W.size, dtype=bool)
    keep[np.argsort(np.abs(W).ravel(), kind="stable")[: W.size // 4]] = False
    codes = quantise(W, grid_of(step=0.003, trellis=trellis), H=H, rows=ROWS, prune=PruneConfig(share=0.25, min_size=0))
    assert (codes.weights()[~keep.reshape(W.shape)] == 0).mean() == 1


def damage(weights: np.ndarray, rounded: np.ndarray, moment: np.ndarray, rows: np.ndarray) -> float:
    delta = weights.astype(np.float64) - rounded.astype(np.float64)
    return float((rows[:, None] * (delta @ moment) * delta).sum())


COARSE_STEPS = {"step": 0.2, "trellis": 0, "rate_weight": 1.0}


def test_one_factor_for_the_matrix_is_the_least_squares_one() -> None:
    plain, fitted = (quantise(W, grid_of(**COARSE_STEPS, rescale=rescale), H=H, rows=ROWS) for rescale in ("none", "matrix"))
    assert np.array_equal(plain.codes, fitted.codes)
    assert np.allclose(exact_steps(plain) / plain.steps.base, exact_steps(fitted) / fitted.steps.base, rtol=1e-12)
    q = plain.weights().astype(np.float64)
    factor = np.sum(ROWS[:, None] * (W @ H) * q) / np.sum(ROWS[:, None] * (q @ H) * q)
    assert fitted.steps.base == pytest.approx(plain.steps.base * factor, rel=1e-4)
    assert abs(factor - 1) > 1e-3
    best = damage(W, fitted.weights(), H, ROWS)
    assert all(best < damage(W, fitted.weights() * other, H, ROWS) for other in (0.99, 1.01))


@pytest.mark.parametrize("trellis", [0, 8])
def test_a_factor_for_each_row_and_column_does_less_damage_still(trellis) -> None:
    plain, matrix, fine = (
        quantise(W, grid_of(step=0.05, trellis=trellis, rate_weight=1.0, rescale=rescale), H=H, rows=ROWS)
        for rescale in ("none", "matrix", "rows and columns")
    )
    assert np.array_equal(plain.codes, fine.codes)
    assert fine.steps.parts == 32
    left = [damage(W, codes.weights(), H, ROWS) for codes in (plain, matrix, fine)]
    assert left[2] < left[1] < left[0]
    assert np.abs(np.log2(exact_steps(fine) / exact_steps(plain))).max() < 2.1


@pytest.mark.parametrize("parts", [4, 32])
def test_weights_are_exact_products_of_powers(parts) -> None:
    """Row factor first, in fp32, then the column's: so that every machine reads the same."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-50, 51, size=(9, 11)).astype(np.int32)
    rows, columns = (rng.integers(-22 * parts, 22 * parts, size=size).astype(np.int32) for size in (9, 11))
    base = float(np.float32(0.0123))
    got = Codes(codes, LogSteps(base, rows, columns, parts)).weights()

    def power(exponent: int) -> np.float32:
        """Nearest fp32, from 60 digits."""
        with decimal.localcontext() as context:
            context.prec = 60
            return np.float32(float(decimal.Decimal(2) ** (decimal.Decimal(exponent) / parts)))

    for i in range(9):
        row = np.float32(base) * power(int(rows[i]))
        for j in range(11):
            assert got[i, j] == np.float32(np.float32(codes[i, j]) * row) * power(int(columns[j]))
            assert got[i, j] == pytest.approx(codes[i, j] * base * 2 ** ((int(rows[i]) + int(columns[j])) / parts), rel=3e-7)
