"""Rounding with steps that make every weight's error cost the same (WaterSIC, arXiv 2603.04956), optionally along a trellis.

GPTQ's feedback leaves column j with the damage ``c_j r_j²``, where r is the plain rounding error and c_j the column's second moment given
those that are still to come (``quant/metric.py``). With one step for all columns those with large c_j take nearly all the damage, at a
price in bytes that grows without bound as the inputs get more uneven; with steps proportional to ``c_j ** -0.5`` all take the same, and
the rate is within a quarter of a bit of the limit (a tenth with eight states).
"""

from __future__ import annotations

import numpy as np
import torch

from bytefit.compiled import compiled
from bytefit.quant.codes import COARSE, FINE, Codes, LogSteps, exponents_of
from bytefit.quant.grid import MAX_CODE, EqualDamageGrid
from bytefit.quant.metric import Factor, Metric
from bytefit.quant.trellis_tables import TRELLIS
from bytefit.quant.viterbi import EVEN, HIGHEST_SPREAD, LOWEST_SPREAD, PRICES, SCALAR, choose_column

BLOCK = 64  # columns whose errors are carried on one by one; what follows gets them all at once, as one matmul
# Squared error a weight at high rate, in squared units of the targets: 1/12 of a step, and what eight and four states leave of a
# half step (measured on normal numbers); its slope against bits is -2 ln 2 times that.
ERROR = {0: 1 / 12, 4: 0.285, 8: 0.27}
SLOPE = 2 * np.log(2)
ROW_FLOOR = 0.05  # of the mean row's weight, added to each
ROUNDS, RIDGE = 3, 0.02  # of scaling rows and columns again


def round_equal_damage(
    weights: np.ndarray, metric: Metric, factor: Factor, grid: EqualDamageGrid, dial: float = 1.0, keep: np.ndarray | None = None
) -> Codes:
    """Codes of one matrix.

    Args:
        weights: float32 (rows, cols).
        keep: bool (rows, cols), False where a weight was pruned: its code stays 0.
    """
    rows = metric.rows.numpy()
    order = factor.order.numpy()
    carry = factor.carry.numpy()
    assert factor.of_weights
    steps = _steps(rows, factor, grid, dial, float(np.abs(weights).max()))
    row_steps, column_steps = steps.factors()
    targets = np.ascontiguousarray(weights[:, order].T / row_steps[None, :])  # (cols, rows), in order
    targets[factor.dead.numpy()[order]] = 0.0
    originals = targets.copy()
    widths = column_steps[order]
    spreads = _spreads(targets, widths, halves=bool(grid.trellis))
    following, quantisers = _trellis(grid.trellis)
    price = grid.rate_weight * SLOPE * ERROR[grid.trellis]
    codes = np.empty(targets.shape, dtype=np.int32)
    kept = np.ones((len(targets), 0), dtype=np.bool_) if keep is None else np.ascontiguousarray(keep[:, order].T)
    for start in range(0, len(targets), BLOCK):
        end = min(start + BLOCK, len(targets))
        errors = _round_block(
            targets[start:end], originals[start:end], carry[start:end, start:end], widths[start:end], spreads[start:end], following,
            quantisers, PRICES, price, kept[start:end], codes[start:end],
        )  # fmt: skip
        if end < len(targets):
            torch.from_numpy(targets)[end:].addmm_(factor.carry[end:, start:end], torch.from_numpy(errors))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    rounded = Codes(np.ascontiguousarray(codes[back].T), steps, grid.trellis)
    return rounded if grid.rescale == "none" else _rescaled(rounded, weights, metric, grid.rescale)


