"""Self-distillation: a run's last steps follow the average of its own weights as well as the text (tried in PR #578, "leapfrog v2")."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.model.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """``share·T²·KL(teacher ‖ model) + (1 − share)·cross-entropy``, both a mean over tokens (the original summed its KL over a window).

    The teacher is the EMA of the weights, as it is before each of these steps; logits are divided by T for the KL.

    Attributes:
        steps: at the end of the budget and inside it, on new batches; fewer where they would take more than a quarter of it,
            and by the clock, which reserves an ordinary step's time for each, while the teacher's forward pass comes on top.
        lr_scale: factor on the learning rates in them.
        share: of the teacher.
        temperature: T.
    """

    steps: int = 50
    lr_scale: float = 0.05
    share: float = 0.7
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"distil steps {self.steps} must be at least 1")
        if not self.lr_scale >= 0:
            raise ValueError(f"distil lr_scale {self.lr_scale} must not be negative")
        if not 0 <= self.share <= 1:
            raise ValueError(f"distil share {self.share} must lie in [0, 1]")
        if not self.temperature > 0:
            raise ValueError(f"distil temperature {self.temperature} must be above 0")

    def build(self, model: LanguageModel) -> Distillation:
        return Distillation(self, model)


class Distillation(nn.Module):
    """The loss of the last steps. Made before anything changes the model: its teacher has the model's own plan, and rounds nothing."""

    def __init__(self, config: DistilConfig, model: LanguageModel):
        super().__init__()
        self.model, self.share, self.temperature = model, config.share, config.temperature
        self.teacher = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def teach(self, weights: Mapping[str, Tensor]) -> None:
        """Give the teacher these weights."""
        for name, p in self.teacher.named_parameters():
            p.copy_(weights[name])

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Its value is the cross-entropy alone, as in the steps before; its gradient is that of both."""
        with torch.no_grad():
            taught = F.log_softmax(self.teacher.logits(ids_BT, dtype) / self.temperature, -1)
        logits_BTV = self.model.logits(ids_BT, dtype)
        text = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        said = F.log_softmax(logits_BTV / self.temperature, -1)
        distance = (taught.exp() * (taught - said)).sum(-1).mean()
        total = self.share * self.temperature**2 * distance + (1 - self.share) * text
        return text.detach() + (total - total.detach())
