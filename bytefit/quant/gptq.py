"""GPTQ: rounding a column at a time, each column's error made good by the columns after it (arXiv 2210.17323).

Equal-shaped matrices are rounded as one batch. Legend: N matrices, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bytefit.compiled import compiled
from bytefit.quant.clip import Searched
from bytefit.quant.grid import RowGrid, StepGrid
from bytefit.quant.metric import Factor, Metric

TILE = 256  # rows that are rounded together: a block of them stays in the nearest cache


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Every weight goes to the nearest code."""


@dataclass(frozen=True, kw_only=True)
class Gptq:
    """Rounding with error feedback.

    Attributes:
        order: columns with the largest input first (the standard, PR #693), last (PR #578), or as they stand.
        downdate: False uses the inverse second moment itself instead of its Cholesky factor (PR #578, #606, #1171); exact for the
            first column only.
        block: columns after which errors are carried on to all that follow.
        damp: share of the mean diagonal that is added to the second moment.
        damp_times: how often it is added (PR #693: when the moment is taken and when it is used).
    """

    order: Literal["descending", "ascending", "given"] = "descending"
    downdate: bool = True
    block: int = 32
    damp: float = 0.01
    damp_times: int = 1

    def __post_init__(self) -> None:
        if self.block < 1 or self.damp_times < 1:
            raise ValueError(f"gptq block {self.block} and damp_times {self.damp_times} must be at least 1")
        if not 0 <= self.damp <= 1:
            raise ValueError(f"gptq damp {self.damp} must lie in 0..1")


Rounding = Nearest | Gptq


@dataclass(frozen=True)
class RowCodes:
    """A batch of matrices rounded with a step a row.

    Attributes:
        codes: (N, R, C) int32.
        steps: (N, R), or (N, 1) for one step a matrix.
        bound: how many rows the grid's floor binds.
    """

    codes: Tensor
    steps: Tensor
    bound: int


def round_rows(
    w_NRC: Tensor,
    grid: RowGrid | StepGrid,
    rounding: Rounding,
    *,
    dial: float = 1.0,
    metrics: Sequence[Metric] | None = None,
    factors: Sequence[Factor] | None = None,
    keep_NRC: Tensor | None = None,
) -> RowCodes:
    """Codes for a batch of matrices under one grid.

    Args:
        metrics: of each matrix; needed where the clip is searched by weighted errors.
        factors: of each matrix; needed for GPTQ.
        keep_NRC: False where a weight was pruned: its code stays 0.
    """

    def codes_at(steps: Tensor, ends: tuple[int, int]) -> Tensor:
        if isinstance(rounding, Gptq):
            assert factors is not None
            return _with_feedback(w_NRC, steps, ends, factors, rounding.block, keep_NRC)
        codes = (w_NRC / steps[..., None]).round_().clamp_(*ends)
        return codes if keep_NRC is None else codes * keep_NRC

    if isinstance(grid, StepGrid):
        step = grid.step(w_NRC, dial)
        return RowCodes(codes_at(step, (-(1 << 20), 1 << 20)).int(), step, 0)
    ends, search = grid.ends(dial), grid.clip if isinstance(grid.clip, Searched) else None
    tried = [grid.steps(w_NRC, dial, clip) for clip in grid.candidates()]
    if search is None:
        steps, bound = tried[0]
        return RowCodes(codes_at(steps, ends).int(), steps, bound)
    all_steps = torch.stack([steps for steps, _ in tried])  # (K, N, R)
    outcomes, errors = [], []
    for steps in all_steps:
        if search.judge == "feedback":
            codes = codes_at(steps, ends)
            outcomes.append(codes)
        else:
            codes = (w_NRC / steps[..., None]).round_().clamp_(*ends)
        errors.append(_row_errors(w_NRC - codes * steps[..., None], search, metrics))
    cost_KNR = torch.stack(errors)
    if search.each == "matrix":
        cost_KNR = cost_KNR.sum(-1, keepdim=True).expand_as(cost_KNR)
    best_NR = cost_KNR.argmin(0)
    steps = all_steps.gather(0, best_NR[None])[0]
    if outcomes:  # rows do not touch each other: the best row of each pass is the best pass
        codes = torch.stack(outcomes).gather(0, best_NR[None, :, :, None].expand(1, *w_NRC.shape))[0]
    else:
        codes = codes_at(steps, ends)
    bound = int((steps <= grid.floor * 1.001).sum()) if grid.floor is not None else 0
    return RowCodes(codes.int(), steps, bound)


