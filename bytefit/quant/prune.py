"""Pruning: weights set to zero before they are rounded, or codes set to zero afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bytefit.quant.codes import Codes
from bytefit.quant.metric import Metric


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """The smallest weights of every matrix and table go to zero, and stay there when it is rounded (PR #1171, #606).

    Attributes:
        share: of the weights of each.
        min_size: matrices with no more weights than this are left alone.
    """

    share: float
    min_size: int = 65_536

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"prune share {self.share} must lie in [0, 1)")
        if self.min_size < 0:
            raise ValueError(f"prune min_size {self.min_size} must not be negative")

    def keep(self, w: Tensor) -> Tensor | None:
        """True where a weight stays; None where the whole matrix does."""
        count = int(self.share * w.numel())
        if not count or w.numel() <= self.min_size:
            return None
        smallest = w.abs().flatten().argsort(stable=True)[:count]
        keep = torch.ones(w.numel(), dtype=torch.bool, device=w.device)
        keep[smallest] = False
        return keep.view_as(w)


@dataclass(frozen=True)
class Ones:
    """Every ±1 code of a model and what zeroing it costs, cheapest first (PR #693).

    Attributes:
        names: the matrices that they are in.
        matrix, position: int (count,): which matrix, and where in it (flat).
    """

    names: list[str]
    matrix: np.ndarray
    position: np.ndarray

    def __len__(self) -> int:
        return len(self.matrix)


def find_ones(codes: dict[str, Codes], metrics: dict[str, Metric]) -> Ones:
    """The cost of a code is the squared step times what its row's output and its column's inputs weigh, ``step² · r_i · H_jj``.

    Trellis codes are left alone: there a code's parity decides what all codes below it mean.
    """
    names = [name for name in codes if name in metrics and not codes[name].trellis]
    matrices, positions, costs = [], [], []
    for number, name in enumerate(names):
        held = codes[name]
        flat = np.flatnonzero(np.abs(held.codes) == 1)
        step = held.steps.scale(np.ones_like(held.codes)).ravel()[flat]
        rows, columns = metrics[name].rows.numpy(), metrics[name].columns.diagonal().numpy()
        weight = rows[flat // held.codes.shape[1]] * columns[flat % held.codes.shape[1]]
        matrices.append(np.full(len(flat), number, dtype=np.int32))
        positions.append(flat)
        costs.append(step.astype(np.float64) ** 2 * weight)
    order = np.argsort(np.concatenate(costs), kind="stable") if names else np.zeros(0, dtype=np.int64)
    everything = (np.concatenate(matrices), np.concatenate(positions)) if names else (order, order)
    return Ones(names, everything[0][order], everything[1][order])


def without_ones(codes: dict[str, Codes], ones: Ones, count: int) -> dict[str, Codes]:
    """The codes with the ``count`` cheapest ones at zero."""
    changed = dict(codes)
    for number, name in enumerate(ones.names):
        flat = ones.position[:count][ones.matrix[:count] == number]
        if len(flat):
            array = codes[name].codes.copy()
            array.ravel()[flat] = 0
            changed[name] = Codes(array, codes[name].steps, codes[name].trellis)
    return changed
