"""Entropy coding of integer codes (range coder of the ``constriction`` library).

A matrix of codes is modelled as Gaussian with a spread that is a product of a row factor and a column factor, both powers of
two in quarter steps. The factors are sent first, then every code is coded with its own spread. On trained weights this is
0.1 bit below one table for the matrix, because rows and columns differ.

The model must come out the same on every machine: spreads are made from four literal constants and exact multiplications,
and the library turns them into integer frequencies without the platform's mathematics library.
"""

from __future__ import annotations

import struct
from typing import Any

import constriction
import numpy as np

from bytefit.errors import UserError

# 2 ** (k / 4): written out, because exp2 may differ in the last bit between machines.
_QUARTERS = np.array([1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429])
_MIN_EXPONENT, _MAX_EXPONENT = -16, 63
_HEADER = struct.Struct("<iibBbB")  # lowest and highest code; mean and spread of row exponents; the same for columns
_GAUSSIAN: Any = constriction.stream.model.QuantizedGaussian


def _spread(exponents: np.ndarray) -> np.ndarray:
    """``2 ** (exponent / 4)``, exact on every machine."""
    octaves, quarter = np.divmod(exponents, 4)
    return np.ldexp(_QUARTERS[quarter], octaves)


def _exponents(energy: np.ndarray) -> np.ndarray:
    """Quarter-octave exponents of root mean squares."""
    return np.clip(np.round(2 * np.log2(np.maximum(energy, 1e-9))), _MIN_EXPONENT, _MAX_EXPONENT).astype(np.int32)


def _code_exponents(coder: Any, exponents: np.ndarray) -> tuple[int, int]:
    mean = int(np.round(exponents.mean()))
    spread = int(np.clip(np.ceil(exponents.std() * 8), 2, 255))
    coder.encode(exponents, _GAUSSIAN(_MIN_EXPONENT, _MAX_EXPONENT, float(mean), spread / 8))
    return mean, spread


def _decode_exponents(coder: Any, mean: int, spread: int, count: int) -> np.ndarray:
    return coder.decode(_GAUSSIAN(_MIN_EXPONENT, _MAX_EXPONENT, float(mean), max(spread, 1) / 8), count)


def encode_codes(matrices: list[np.ndarray]) -> bytes:
    """Compress integer matrices (int32, 2-D, in order) into one stream."""
    coder = constriction.stream.queue.RangeEncoder()
    headers = []
    for codes in matrices:
        energy = codes.astype(np.float64) ** 2 + 0.02
        rows = _exponents(energy.mean(axis=1))
        columns = _exponents(energy.mean(axis=0) / energy.mean())
        low, high = int(codes.min()), int(codes.max())
        row_model = _code_exponents(coder, rows)
        column_model = _code_exponents(coder, columns)
        headers.append(_HEADER.pack(low, high, *row_model, *column_model))
        if high > low:
            spreads = _spread(rows[:, None] + columns[None, :]).ravel()
            coder.encode(codes.ravel().astype(np.int32), _GAUSSIAN(low, high), np.zeros(codes.size), spreads)
    words = coder.get_compressed().astype("<u4").tobytes()
    return b"".join(headers) + words


def decode_codes(data: bytes, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    """The matrices again.

    Raises:
        UserError: the stream does not decode to these shapes.
    """
    start = _HEADER.size * len(shapes)
    if len(data) < start or (len(data) - start) % 4:
        raise UserError(f"a stream of {len(data)} bytes cannot hold {len(shapes)} matrices")
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data[start:], dtype="<u4").astype(np.uint32))
    matrices = []
    try:
        for i, (num_rows, num_columns) in enumerate(shapes):
            low, high, row_mean, row_spread, column_mean, column_spread = _HEADER.unpack_from(data, i * _HEADER.size)
            if not -(1 << 20) <= low <= high <= 1 << 20:
                raise UserError(f"codes of matrix {i} range from {low} to {high}")
            rows = _decode_exponents(coder, row_mean, row_spread, num_rows)
            columns = _decode_exponents(coder, column_mean, column_spread, num_columns)
            if high > low:
                spreads = _spread(rows[:, None] + columns[None, :]).ravel()
                codes = coder.decode(_GAUSSIAN(low, high), np.zeros(len(spreads)), spreads)
            else:
                codes = np.full(num_rows * num_columns, low, dtype=np.int32)
            matrices.append(codes.reshape(num_rows, num_columns))
        if not coder.maybe_exhausted():
            raise UserError("its codes do not decode (they are cut short, or followed by more data than its model needs)")
    except (AssertionError, ValueError) as error:
        raise UserError(f"its codes do not decode ({error})") from None
    return matrices
