"""From the last hidden state to logits, and from logits to a loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.model.linear import Linear, Table
from bytefit.model.roles import Role, parameter


@dataclass(frozen=True, kw_only=True)
class LearnedCaps:
    """Separate learned bounds for positive and negative logits, ``c± · tanh(z / c±)`` (PR #1923).

    Attributes:
        init: where both start.
    """

    init: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.init <= 1000:
            raise ValueError(f"softcap init {self.init} must lie in (0, 1000]")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """
    Attributes:
        tied: the output matrix is the embedding table.
        softcap: logits are ``softcap * tanh(logits / softcap)``; None leaves them as they are.
    """

    tied: bool = True
    softcap: float | LearnedCaps | None = 30.0

    def __post_init__(self) -> None:
        if isinstance(self.softcap, float | int) and not 0 < self.softcap <= 60:
            # exp(60) * 65536 still fits fp32, which lets the loss leave out the maximum (see cross_entropy)
            raise ValueError(f"softcap {self.softcap} must lie in (0, 60], or be null")

    def build(self, vocab_size: int, dim: int) -> Head:
        return Head(self, vocab_size, dim)


class Head(nn.Module):
    """The output matrix, where it is not the embedding table, and the learned caps, where there are any."""

    def __init__(self, config: HeadConfig, vocab_size: int, dim: int):
        super().__init__()
        self.matrix = None if config.tied else Linear(dim, vocab_size, Role.HEAD, zero_init=True)
        self.caps: nn.Parameter | None = None
        self.softcap: float | None = None
        if isinstance(config.softcap, LearnedCaps):
            self.caps = parameter(torch.full((2,), config.softcap.init), Role.GAIN)
        else:
            self.softcap = config.softcap

    def raw_logits(self, x_BTD: Tensor, table: Table) -> Tensor:
        """Logits in the dtype of ``x``, not yet capped."""
        return table.as_head(x_BTD) if self.matrix is None else self.matrix(x_BTD)

    def cap(self, logits: Tensor) -> Tensor:
        """Logits in fp32, softly bounded."""
        if self.caps is None:
            return cap_logits(logits, self.softcap)
        positive, negative = self.caps
        logits = at_least_fp32(logits)
        bound = torch.where(logits > 0, positive, negative)
        return bound * torch.tanh(logits / bound)

    def loss(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Mean cross-entropy in nats, in fp32.

        Logits under a fixed bound need no maximum subtracted before the exponential, which saves a pass over the largest tensor of a step.
        """
        capped = self.cap(logits_NV)
        if self.softcap is None:
            return F.cross_entropy(capped, targets_N)
        return (capped.exp().sum(-1).log() - capped.gather(-1, targets_N[:, None]).squeeze(-1)).mean()


def at_least_fp32(x: Tensor) -> Tensor:
    """bf16 to fp32; a model that computes in float64 (tests) stays there."""
    return x if x.dtype == torch.float64 else x.float()


def cap_logits(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits in fp32, softly bounded to ±softcap by ``softcap * tanh(logits / softcap)``.

    Written with one exponential: a vectorised tanh made the loss more than twice as slow on CPUs. The clamp only keeps the
    exponential finite; the bound is reached to the last bit long before it.
    """
    logits = at_least_fp32(logits)
    if softcap is None:
        return logits
    return softcap - 2 * softcap / ((logits * (2 / softcap)).clamp(max=80.0).exp() + 1)
