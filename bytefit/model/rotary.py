"""Rotary position embedding, half-split convention, on the first ``dims`` channels of a head.

The tables are fp32 whatever the model computes in: the contest's scripts let bf16 into them, and positions above 256 then
collapse onto multiples of 2, above 512 of 4, and so on (spec 2.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """
    Attributes:
        base: wavelengths grow geometrically up to about ``2 pi base`` tokens.
        dims: rotated channels of each head, even; None rotates all.
    """

    base: float = 10_000.0
    dims: int | None = None

    def __post_init__(self) -> None:
        if self.base <= 1:
            raise ValueError(f"rotary base {self.base} must be above 1")
        if self.dims is not None and (self.dims < 2 or self.dims % 2):
            raise ValueError(f"rotary dims {self.dims} must be even and at least 2")


def rotary_table(config: RotaryConfig, head_dim: int, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin for positions 0..length-1, fp32 of shape (length, 1, dims / 2)."""
    dims = config.dims or head_dim
    frequencies = config.base ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    angles = torch.arange(length, dtype=torch.float64)[:, None, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel i with channel i + dims/2 of every head; the channels after ``dims`` pass through.

    Args:
        cos, sin: (T, 1, dims / 2), already cut to the positions of ``x``.
    """
    half = cos.size(-1)
    cos, sin = cos.to(x_BTHK.dtype), sin.to(x_BTHK.dtype)
    first, second, rest = torch.split(x_BTHK, [half, half, x_BTHK.size(-1) - 2 * half], dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin, rest], dim=-1)
