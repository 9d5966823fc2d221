"""The MLP of a block (Parameter Golf baseline, PR #549, #578). Each kind is a config with ``build``; any hidden width."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.model.linear import Linear
from bytefit.model.roles import Role


def _check_width(width: float) -> None:
    if not 0 < width <= 1024:
        raise ValueError(f"mlp width {width} must lie in (0, 1024]")


@dataclass(frozen=True, kw_only=True)
class ReluSquaredConfig:
    """``down(φ(up(x))²)`` with ``φ(u) = max(u, slope·u)``.

    Attributes:
        width: hidden width as a multiple of the model width.
        slope: of the negative side: 0 is relu² (baseline, PR #128, #578), 0.5 the leaky form (PR #606, #693, #1171).
    """

    width: float = 2.0
    slope: float = 0.0

    def __post_init__(self) -> None:
        _check_width(self.width)
        if not 0 <= self.slope < 1:
            raise ValueError(f"mlp slope {self.slope} must lie in [0, 1)")

    def build(self, dim: int) -> ReluSquared:
        return ReluSquared(dim, max(1, int(self.width * dim)), self.slope)


class ReluSquared(nn.Module):
    def __init__(self, dim: int, hidden: int, slope: float):
        super().__init__()
        self.slope = slope
        self.up = Linear(dim, hidden, Role.MLP)
        self.down = Linear(hidden, dim, Role.MLP, zero_init=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        u = self.up(x_BTD)
        u = F.leaky_relu(u, self.slope) if self.slope else F.relu(u)
        return self.down(u.square())


@dataclass(frozen=True, kw_only=True)
class SwigluConfig:
    """``down(silu(gate(x)) · up(x))`` (PR #578, experiment B).

    Attributes:
        width: hidden width as a multiple of the model width; three matrices, so 2 costs what 3 costs with two.
    """

    width: float = 2.0

    def __post_init__(self) -> None:
        _check_width(self.width)

    def build(self, dim: int) -> Swiglu:
        return Swiglu(dim, max(1, int(self.width * dim)))


class Swiglu(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate = Linear(dim, hidden, Role.MLP)
        self.up = Linear(dim, hidden, Role.MLP)
        self.down = Linear(hidden, dim, Role.MLP, zero_init=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


MlpConfig = ReluSquaredConfig | SwigluConfig
