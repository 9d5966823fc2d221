"""Entropy coding of integer codes: context-modelled adaptive binary arithmetic coding.

Trained weights are nearly Gaussian, and what one code tells about another is mostly the scale: rows and columns differ. So a
code's context is the magnitude to expect of it, a row factor times a column factor, both estimated from the codes before it.
Nothing is sent but the codes, and the shape of their distribution is learnt. The binarisation is that of exponential-Golomb
codes with modelled bits, as in DeepCABAC (Wiedemann et al. 2019; ISO/IEC 15938-17).

Where codes are predictable from those to their left (the columns of embedding tables are correlated), what is coded is the
difference from an adaptive linear prediction, as in lossless audio coding. It is given up where it does not pay: in most
matrices.

Trellis-coded columns (``bytefit.quant.trellis_tables``) have their state as a further context.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bytefit.artifact.code_kernel import FULL, LARGEST_CODE, MOST_BYTES, NUM_WORDS, POSITION, START, UNSEEN, code_matrix, finish
from bytefit.errors import UserError
from bytefit.quant.trellis_tables import TRELLIS

_NO_TRELLIS = (np.zeros((1, 2), dtype=np.uint8), np.zeros(1, dtype=np.uint8))


def _new_model() -> tuple[np.ndarray, np.ndarray]:
    """What is learnt from matrix to matrix: adaptive bits, and the mean magnitude."""
    return np.full(NUM_WORDS, UNSEEN, dtype=np.int32), np.array([START], dtype=np.int64)


def _encode(matrices: list[np.ndarray], trellis: list[int], capacity: int) -> bytes | None:
    """The stream; None if it needs more than ``capacity`` bytes."""
    words, carried = _new_model()
    coder = np.array([0, FULL - 1, 0], dtype=np.int64)
    buffer = np.empty(capacity, dtype=np.uint8)
    for codes, num_states in zip(matrices, trellis, strict=True):
        next_state, quantiser = TRELLIS[num_states] if num_states else _NO_TRELLIS
        codes = np.array(codes, dtype=np.int32, order="C")
        if not code_matrix(codes, next_state, quantiser, words, carried, coder, buffer, False):
            return None
    return buffer[: finish(coder, buffer)].tobytes()


def encode_codes(matrices: list[np.ndarray], trellis: list[int]) -> bytes:
    """Compress integer matrices (2-D, up to ``LARGEST_CODE`` in size) into one stream, which learns from each for the next.

    Args:
        trellis: for each matrix the number of states of its columns' trellis, 0 where there is none.
    """
    if any(codes.size and max(-int(codes.min()), int(codes.max())) > LARGEST_CODE for codes in matrices):
        raise ValueError(f"codes exceed {LARGEST_CODE}")
    if not matrices:
        return b""
    capacity = 2 * sum(codes.size for codes in matrices) + MOST_BYTES * (1 + max(codes.shape[1] for codes in matrices))
    while (data := _encode(matrices, trellis, capacity)) is None:
        capacity *= 2
    return data


def decode_codes(data: bytes, shapes: list[tuple[int, int]], trellis: list[int]) -> list[np.ndarray]:
    """The matrices (int32) again.

    Raises:
        UserError: the stream does not decode to these shapes.
    """
    return [codes for codes, _ in decode_each(data, shapes, trellis)]


def decode_each(data: bytes, shapes: list[tuple[int, int]], trellis: list[int]) -> Iterator[tuple[np.ndarray, int]]:
    """One matrix after the other, with the bytes that it took; together one less than the stream has, which ends with one for all.

    Raises:
        UserError: at the end, where the stream does not decode to these shapes.
    """
    words, carried = _new_model()
    buffer = np.frombuffer(bytearray(data), dtype=np.uint8)
    start = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
    coder = np.array([min(start, FULL - 2), FULL - 1, 4], dtype=np.int64)  # the offset is always below the range
    for shape, num_states in zip(shapes, trellis, strict=True):
        codes, before = np.zeros(shape, dtype=np.int32), int(coder[POSITION])
        next_state, quantiser = TRELLIS[num_states] if num_states else _NO_TRELLIS
        code_matrix(codes, next_state, quantiser, words, carried, coder, buffer, True)
        yield codes, int(coder[POSITION]) - before
    # The decoder is four bytes ahead of what it needs; the encoder ends with one.
    if len(data) != (coder[POSITION] - 3 if shapes else 0):
        raise UserError("its codes do not decode (they are cut short, or followed by more data than its model needs)")
