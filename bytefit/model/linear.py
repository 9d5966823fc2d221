"""A bias-free linear map with an fp32 master weight that is cast where it is used."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.model.roles import Role, parameter


class Linear(nn.Module):
    """``y = x Wᵀ`` in the dtype of ``x``; the weight (out, in) stays fp32 (Parameter Golf baseline).

    Args:
        zero_init: start at zero (output projections), else PyTorch's default for ``nn.Linear``.
        orthogonal_gain: factor on an orthogonal start, where the model asks for one.
    """

    def __init__(self, in_features: int, out_features: int, role: Role, *, zero_init: bool = False, orthogonal_gain: float = 1.0):
        super().__init__()
        self.zero_init, self.orthogonal_gain = zero_init, orthogonal_gain
        weight = torch.zeros(out_features, in_features)
        if not zero_init:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.weight = parameter(weight, role)

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight as the matmul sees it (out, in)."""
        return self.weight.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_as(x.dtype))


@dataclass(frozen=True, kw_only=True)
class OrthogonalInit:
    """Every linear map that does not start at zero starts orthogonal, with gain 1 or the gain of its part (record of 19 March 2026).

    Attributes:
        min_size: matrices with a side shorter than this keep PyTorch's default.
    """

    min_size: int = 64

    def __post_init__(self) -> None:
        if self.min_size < 1:
            raise ValueError(f"orthogonal min_size {self.min_size} must be at least 1")

    def apply(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, Linear) and not module.zero_init and min(module.weight.shape) >= self.min_size:
                nn.init.orthogonal_(module.weight, gain=module.orthogonal_gain)


def rms_norm(x: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis, without a learned weight."""
    return F.rms_norm(x, (x.size(-1),))
