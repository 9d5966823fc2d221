from __future__ import annotations

import numpy as np
import pytest
import torch

from bytefit.quant.codes import Codes, RowSteps
from bytefit.quant.grid import integer_grid
from bytefit.quant.low_rank import LowRankConfig, add_correction, correct
from bytefit.quant.quantise import MatrixQuant
from tests.quant.tools import config_of, metric, normal_weights, quantise_all, second_moment, uneven_inputs

NAMES = ["a", "b", "c", "d"]
WEIGHTS = {name: normal_weights(24, 20 + i, seed=i) * np.float32([1.0, 4.0, 0.5, 2.0][i]) for i, name in enumerate(NAMES)}
MOMENTS = {name: second_moment(uneven_inputs(300, 20 + i, seed=i, spread=0.5)) for i, name in enumerate(NAMES)}
METRICS = {name: metric(moment, 24) for name, moment in MOMENTS.items()}
INT3 = MatrixQuant(grid=integer_grid(3))


def damage(error: np.ndarray, name: str) -> float:
    error = error.astype(np.float64)
    return float(np.sum((error @ MOMENTS[name]) * error))


def corrected(config: LowRankConfig):
    return quantise_all(WEIGHTS, config_of(INT3, low_rank=config), METRICS)


def best_of_rank(error: np.ndarray, moment: np.ndarray, rank: int) -> np.ndarray:
    """The correction that leaves least of ``Σ δ H δᵀ``: singular values of δ H^(1/2), with H^(1/2) by its eigenvectors."""
    values, vectors = np.linalg.eigh(moment.astype(np.float64))
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    u, s, vh = np.linalg.svd(error.astype(np.float64) @ root)
    return (u[:, :rank] * s[:rank]) @ vh[:rank] @ np.linalg.inv(root)


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_only_the_worst_matrices_get_one(count) -> None:
    model = corrected(LowRankConfig(rank=2, matrices=count))
    left = {name: damage(WEIGHTS[name] - model.codes[name].weights(), name) for name in NAMES}
    worst = sorted(NAMES, key=lambda name: -left[name])
    assert set(model.corrections) == set(worst[:count])
    assert worst[0] == "b"


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_it_is_the_best_of_its_rank(rank) -> None:
    model = corrected(LowRankConfig(rank=rank, matrices=4, levels=30_000))
    for name in NAMES:
        error = WEIGHTS[name] - model.codes[name].weights()
        best = damage(error - best_of_rank(error, MOMENTS[name], rank), name)
        ours = damage(WEIGHTS[name] - model.weights(name), name)
        assert best <= ours * (1 + 1e-5)
        assert ours < best * 1.02  # the factorised moment is damped by a thousandth
        assert ours < 0.9 * damage(error, name)
        parts = model.corrections[name]
        assert [part.codes.shape for part in parts] == [(rank, 24), (rank, WEIGHTS[name].shape[1])]


def test_its_own_rounding_costs_little() -> None:
    fine, coarse = (corrected(LowRankConfig(rank=3, matrices=4, levels=levels)) for levels in (30_000, 31))
    for name in NAMES:
        plain = damage(WEIGHTS[name] - fine.codes[name].weights(), name)
        left = [damage(WEIGHTS[name] - model.weights(name), name) for model in (fine, coarse)]
        assert left[0] < left[1] < left[0] + 0.1 * (plain - left[0])
        assert max(np.abs(part.codes).max() for part in coarse.corrections[name]) == 31


def test_weights_are_the_codes_plus_products_in_order() -> None:
    model = corrected(LowRankConfig(rank=3, matrices=2))
    for name in NAMES:
        want = model.codes[name].weights()
        if name in model.corrections:
            left, right = model.corrections[name]
            for r in range(3):
                column = left.codes[r].astype(np.float32) * left.steps.values[r]
                row = right.codes[r].astype(np.float32) * right.steps.values[r]
                want = want + np.outer(column, row)
        assert np.array_equal(model.weights(name), want)
    assert np.array_equal(add_correction(WEIGHTS["a"], None), WEIGHTS["a"])


def test_a_rank_beyond_the_matrix_corrects_everything() -> None:
    model = corrected(LowRankConfig(rank=50, matrices=1, levels=30_000))
    ((name, pair),) = model.corrections.items()
    assert len(pair[0].codes) == min(WEIGHTS[name].shape)
    assert np.abs(WEIGHTS[name] - model.weights(name)).max() < 0.01 * np.abs(WEIGHTS[name] - model.codes[name].weights()).max()


def test_inputs_that_were_never_anything_but_zero() -> None:
    metrics = {"a": metric(np.zeros((20, 20)), 24), "b": METRICS["b"]}
    codes = {
        name: Codes(np.zeros(WEIGHTS[name].shape, dtype=np.int32), RowSteps(np.ones(1, dtype=np.float32), "float32")) for name in metrics
    }
    found = correct({name: WEIGHTS[name] for name in metrics}, codes, metrics, LowRankConfig(rank=2, matrices=4))
    assert "b" in found
    for name in found:
        assert np.isfinite(add_correction(codes[name].weights(), found[name])).all()


def test_nothing_left_to_correct() -> None:
    exact = torch.randint(-3, 4, (24, 20), generator=torch.Generator().manual_seed(0)).float()
    exact[:, 0] = 3
    model = quantise_all({"a": exact.numpy()}, config_of(INT3, low_rank=LowRankConfig()), METRICS)
    assert np.array_equal(model.weights("a"), exact.numpy())


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"rank": 0}, {"matrices": 0}, {"levels": 0}, {"levels": 40_000}):
        with pytest.raises(ValueError, match="must"):
            LowRankConfig(**wrong)
