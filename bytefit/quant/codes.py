"""A quantised matrix: codes, how codes become points, and the steps that turn points into weights.

Everything here must come out the same on every machine, because the decoder's weights are what is scored: integers, powers of two made
of correctly rounded square roots, and single float32 multiplications in a fixed order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bytefit.quant.trellis_tables import TRELLIS

COARSE, FINE = 4, 32  # parts of an octave
MAX_OCTAVES = 60


def _fractions() -> np.ndarray:
    """``2 ** (k / 32)`` for k in 0…31, float64: products of square roots, because exp2 may differ in the last bit between machines."""
    values = np.ones(FINE)
    root = 2.0
    for bit in (16, 8, 4, 2, 1):
        root = math.sqrt(root)
        values[(np.arange(FINE) & bit) > 0] *= root
    return values


_FRACTIONS = _fractions()


@dataclass(frozen=True)
class RowSteps:
    """One step a row, or one for the matrix.

    Attributes:
        values: float32 (rows,) or (1,).
        dtype: how they are stored (the values are already rounded to it; fp16 may be shifted by whole octaves).
    """

    values: np.ndarray
    dtype: Literal["float16", "float32"]

    def scale(self, points: np.ndarray) -> np.ndarray:
        return points.astype(np.float32) * self.values[:, None]


@dataclass(frozen=True)
class LogSteps:
    """A step for each row and column: ``base · 2^(rows/parts) · 2^(columns/parts)``.

    Attributes:
        base: a float32.
        rows, columns: int32 (rows,), (cols,).
        parts: of an octave: 4, or 32 where steps were scaled again after rounding.
    """

    base: float
    rows: np.ndarray
    columns: np.ndarray
    parts: int = COARSE

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 steps of the rows (the base in them) and factors of the columns."""
        return np.float32(self.base) * power_of_two(self.rows, self.parts), power_of_two(self.columns, self.parts)

    def scale(self, points: np.ndarray) -> np.ndarray:
        rows, columns = self.factors()
        return points.astype(np.float32) * rows[:, None] * columns[None, :]


Steps = RowSteps | LogSteps


@dataclass(frozen=True)
class Codes:
    """
    Attributes:
        codes: int32 (rows, cols).
        trellis: states of the trellis that runs down each column; 0: a code is its own point.
    """

    codes: np.ndarray
    steps: Steps
    trellis: Literal[0, 4, 8] = 0

    def points(self) -> np.ndarray:
        """int32 (rows, cols)."""
        return trellis_points(self.codes, self.trellis) if self.trellis else self.codes

    def weights(self) -> np.ndarray:
        """float32 (rows, cols)."""
        with np.errstate(over="ignore"):
            return self.steps.scale(self.points())


def power_of_two(exponents: np.ndarray, parts: int) -> np.ndarray:
    """``2 ** (exponents / parts)`` in float32, exact on every machine."""
    octaves, rest = np.divmod(exponents * (FINE // parts), FINE)
    return np.ldexp(_FRACTIONS[rest], octaves).astype(np.float32)


def exponents_of(values: np.ndarray, parts: int = COARSE) -> np.ndarray:
    """The nearest exponents, int32."""
    return np.clip(np.round(parts * np.log2(values)), -MAX_OCTAVES * parts, MAX_OCTAVES * parts).astype(np.int32)


def trellis_points(codes: np.ndarray, states: int) -> np.ndarray:
    """Points of trellis codes, in half steps: the even ones for a state of the first quantiser, zero and the odd ones for the second.

    The state of a column starts at 0 in the first row; the parity of each code decides the next one (ISO/IEC 15938-17 calls it
    dependent quantisation).
    """
    following, quantiser = TRELLIS[states]
    points = np.empty_like(codes)
    state = np.zeros(codes.shape[1], dtype=np.int64)
    for i, row in enumerate(codes):
        points[i] = 2 * row - quantiser[state] * np.sign(row)
        state = following[state, row & 1].astype(np.int64)
    return points
