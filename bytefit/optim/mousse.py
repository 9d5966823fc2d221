"""Mousse: rows and columns of an update are brought to one size before Muon's iteration (tried in PR #578)."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-30  # under the root: a row without any gradient stays without


class Mousse:
    """``u ← u / sqrt(r) / sqrt(c)``, with r and c running means (decay ``beta``) of the mean squares of u's rows and columns.

    Both start at 0: what that makes too small at first is one factor for all, which the iteration's own normalisation removes. PR #578
    starts them at 1, behind which squares as small as those of gradients (1e-6) stay hidden for more than a thousand steps.

    Args:
        stack: matrices (n, rows, columns) like those that will come.
    """

    def __init__(self, stack: Tensor, beta: float):
        self.beta = beta
        self.rows = torch.zeros_like(stack[:, :, :1], dtype=torch.float32)
        self.columns = torch.zeros_like(stack[:, :1, :], dtype=torch.float32)

    def __call__(self, update: Tensor) -> Tensor:
        squares = update.float().square()
        self.rows.lerp_(squares.mean(2, keepdim=True), 1 - self.beta)
        self.columns.lerp_(squares.mean(1, keepdim=True), 1 - self.beta)
        return (update.float() * (self.rows + _TINY).rsqrt() * (self.columns + _TINY).rsqrt()).to(update.dtype)

    def states(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, a row a matrix."""
        return {"rows": self.rows, "columns": self.columns}
