"""The MLP of a block."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.model.linear import Linear
from bytefit.model.roles import Role


@dataclass(frozen=True, kw_only=True)
class ReluSquaredConfig:
    """``down(relu(up(x))²)`` (spec 1.7).

    Attributes:
        width: hidden width as a multiple of the model width.
    """

    width: float = 2.0

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise ValueError(f"mlp width {self.width} must be above 0")

    def build(self, dim: int) -> ReluSquared:
        return ReluSquared(dim, int(self.width * dim))


class ReluSquared(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up = Linear(dim, hidden, Role.MLP)
        self.down = Linear(hidden, dim, Role.MLP, zero_init=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x_BTD)).square())
