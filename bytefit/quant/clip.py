"""Clip rules: how far from zero a row's grid reaches. Training (fake quantisation) and packing use the same ones.

Legend: W weights (…, rows, cols), clip (…, rows).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RowMaximum:
    """The row's largest magnitude."""

    def reach(self, w: Tensor) -> Tensor:
        return w.abs().amax(-1)


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """A quantile of the row's magnitudes, interpolated (PR #128: 0.9999984; PR #578, #606: 0.9995).

    Attributes:
        share: 0.9995 leaves one weight in two thousand beyond the end of the grid.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"percentile share {self.share} must lie in (0, 1]")

    def reach(self, w: Tensor) -> Tensor:
        return quantile_of_magnitudes(w, self.share)


@dataclass(frozen=True, kw_only=True)
class Sigmas:
    """``k`` times the row's standard deviation about zero (PR #1394). With unbounded codes only the step that follows matters.

    Attributes:
        k: 11 to 15 on the contest's final board, with 6 or 7 bits.
    """

    k: float

    def __post_init__(self) -> None:
        if not 0 < self.k <= 1000:
            raise ValueError(f"sigmas k {self.k} must lie in (0, 1000]")

    def reach(self, w: Tensor) -> Tensor:
        return self.k * w.square().mean(-1).sqrt()


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """A share of the row's largest magnitude: what lies beyond is cut off so that the rest gets finer steps.

    Attributes:
        factor: 1 is ``RowMaximum``.
    """

    factor: float

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise ValueError(f"shrunk factor {self.factor} must lie in (0, 1]")

    def reach(self, w: Tensor) -> Tensor:
        return self.factor * w.abs().amax(-1)


FixedClip = RowMaximum | Percentile | Sigmas | Shrunk


def quantile_of_magnitudes(w: Tensor, share: float) -> Tensor:
    """The interpolated ``share`` quantile of |w| along the last axis.

    Only the few largest magnitudes are sorted out: the quantiles that are asked for lie at the far end, and a full sort of every row at
    every training step costs more than the rest of the rounding.
    """
    count = w.size(-1)
    position = share * (count - 1)
    below = math.floor(position)
    largest = w.abs().topk(min(count, count - below), dim=-1).values  # ends with the one at ``below``
    low = largest[..., -1]
    high = largest[..., -2] if below + 1 < count else low
    return torch.lerp(low, high, position - below)


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The best of several rules.

    Attributes:
        among: what is tried.
        each: one choice for each row (PR #578), or one for the whole matrix (PR #693).
        error: plain squared error of the weights (both PRs), or weighted by what the inputs' second moment says that it costs.
        judge: by rounding to the nearest code (PR #578), or by the whole rounding with feedback (PR #693).
    """

    among: tuple[FixedClip, ...] = field(default_factory=lambda: CONTEST_PERCENTILES)
    each: Literal["row", "matrix"] = "row"
    error: Literal["plain", "weighted"] = "plain"
    judge: Literal["nearest", "feedback"] = "nearest"

    def __post_init__(self) -> None:
        if not self.among:
            raise ValueError("searched clip: name at least one rule in among")


CONTEST_PERCENTILES: tuple[FixedClip, ...] = tuple(Percentile(share=share) for share in (0.999, 0.9995, 0.9999, 0.99999, 1.0))
Clip = RowMaximum | Percentile | Sigmas | Shrunk | Searched
