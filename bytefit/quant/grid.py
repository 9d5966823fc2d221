"""Grids: where a weight may land. Codes are signed integers; a weight is ``code * scale`` of its row.

Two kinds:

* ``RowGrid``: each row is spread over ``levels`` steps up to its largest weight, as the contest did (int8 is 127 levels,
  int6 is 31). One fp16 scale a row.
* ``StepGrid``: one step for the whole matrix and no end points; an entropy coder pays for the tails. At equal bytes this
  does less damage: a row with small weights gets fewer bits by itself (rate theory: equal steps are equal damage).

``dial`` multiplies the number of steps of every grid of a model; the byte budget is met by turning it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bytefit.errors import UserError

MAX_CODE = 32_767


@dataclass(frozen=True)
class Codes:
    """A quantised matrix.

    Attributes:
        codes: int32 (rows, cols).
        scales: float32 (rows,) or, with one step for the matrix, (1,).
    """

    codes: np.ndarray
    scales: np.ndarray

    def weights(self) -> np.ndarray:
        """float32 (rows, cols)."""
        return self.codes.astype(np.float32) * self.scales[:, None]


@dataclass(frozen=True, kw_only=True)
class RowGrid:
    """Row maximum over ``levels`` steps on each side of zero.

    Attributes:
        levels: 127 is int8, 31 is int6.
    """

    levels: int

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 2047:
            raise ValueError(f"levels {self.levels} must lie in 1..2047 (31 is int6, 127 is int8)")

    def quantise(self, weights: np.ndarray, dial: float) -> Codes:
        levels = float(np.clip(round(self.levels * dial), 1, MAX_CODE))
        # The scale is rounded to its stored dtype first, so that codes are chosen for the scale the decoder will use.
        scales = (np.abs(weights).max(axis=1) / levels).astype(np.float16).astype(np.float32)
        tiny = np.float32(np.finfo(np.float16).tiny)
        scales = np.maximum(scales, tiny)
        codes = np.clip(np.round(weights / scales[:, None]), -levels, levels).astype(np.int32)
        return Codes(codes, scales)


@dataclass(frozen=True, kw_only=True)
class StepGrid:
    """One step for the matrix: its root-mean-square weight divided by ``fineness``.

    Attributes:
        fineness: steps in one rms weight; 4 costs about 4 bits a weight, each doubling one bit more.
    """

    fineness: float

    def __post_init__(self) -> None:
        if not 0.01 <= self.fineness <= 4096:
            raise ValueError(f"fineness {self.fineness} must lie in 0.01..4096")

    def quantise(self, weights: np.ndarray, dial: float) -> Codes:
        rms = float(np.sqrt(np.mean(weights.astype(np.float64) ** 2)))
        step = np.float32(max(rms / (self.fineness * dial), np.abs(weights).max() / MAX_CODE, 1e-30))
        return Codes(np.round(weights / step).astype(np.int32), np.array([step], dtype=np.float32))


Grid = RowGrid | StepGrid


def quantise(weights: np.ndarray, grid: Grid, dial: float = 1.0) -> Codes:
    """Round to the nearest point of the grid.

    Args:
        weights: float (rows, cols).

    Raises:
        UserError: NaN or infinite weights.
    """
    if not np.isfinite(weights).all():
        raise UserError("the weights hold NaN or infinite values; the run diverged (lower the learning rates)")
    return grid.quantise(weights.astype(np.float32), dial)
