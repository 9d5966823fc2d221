"""Attention output gate: each head's output is scaled by a gate on a few channels of the block's input (PR #1667)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.model.roles import Role, parameter


@dataclass(frozen=True, kw_only=True)
class OutputGateConfig:
    """``y_h ← 2·sigmoid(w_h · x[:channels]) · y_h``; the weights start at zero, so that every gate starts at 1.

    Attributes:
        channels: how many channels of the normed input the gate reads.
        blocks: which blocks; None is all.
    """

    channels: int = 12
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"output_gate channels {self.channels} must be at least 1")

    def build(self, num_heads: int) -> OutputGate:
        return OutputGate(self.channels, num_heads)


class OutputGate(nn.Module):
    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.channels = channels
        self.weight = parameter(torch.zeros(num_heads, channels), Role.GAIN)

    def forward(self, y_BTHK: Tensor, x_BTD: Tensor) -> Tensor:
        gate_BTH = 2 * torch.sigmoid(F.linear(x_BTD[..., : self.channels], self.weight.to(x_BTD.dtype)))
        return y_BTHK * gate_BTH[..., None]
