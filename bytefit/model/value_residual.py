"""Value residual learning: each block's values are mixed with the first block's (PR #693)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bytefit.model.roles import Role, parameter


@dataclass(frozen=True, kw_only=True)
class ValueResidualConfig:
    """``v ← first · v_first + own · v`` with two learned scalars a block, in every block but the first.

    Attributes:
        first_init, own_init: where the scalars start.
    """

    first_init: float = 0.01
    own_init: float = 0.99

    def build(self) -> ValueResidual:
        return ValueResidual(self)


class ValueResidual(nn.Module):
    def __init__(self, config: ValueResidualConfig):
        super().__init__()
        self.mix = parameter(torch.tensor([config.first_init, config.own_init]), Role.GAIN)

    def forward(self, v_BTGK: Tensor, first_BTGK: Tensor) -> Tensor:
        first, own = self.mix.to(v_BTGK.dtype)
        return first * first_BTGK + own * v_BTGK
