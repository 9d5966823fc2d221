from __future__ import annotations

import numpy as np
import pytest

from bytefit.errors import UserError
from bytefit.quant.grid import RowGrid, StepGrid, quantise

WEIGHTS = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32) * np.linspace(0.1, 3, 20)[:, None].astype(np.float32)


@pytest.mark.parametrize("levels", [1, 15, 31, 127])
def test_row_grid_rounds_to_the_nearest_point(levels) -> None:
    codes = quantise(WEIGHTS, RowGrid(levels=levels))
    assert codes.codes.min() >= -levels
    assert codes.codes.max() <= levels
    assert (np.abs(codes.codes).max(axis=1) == levels).all()
    assert (codes.scales == codes.scales.astype(np.float16)).all()
    error = np.abs(codes.weights() - WEIGHTS)
    assert (error <= codes.scales[:, None] * 0.5 + 1e-3 * np.abs(WEIGHTS)).all()


def test_step_grid_has_one_step_and_no_end() -> None:
    codes = quantise(WEIGHTS, StepGrid(fineness=6.0))
    assert codes.scales.shape == (1,)
    rms = np.sqrt((WEIGHTS.astype(np.float64) ** 2).mean())
    assert codes.scales[0] == pytest.approx(rms / 6)
    assert np.abs(codes.weights() - WEIGHTS).max() <= codes.scales[0] * 0.5001


@pytest.mark.parametrize("grid", [RowGrid(levels=31), StepGrid(fineness=4.0)])
def test_dial_makes_it_finer(grid) -> None:
    errors = [np.square(quantise(WEIGHTS, grid, dial).weights() - WEIGHTS).mean() for dial in (0.25, 0.5, 1.0, 2.0, 4.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


@pytest.mark.parametrize("grid", [RowGrid(levels=31), StepGrid(fineness=4.0)])
def test_zero_rows_and_bad_weights(grid) -> None:
    zero = np.zeros((3, 5), dtype=np.float32)
    assert (quantise(zero, grid).weights() == 0).all()
    bad = WEIGHTS.copy()
    bad[0, 0] = np.nan
    with pytest.raises(UserError, match="NaN"):
        quantise(bad, grid)
