"""Smear gate: each position takes a learned share of the one before it (PR #162, #578, #606, #693, #1171)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.data.tokenizer import BOS_ID
from bytefit.model.roles import Role, parameter


@dataclass(frozen=True, kw_only=True)
class SmearGateConfig:
    """``x_t ← (1 − g)·x_t + g·x_{t−1}`` with ``g = sigmoid(gate)`` per channel, after the first norm.

    Attributes:
        gate_init: start of the gate; 0 mixes both halves equally.
        mask_documents: the first token of a document takes nothing from the document before it (the contest's scripts let it).
    """

    gate_init: float = 0.0
    mask_documents: bool = False

    def build(self, dim: int) -> SmearGate:
        return SmearGate(self, dim)


class SmearGate(nn.Module):
    def __init__(self, config: SmearGateConfig, dim: int):
        super().__init__()
        self.mask_documents = config.mask_documents
        self.gate = parameter(torch.full((dim,), config.gate_init), Role.GAIN)

    def forward(self, ids_BT: Tensor, x_BTD: Tensor) -> Tensor:
        """The first position of a window has nothing before it: there ``x_{t−1}`` is 0."""
        g = torch.sigmoid(self.gate).to(x_BTD.dtype)
        before = F.pad(x_BTD[:, :-1], (0, 0, 1, 0))
        if not self.mask_documents:
            return x_BTD + g * (before - x_BTD)
        inside = (ids_BT != BOS_ID)[..., None].to(x_BTD.dtype)
        return x_BTD + g * (before - x_BTD) * inside
