"""Averages of the weights along a run, always in fp32."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExponentialAverage:
    """``average ← decay·average + (1 − decay)·weights`` after every step, starting at the weights (spec 2.14)."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.decay = decay
        self.average: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: dict[str, nn.Parameter]) -> None:
        current = [parameters[name].detach().float() for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - self.decay)
