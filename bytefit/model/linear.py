"""Linear maps and tables: fp32 master weights that are cast where they are used, with a place to listen and one to round.

Three things hook in here and nowhere else. Training may put a ``rounding`` module on a map, which stands between the master weight and
the matmul (fake quantisation). Calibration may put an ``observer`` on a map or a table, which sees what goes in and comes out. Scoring may
put an ``adapter`` on a map or a tied head, whose output is added to its own (per-document low-rank adapters).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.model.roles import Role, parameter


class Observer(Protocol):
    """Listens to one map or table (calibration)."""

    def multiplied(self, x: Tensor, y: Tensor) -> None:
        """``y = x Wᵀ`` was computed; x (…, in), y (…, out)."""

    def looked_up(self, ids: Tensor, rows: Tensor) -> None:
        """Rows (…, dim) were taken from a table."""


class Linear(nn.Module):
    """``y = x Wᵀ`` in the dtype of ``x``; the weight (out, in) stays fp32 (Parameter Golf baseline).

    Args:
        zero_init: start at zero (output projections), else PyTorch's default for ``nn.Linear``.
        orthogonal_gain: factor on an orthogonal start, where the model asks for one.
    """

    def __init__(self, in_features: int, out_features: int, role: Role, *, zero_init: bool = False, orthogonal_gain: float = 1.0):
        super().__init__()
        self.zero_init, self.orthogonal_gain = zero_init, orthogonal_gain
        weight = torch.zeros(out_features, in_features)
        if not zero_init:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.weight = parameter(weight, role)
        self.rounding: nn.Module | None = None
        self.observer: Observer | None = None
        self.adapter: nn.Module | None = None

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight as the matmul sees it (out, in)."""
        weight = self.weight if self.rounding is None else self.rounding(self.weight)
        return weight.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return multiply(x, (self,))[0]


def multiply(x: Tensor, maps: Sequence[Linear]) -> Sequence[Tensor]:
    """Every map's output for the same input: several matrices for the optimizer, one matmul for the machine."""
    weights = [part.weight_as(x.dtype) for part in maps]
    if len(weights) == 1:
        outputs: Sequence[Tensor] = (F.linear(x, weights[0]),)
    else:
        outputs = torch.split(F.linear(x, torch.cat(weights)), [weight.size(0) for weight in weights], dim=-1)
    if any(part.adapter is not None for part in maps):
        outputs = tuple(y if part.adapter is None else y + part.adapter(x) for part, y in zip(maps, outputs, strict=True))
    for part, y in zip(maps, outputs, strict=True):
        if part.observer is not None:
            part.observer.multiplied(x, y)
    return outputs


class Table(nn.Module):
    """Rows looked up by id; also the output matrix of a tied head."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.weight = parameter(rows, Role.TABLE)
        self.observer: Observer | None = None
        self.adapter: nn.Module | None = None  # of the head

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """(…) -> (…, dim)"""
        rows = F.embedding(ids, self.weight).to(dtype)
        if self.observer is not None:
            self.observer.looked_up(ids, rows)
        return rows

    def as_head(self, x: Tensor) -> Tensor:
        """``x Tᵀ``: (…, dim) -> (…, rows)."""
        y = F.linear(x, self.weight.to(x.dtype))
        if self.adapter is not None:
            y = y + self.adapter(x)
        if self.observer is not None:
            self.observer.multiplied(x, y)
        return y


@dataclass(frozen=True, kw_only=True)
class OrthogonalInit:
    """Every linear map that does not start at zero starts orthogonal, with gain 1 or the gain of its part (record of 19 March 2026).

    Attributes:
        min_size: matrices with a side shorter than this keep PyTorch's default.
    """

    min_size: int = 64

    def __post_init__(self) -> None:
        if self.min_size < 1:
            raise ValueError(f"orthogonal min_size {self.min_size} must be at least 1")

    def apply(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, Linear) and not module.zero_init and min(module.weight.shape) >= self.min_size:
                nn.init.orthogonal_(module.weight, gain=module.orthogonal_gain)


def rms_norm(x: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis, without a learned weight."""
    return F.rms_norm(x, (x.size(-1),))
