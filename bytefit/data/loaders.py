"""Batches of token windows. A loader is a pure function of (seed, step), so resuming is asking for the next step.

``rows(step, first, last)`` gives rows of the *global* batch: every number of ranks sees the same batch, each rank asks for
its share. Shapes: N rows, T tokens a row plus the one that follows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bytefit.data.coprime import CoprimeConfig
from bytefit.data.shards import TokenStream, check_length
from bytefit.errors import UserError


class Loader(Protocol):
    """Rows of the global batch of any step."""

    num_rows: int

    def rows(self, step: int, first: int, last: int) -> np.ndarray:
        """Rows ``first <= row < last`` of the batch of ``step``: int64 of shape (last - first, seq_len + 1)."""
        ...


@dataclass(frozen=True, kw_only=True)
class SequentialConfig:
    """The contest's loader: the stream is read in order, cut into ``num_spans`` spans a step (one a rank of eight).

    Consecutive rows of a span are neighbours in the text: a small batch then holds few documents (4,096 tokens of web text about three).
    """

    num_spans: int = 8

    def __post_init__(self) -> None:
        if self.num_spans < 1:
            raise ValueError(f"num_spans {self.num_spans} must be at least 1")

    def build(self, stream: TokenStream, seq_len: int, num_rows: int, seed: int) -> Loader:
        return SequentialLoader(stream, seq_len, num_rows, self.num_spans)


@dataclass(frozen=True, kw_only=True)
class ShuffledConfig:
    """Windows from all over the stream, every window once an epoch, in an order that only the seed decides."""

    def build(self, stream: TokenStream, seq_len: int, num_rows: int, seed: int) -> Loader:
        return ShuffledLoader(stream, seq_len, num_rows, seed)


LoaderConfig = SequentialConfig | ShuffledConfig | CoprimeConfig


class SequentialLoader:
    """Reading in order, wrapping at the end (Parameter Golf baseline).

    Each span takes ``rows_per_span * seq_len + 1`` tokens; the last token of a row is the first target's context of the next.
    """

    def __init__(self, stream: TokenStream, seq_len: int, num_rows: int, num_spans: int):
        check_length(len(stream), seq_len)
        if num_rows % num_spans:
            raise UserError(f"a batch of {num_rows} rows does not divide into {num_spans} spans; change loader.num_spans or the batch")
        self.num_rows = num_rows
        self._stream, self._seq_len, self._num_spans = stream, seq_len, num_spans
        self._rows_per_span = num_rows // num_spans
        self._span_tokens = self._rows_per_span * seq_len + 1

    def rows(self, step: int, first: int, last: int) -> np.ndarray:
        out = np.empty((last - first, self._seq_len + 1), dtype=np.int64)
        for row in range(first, last):
            span, inside = divmod(row, self._rows_per_span)
            start = (step * self._num_spans + span) * self._span_tokens + inside * self._seq_len
            out[row - first] = self._stream.read(start, self._seq_len + 1)
        return out


class ShuffledLoader:
    """A random permutation of non-overlapping windows each epoch, with a random phase."""

    def __init__(self, stream: TokenStream, seq_len: int, num_rows: int, seed: int):
        check_length(len(stream), seq_len)
        self.num_rows = num_rows
        self._stream, self._seq_len, self._seed = stream, seq_len, seed
        # One phase less than a whole window keeps the number of windows the same in each epoch.
        self._num_windows = max(1, (len(stream) - seq_len) // seq_len)
        self._max_phase = len(stream) - 1 - self._num_windows * seq_len
        self._order = functools.lru_cache(maxsize=2)(self._make_order)

    def _make_order(self, epoch: int) -> tuple[int, np.ndarray]:
        """Phase and window order of an epoch."""
        generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        phase = int(generator.integers(0, min(self._seq_len, self._max_phase + 1)))
        return phase, generator.permutation(self._num_windows)

    def rows(self, step: int, first: int, last: int) -> np.ndarray:
        out = np.empty((last - first, self._seq_len + 1), dtype=np.int64)
        for row in range(first, last):
            epoch, index = divmod(step * self.num_rows + row, self._num_windows)
            phase, order = self._order(epoch)
            out[row - first] = self._stream.read(phase + int(order[index]) * self._seq_len, self._seq_len + 1)
        return out
