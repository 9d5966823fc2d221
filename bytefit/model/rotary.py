"""Rotary position embedding, half-split convention, on the first ``dims`` channels of a head (Parameter Golf baseline; partial: PR #315).

The tables are fp32 whatever the model computes in: the contest's scripts let bf16 into them, and positions above 256 then
collapse onto multiples of 2, above 512 of 4, and so on. ``table_dtype="bfloat16"`` brings that back, for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """
    Attributes:
        base: wavelengths grow geometrically up to about ``2 pi base`` tokens.
        dims: rotated channels of each head, even; None rotates all.
        reference_length, length: with both, frequencies that suit windows of ``reference_length`` tokens are stretched to windows
            of ``length``: the base becomes ``base * (length / reference_length) ** (dims / (dims - 2))``. The 11-layer systems do
            so without saying it: reference 1024, length 2048.
        table_dtype: arithmetic of positions, frequencies and angles.
    """

    base: float = 10_000.0
    dims: int | None = None
    reference_length: int | None = None
    length: int | None = None
    table_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.base <= 1:
            raise ValueError(f"rotary base {self.base} must be above 1")
        if self.dims is not None and (self.dims < 2 or self.dims % 2):
            raise ValueError(f"rotary dims {self.dims} must be even and at least 2")
        if (self.reference_length is None) != (self.length is None):
            raise ValueError(f"rotary reference_length {self.reference_length} and length {self.length}: give both, or neither (null)")
        if self.reference_length is not None and self.length is not None and not 1 <= self.reference_length <= self.length <= 1 << 24:
            raise ValueError(f"rotary reference_length {self.reference_length} must lie in 1..{self.length} (length, at most {1 << 24})")

    def stretched_base(self, head_dim: int) -> float:
        """The base after the rule for longer windows."""
        dims = self.dims or head_dim
        if self.reference_length is None or self.length is None or self.length == self.reference_length:
            return self.base
        return float(self.base * (self.length / self.reference_length) ** (dims / (dims - 2)))


def rotary_table(config: RotaryConfig, head_dim: int, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin for positions 0..length-1, fp32 of shape (length, 1, dims / 2)."""
    dims = config.dims or head_dim
    frequencies = config.stretched_base(head_dim) ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    positions = torch.arange(length, dtype=torch.float64)
    if config.table_dtype == "bfloat16":
        angles = positions.bfloat16()[:, None, None] * frequencies.bfloat16()
    else:
        angles = positions[:, None, None] * frequencies
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
