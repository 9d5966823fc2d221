"""Low-rank error correction (LQER, arXiv 2402.02446; on the contest's final board): the matrices that lost most get a few factors back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bytefit.quant.codes import Codes, RowSteps
from bytefit.quant.metric import Metric


@dataclass(frozen=True, kw_only=True)
class LowRankConfig:
    """
    Attributes:
        rank: of the correction.
        matrices: how many matrices get one: those with the largest weighted error.
        levels: steps between zero and the largest entry of each factor's row (left) and column (right).
    """

    rank: int = 4
    matrices: int = 3
    levels: int = 15

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 255 or not 1 <= self.matrices <= 255:
            raise ValueError(f"low_rank rank {self.rank} and matrices {self.matrices} must lie in 1..255")
        if not 1 <= self.levels <= 32_767:
            raise ValueError(f"low_rank levels {self.levels} must lie in 1..32767")


Correction = tuple[Codes, Codes]  # (rank, rows) and (rank, cols): the correction is the first, turned, times the second


def correct(
    weights: dict[str, np.ndarray], codes: dict[str, Codes], metrics: dict[str, Metric], config: LowRankConfig
) -> dict[str, Correction]:
    """The corrections of the worst matrices: the best of this rank for errors weighted by the inputs' second moment."""
    errors = {name: torch.from_numpy(weights[name] - codes[name].weights()) for name in codes if name in metrics}
    worst = sorted(errors, key=lambda name: -metrics[name].cost(errors[name]))[: config.matrices]
    return {name: _factors(errors[name], metrics[name], config) for name in worst}


def add_correction(weights: np.ndarray, correction: Correction | None) -> np.ndarray:
    """float32 (rows, cols). One product after the other, so that the sum is the same on every machine."""
    if correction is None:
        return weights
    left, right = (part.weights() for part in correction)
    out = weights.copy()
    for column, row in zip(left, right, strict=True):
        out += column[:, None] * row[None, :]
    return out


def _factors(error: torch.Tensor, metric: Metric, config: LowRankConfig) -> Correction:
    columns = metric.columns.double()
    columns = columns + (1e-3 * columns.diagonal().mean() + 1e-12) * torch.eye(len(columns), dtype=torch.float64)
    lower = torch.linalg.cholesky(columns)
    u, s, vh = torch.linalg.svd(error.double() @ lower, full_matrices=False)
    rank = min(config.rank, len(s))
    left = (u[:, :rank] * s[:rank].sqrt()).T
    right = torch.linalg.solve_triangular(lower, s[:rank, None].sqrt() * vh[:rank], upper=False, left=False)
    return _coded(left.float().numpy(), config.levels), _coded(right.float().numpy(), config.levels)


def _coded(factor: np.ndarray, levels: int) -> Codes:
    steps = np.maximum(np.abs(factor).max(axis=1) / levels, 1e-30).astype(np.float32)
    return Codes(np.round(factor / steps[:, None]).astype(np.int32), RowSteps(steps, "float32"))
