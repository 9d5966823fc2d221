"""One transformer block: attention and MLP, each behind a norm, on a residual stream that remembers the embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bytefit.model.attention import AttentionConfig, LayerCache
from bytefit.model.linear import rms_norm
from bytefit.model.mlp import ReluSquaredConfig
from bytefit.model.roles import Role, parameter


class Block(nn.Module):
    """``x ← a·x + b·x0``, then ``x ← x + s·Attention(norm(x))``, then ``x ← x + t·MLP(norm(x))`` (spec 1.7).

    a, b, s, t are learned per channel; x0 is the normed embedding. Seams: "residual" is how a branch comes back to the stream, "mlp" is
    the second branch.
    """

    def __init__(self, dim: int, attention: AttentionConfig, mlp: ReluSquaredConfig):
        super().__init__()
        self.mix_stream = parameter(torch.ones(dim), Role.GAIN)
        self.mix_embedding = parameter(torch.zeros(dim), Role.GAIN)
        self.attention_scale = parameter(torch.ones(dim), Role.GAIN)
        self.mlp_scale = parameter(torch.ones(dim), Role.GAIN)
        self.attention = attention.build(dim)
        self.mlp = mlp.build(dim)

    def forward(self, x_BTD: Tensor, x0_BTD: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None = None, start: int = 0) -> Tensor:
        dtype = x_BTD.dtype
        x_BTD = self.mix_stream.to(dtype) * x_BTD + self.mix_embedding.to(dtype) * x0_BTD
        x_BTD = x_BTD + self.attention_scale.to(dtype) * self.attention(rms_norm(x_BTD), cos, sin, cache, start)
        return x_BTD + self.mlp_scale.to(dtype) * self.mlp(rms_norm(x_BTD))
