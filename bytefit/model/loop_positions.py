"""Loop positions: a learned vector says which time around a looped block is ("fractal" models, tried in PR #578)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bytefit.model.roles import Role, parameter


@dataclass(frozen=True, kw_only=True)
class LoopPositionsConfig:
    """Adds vector j to the stream before every step of the plan that says ``position=j``.

    Attributes:
        count: how many vectors; a training cadence's shorter plan may have one of its own.
        scale: they start orthogonal to each other and so long.
    """

    count: int
    scale: float = 0.01

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 1024:
            raise ValueError(f"loop_positions count {self.count} must lie in 1..1024")
        if not self.scale >= 0:
            raise ValueError(f"loop_positions scale {self.scale} must not be negative")

    def build(self, dim: int) -> torch.nn.Parameter:
        """The vectors (count, D)."""
        orthonormal: Tensor = torch.linalg.qr(torch.randn(dim, self.count)).Q.T
        return parameter(self.scale * orthonormal.contiguous(), Role.GAIN)