def _row_errors(error_NRC: Tensor, search: Searched, metrics: Sequence[Metric] | None) -> Tensor:
    """(N, R)"""
    if search.error == "plain":
        return error_NRC.square().sum(-1)
    assert metrics is not None
    columns = torch.stack([metric.columns for metric in metrics])
    return ((error_NRC @ columns) * error_NRC).sum(-1)


def _with_feedback(
    w_NRC: Tensor, steps_NR: Tensor, ends: tuple[int, int], factors: Sequence[Factor], block: int, keep_NRC: Tensor | None
) -> Tensor:
    """Codes (N, R, C) as floats.

    Columns are the leading axis here, so that a column is one piece of memory. Inside a block the loop is compiled; between blocks one
    matmul carries all errors on.
    """
    codes_NRC = torch.empty_like(w_NRC)
    everything = torch.empty(0, 0, dtype=torch.bool).numpy()
    for n, factor in enumerate(factors):
        left_CR = w_NRC[n].index_select(1, factor.order).T.contiguous()
        left_CR[factor.dead[factor.order]] = 0.0  # inputs that are always zero
        keep = everything if keep_NRC is None else keep_NRC[n].T[factor.order].numpy()
        steps = steps_NR[n].expand(w_NRC.size(1)).contiguous().numpy()
        weights_CR = left_CR.clone() if factor.of_weights else left_CR
        errors = torch.empty(block, w_NRC.size(1))
        for start in range(0, len(left_CR), block):
            end = min(start + block, len(left_CR))
            part = slice(start, end)
            within = factor.carry[part, part].contiguous().numpy()
            left, weights = left_CR[part].numpy(), weights_CR[part].numpy()
            _round_block(left, weights, within, steps, keep[part], float(ends[0]), float(ends[1]), errors.numpy())
            if end < len(left_CR):
                left_CR[end:].addmm_(factor.carry[end:, part], errors[: end - start])
        codes_NRC[n] = left_CR[factor.order.argsort()].T
    return codes_NRC


@compiled(fastmath={"contract", "nsz"}, nogil=True)
def _round_block(
    left: np.ndarray,
    weights: np.ndarray,
    carry: np.ndarray,
    steps: np.ndarray,
    keep: np.ndarray,
    lowest: float,
    highest: float,
    errors: np.ndarray,
) -> None:
    """Round a block's columns in order; their codes take their place.

    Args:
        left: float32 (block, rows), what is to be rounded.
        weights: float32 (block, rows), what errors are counted from; may be ``left`` itself.
        carry: float32 (block, block).
        keep: bool (block, rows), or empty.
        errors: float32 (block, rows), filled: what the columns after the block have to take over.
    """
    low, high = np.float32(lowest), np.float32(highest)
    rows = left.shape[1]
    for first in range(0, rows, TILE):
        last = min(first + TILE, rows)
        step = steps[first:last]
        for j in range(len(left)):
            column, weight, error = left[j, first:last], weights[j, first:last], errors[j, first:last]
            for i in range(last - first):
                error[i] = min(max(np.rint(column[i] / step[i]), low), high)
            if keep.size:
                for i in range(last - first):
                    if not keep[j, first + i]:
                        error[i] = 0.0
            for i in range(last - first):
                code = error[i]
                error[i] = weight[i] - code * step[i]
                column[i] = code
            for k in range(j + 1, len(left)):
                later, carried = left[k, first:last], carry[k, j]
                for i in range(last - first):
                    later[i] += carried * error[i]
