"""Parallel residual lanes: from some block on, attention and MLP read and write two streams (PR #1204 and #1529)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bytefit.model.roles import Role, parameter

Lanes = tuple[Tensor, ...]  # one residual stream (B, T, D), or two


@dataclass(frozen=True, kw_only=True)
class ParallelLanesConfig:
    """Attention reads lane 0 and the MLP lane 1, both as the block received them; each writes to both lanes with learned weights.

    Both lanes start as copies of the one stream, and their mean goes on to the head.

    Attributes:
        start: the first block with two lanes.
    """

    start: int

    def build(self) -> LaneWeights:
        return LaneWeights()


class LaneWeights(nn.Module):
    """``lane_j ← lane_j + weight[0, j]·attention + weight[1, j]·mlp``; all four start at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = parameter(torch.ones(2, 2), Role.GAIN)

    def forward(self, lanes: Lanes, attention_BTD: Tensor, mlp_BTD: Tensor) -> Lanes:
        weight = self.weight.to(attention_BTD.dtype)
        return tuple(lane + weight[0, j] * attention_BTD + weight[1, j] * mlp_BTD for j, lane in enumerate(lanes))


def split_lanes(lanes: Lanes) -> Lanes:
    """Two lanes, whether one came or two."""
    return lanes if len(lanes) == 2 else lanes * 2


def merge_lanes(lanes: Lanes) -> Tensor:
    """One stream: the mean."""
    return lanes[0] if len(lanes) == 1 else (lanes[0] + lanes[1]) / 2
