"""A bias-free linear map with an fp32 master weight that is cast where it is used."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.model.roles import Role, parameter


class Linear(nn.Module):
    """``y = x Wᵀ`` in the dtype of ``x``; the weight (out, in) stays fp32 (spec 1.7).

    Args:
        zero_init: start at zero (output projections), else PyTorch's default for ``nn.Linear``.
    """

    def __init__(self, in_features: int, out_features: int, role: Role, *, zero_init: bool = False):
        super().__init__()
        weight = torch.zeros(out_features, in_features)
        if not zero_init:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.weight = parameter(weight, role)

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight as the matmul sees it (out, in)."""
        return self.weight.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_as(x.dtype))


def rms_norm(x: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis, without a learned weight."""
    return F.rms_norm(x, (x.size(-1),))
