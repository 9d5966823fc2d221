"""Tokens whose order of use is watched: a target is handed out to be scored, and its token to be learned from only after that.

The harness (``harness.py``) and the coder own tapes; predictors and learners only ever see what a tape gives them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bytefit.score.windows import Window


class OrderError(AssertionError):
    """Something was scored twice, or was to be learned from before it was scored: a fault of the program, not of the user."""


@dataclass(frozen=True)
class Scored:
    """Tokens that may be learned from; only a tape makes one.

    Attributes:
        tokens: int64 (n + 1,); the last n were targets, and their scores are fixed.
    """

    tokens: Tensor


class Tape:
    """A known sequence on its way through a protocol.

    Args:
        tokens: int64 (N,); the first is context only.
        again: a target may be scored more than once (the contest's tail rule).

    Attributes:
        nats: float64 (N - 1,): the summed cost of token t + 1, over all times that it was scored.
        times: int64 (N - 1,): how often that was.
    """

    def __init__(self, tokens: np.ndarray, *, again: bool = False):
        self.tokens = torch.from_numpy(tokens)
        self.again = again
        self.nats = np.zeros(max(0, len(tokens) - 1))
        self.times = np.zeros(max(0, len(tokens) - 1), dtype=np.int64)

    def inputs(self, window: Window) -> Tensor:
        """What a predictor may see: everything in the window before its last target."""
        return self.tokens[window.start : window.end]

    def targets(self, window: Window) -> Tensor:
        return self.tokens[window.first : window.end + 1]

    def book(self, window: Window, nats: np.ndarray) -> None:
        """Fix the cost of a window's targets. Raises OrderError where one has a score already."""
        part = slice(window.first - 1, window.end)
        if not self.again and self.times[part].any():
            raise OrderError(f"targets {window.first} to {window.end} would be scored twice")
        self.nats[part] += nats
        self.times[part] += 1

    def scored(self, first: int, last: int) -> Scored:
        """The targets ``first … last`` for learning. Raises OrderError where one has no score yet."""
        if not self.times[first - 1 : last].all():
            raise OrderError(f"targets {first} to {last} are not all scored yet")
        return Scored(self.tokens[first - 1 : last + 1])


class CodedTape:
    """A sequence that grows as it is coded: what stands on it is known to the decoder too."""

    def __init__(self, first: int):
        self._tokens = [first]

    def append(self, token: int) -> None:
        self._tokens.append(token)

    def scored(self, first: int, last: int) -> Scored:
        if last >= len(self._tokens):
            raise OrderError(f"targets {first} to {last} are not all coded yet")
        return Scored(torch.tensor(self._tokens[first - 1 : last + 1]))


def chunk_piece(tape: Tape | CodedTape, num_tokens: int, chunk: int, chunk_tokens: int) -> Scored | None:
    """A chunk of a tape of ``num_tokens`` tokens for learning; None where the tape has ended before it."""
    first, last = chunk * chunk_tokens + 1, min((chunk + 1) * chunk_tokens, num_tokens - 1)
    return tape.scored(first, last) if first <= last else None
