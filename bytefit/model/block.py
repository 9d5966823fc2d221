"""One transformer block: attention and MLP, each behind a norm, on a residual stream that remembers the embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bytefit.model.attention import Attention, LayerCache, Shared
from bytefit.model.lanes import Lanes, LaneWeights, merge_lanes, split_lanes
from bytefit.model.linear import rms_norm
from bytefit.model.mlp import MlpConfig
from bytefit.model.roles import Role, parameter


class Block(nn.Module):
    """``x ← a·x + b·x0``, then ``x ← x + s·Attention(norm(x))``, then ``x ← x + t·MLP(norm(x))`` (Parameter Golf baseline).

    a, b, s, t are learned per channel; x0 is the normed embedding. Seam "residual": how a branch comes back to the stream, or with
    ``lanes`` to two of them.

    Args:
        norm_scale: factor on the output of both norms (layer-norm scale, PR #315).
    """

    def __init__(self, dim: int, attention: Attention, mlp: MlpConfig, *, norm_scale: float = 1.0, lanes: LaneWeights | None = None):
        super().__init__()
        self.norm_scale = norm_scale
        self.mix_stream = parameter(torch.ones(dim), Role.GAIN)
        self.mix_embedding = parameter(torch.zeros(dim), Role.GAIN)
        self.attention_scale = parameter(torch.ones(dim), Role.GAIN)
        self.mlp_scale = parameter(torch.ones(dim), Role.GAIN)
        self.attention = attention
        self.mlp = mlp.build(dim)
        self.lanes = lanes

    def forward(self, lanes: Lanes, shared: Shared, cache: LayerCache | None = None) -> Lanes:
        if self.lanes is not None:
            first, second = (self._mix(lane, shared) for lane in split_lanes(lanes))
            return self.lanes((first, second), self._attention(first, shared, cache), self._mlp(second))
        x_BTD = self._mix(merge_lanes(lanes), shared)
        x_BTD = x_BTD + self._attention(x_BTD, shared, cache)
        return (x_BTD + self._mlp(x_BTD),)

    def _mix(self, x_BTD: Tensor, shared: Shared) -> Tensor:
        return self.mix_stream.to(x_BTD.dtype) * x_BTD + self.mix_embedding.to(x_BTD.dtype) * shared.x0_BTD

    def _attention(self, x_BTD: Tensor, shared: Shared, cache: LayerCache | None) -> Tensor:
        return self.attention_scale.to(x_BTD.dtype) * self.attention(self._norm(x_BTD), shared, cache)

    def _mlp(self, x_BTD: Tensor) -> Tensor:
        return self.mlp_scale.to(x_BTD.dtype) * self.mlp(self._norm(x_BTD))

    def _norm(self, x_BTD: Tensor) -> Tensor:
        normed = rms_norm(x_BTD)
        return normed if self.norm_scale == 1.0 else normed * self.norm_scale