def _rescaled(rounded: Codes, weights: np.ndarray, metric: Metric, what: str) -> Codes:
    """The same codes with the steps that do least damage: rounding with an eye on the price leaves points that are not the means of what
    they stand for."""
    steps = rounded.steps
    assert isinstance(steps, LogSteps)
    w, q, columns, rows = torch.from_numpy(weights), torch.from_numpy(rounded.weights()), metric.columns, metric.rows[:, None]
    seen = w @ columns
    if what == "matrix":
        factor = float((seen * q * rows).sum() / ((q @ columns) * q * rows).sum().clamp_min(1e-30))
        return Codes(rounded.codes, LogSteps(float(np.float32(steps.base * (factor or 1.0))), steps.rows, steps.columns), rounded.trellis)
    by_row, by_column = torch.ones(len(w), 1), torch.ones(1, w.size(1))
    for _ in range(ROUNDS):
        part = q * by_column
        by_row = _towards_one((seen * part).sum(1, keepdim=True), ((part @ columns) * part).sum(1, keepdim=True))
        part = q * by_row
        # All columns' factors at once: their errors are correlated as the inputs are. A little is added so that columns that hardly
        # matter stay where they are.
        products = columns * ((part * rows).T @ part)
        diagonal = products.diagonal()
        wanted = (part * rows * seen).sum(0) - products.sum(1)
        ridge = torch.diag(RIDGE * diagonal + 1e-12 * diagonal.max() + 1e-30)
        by_column = (1 + torch.linalg.solve(products + ridge, wanted)).clamp(0.5, 2.0)[None]
    scaled = LogSteps(
        steps.base,
        (FINE // COARSE) * steps.rows + exponents_of(by_row[:, 0].numpy(), FINE),
        (FINE // COARSE) * steps.columns + exponents_of(by_column[0].numpy(), FINE),
        FINE,
    )
    return Codes(rounded.codes, scaled, rounded.trellis)


def _towards_one(product: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
    """Least-squares factors, held near one where there is nothing to go by."""
    return ((product + RIDGE * square + 1e-30) / ((1 + RIDGE) * square + 1e-30)).clamp(0.5, 2.0)


def _steps(rows: np.ndarray, factor: Factor, grid: EqualDamageGrid, dial: float, largest: float) -> LogSteps:
    """Steps as they will be stored: exponents in quarter octaves about a base."""
    diagonal = np.empty(len(factor.order))
    diagonal[factor.order.numpy()] = factor.costs.numpy()
    columns = exponents_of(diagonal**-0.5)
    if grid.row_factors:
        # A row that hardly mattered in the calibration still may in other text.
        weight = rows.astype(np.float64) + ROW_FLOOR * rows.mean() + 1e-30
        row_exponents = exponents_of(weight**-0.5)
    else:
        row_exponents = np.zeros(len(rows), dtype=np.int32)
    # Exponents are counted from their own middle, so that the coder meets small numbers.
    middle_row, middle_column = int(np.median(row_exponents)), int(np.median(columns))
    row_exponents, columns = row_exponents - middle_row, columns - middle_column
    width = 0.5 if grid.trellis else 1.0
    base = grid.step / dial * 2.0 ** ((middle_row + middle_column) / 4) * width
    # No step is so fine that codes leave their range: such columns are as good as lossless, and the others may still get finer.
    finest = largest / (MAX_CODE / 4)
    if finest > 0:
        columns = np.maximum(columns, int(np.ceil(4 * np.log2(finest / base))) - int(row_exponents.min()))
    return LogSteps(float(np.float32(base)), row_exponents, columns)


def _spreads(targets: np.ndarray, widths: np.ndarray, *, halves: bool) -> np.ndarray:
    """Index into the prices of the spread expected at each (column, row): a product of a row's and a column's."""
    energy = (targets / widths[:, None]).astype(np.float64) ** 2
    expected = energy.mean(1)[:, None] * energy.mean(0)[None, :] / max(energy.mean(), 1e-30)
    quarters = np.round(2 * np.log2(np.maximum(expected, 1e-12))) - (4 if halves else 0)
    return (np.clip(quarters, LOWEST_SPREAD, HIGHEST_SPREAD) - LOWEST_SPREAD).astype(np.uint8)


def _trellis(states: int) -> tuple[np.ndarray, np.ndarray]:
    """Transitions and quantisers; plain integers are a trellis of one state."""
    if not states:
        return np.zeros((1, 2), dtype=np.int64), np.array([SCALAR])
    following, quantiser = TRELLIS[states]
    return following.astype(np.int64), quantiser.astype(np.int64) + EVEN


@compiled(fastmath=True, nogil=True)
def _round_block(
    targets: np.ndarray,
    originals: np.ndarray,
    carry: np.ndarray,
    widths: np.ndarray,
    spreads: np.ndarray,
    following: np.ndarray,
    quantisers: np.ndarray,
    prices: np.ndarray,
    price: float,
    keep: np.ndarray,
    codes: np.ndarray,
) -> np.ndarray:
    """Round columns one after the other, each error carried on to the rest of the block; returns what later blocks must take over.

    Args:
        targets: (block, rows), changed in place.
        originals: (block, rows), what errors are counted from.
        carry: (block, block).
        keep: bool (block, rows), or (block, 0) where nothing was pruned.
        codes: int32 (block, rows), filled.
    """
    columns, rows = targets.shape
    errors = np.empty_like(targets)
    back = np.empty((rows, len(quantisers)), dtype=np.uint8)
    chosen = np.empty((rows, len(quantisers)), dtype=np.int32)
    scaled = np.empty(rows, dtype=np.float32)
    for j in range(columns):
        for i in range(rows):
            scaled[i] = targets[j, i] / widths[j]
        choose_column(scaled, spreads[j], following, quantisers, prices, price, keep[j], back, chosen, codes[j])
        state = 0
        for i in range(rows):
            code = codes[j, i]
            point = float(code)
            if quantisers[0] != SCALAR:
                odd = quantisers[state] != EVEN
                point = 2.0 * code - ((code > 0) - (code < 0) if odd else 0)
                state = following[state, code & 1]
            errors[j, i] = originals[j, i] - point * widths[j]
        for k in range(j + 1, columns):
            share = carry[k, j]
            for i in range(rows):
                targets[k, i] += share * errors[j, i]
    return errors
