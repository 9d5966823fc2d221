"""Averages of the weights along a run, always in fp32.

Which one is packed is fixed in the recipe, or chosen on training text that was held out. Choosing on validation text, as two of
the systems did, would be training on it; there is no setting for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Weights = dict[str, Tensor]
AverageName = Literal["last", "ema", "swa", "blend"]


@dataclass(frozen=True, kw_only=True)
class SnapshotConfig:
    """The mean of snapshots taken late in the run ("tight" SWA).

    Attributes:
        every: steps between snapshots.
        below: snapshots are taken while the factor on the learning rates is below this.
    """

    every: int = 50
    below: float = 0.2

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"swa every {self.every} must be at least 1")
        if not 0 < self.below <= 1.01:
            raise ValueError(f"swa below {self.below} must lie in (0, 1.01]; above 1 takes snapshots all along")


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """
    Attributes:
        ema_decay: ``ema ← decay·ema + (1 − decay)·weights`` after every step, starting at the first weights; None keeps none.
        swa: the mean of late snapshots; None keeps none.
        use: what is packed. ``blend`` is a fixed mixture of both; ``held_out`` takes whichever of them (or the last weights) has the
            lowest loss on held-out training text.
        swa_share: share of the snapshots' mean in the blend.
        held_out_tokens: tokens at the end of the training split that are then never trained on.
    """

    ema_decay: float | None = None
    swa: SnapshotConfig | None = None
    use: Literal["ema", "swa", "blend", "held_out"] = "ema"
    swa_share: float = 0.5
    held_out_tokens: int = 65_536

    def __post_init__(self) -> None:
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay} must lie in [0, 1), or be null")
        if not 0 <= self.swa_share <= 1:
            raise ValueError(f"swa_share {self.swa_share} must lie in [0, 1]")
        if self.held_out_tokens < 2:
            raise ValueError(f"held_out_tokens {self.held_out_tokens} must be at least 2")
        needs = {"ema": self.ema_decay is None, "swa": self.swa is None, "blend": self.ema_decay is None or self.swa is None}
        if needs.get(self.use, self.ema_decay is None and self.swa is None):
            raise ValueError(f"average.use {self.use!r} needs what it averages: set ema_decay and swa accordingly")


class Averages:
    """The averages of one run.

    Attributes:
        ema: running average, or empty.
        swa: *mean* of the snapshots so far, or empty before the first.
        snapshots: how many.
    """

    def __init__(self, config: AverageConfig, weights: Mapping[str, Tensor]):
        self.config = config
        self.ema: Weights = {} if config.ema_decay is None else {name: w.detach().float().clone() for name, w in weights.items()}
        self.swa: Weights = {}
        self.snapshots = 0

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], *, step: int, lr_scale: float, snapshots: bool = True) -> None:
        """After optimizer step number ``step`` (1, 2, …), taken with this factor on the learning rates.

        Args:
            snapshots: False leaves the snapshots alone (a replay adds to the EMA only).
        """
        if self.config.ema_decay is not None:
            torch._foreach_lerp_(list(self.ema.values()), [weights[name].detach().float() for name in self.ema], 1 - self.config.ema_decay)
        swa = self.config.swa
        if swa is not None and snapshots and lr_scale < swa.below and step % swa.every == 0:
            self._take_snapshot(weights)

    def _take_snapshot(self, weights: Mapping[str, Tensor]) -> None:
        self.snapshots += 1
        if self.snapshots == 1:
            self.swa = {name: w.detach().float().clone() for name, w in weights.items()}
        else:
            torch._foreach_lerp_(list(self.swa.values()), [weights[name].detach().float() for name in self.swa], 1 / self.snapshots)

    def candidates(self, last: Mapping[str, Tensor]) -> dict[AverageName, Weights]:
        """Everything that could be packed: the last weights and each average that exists."""
        found: dict[AverageName, Weights] = {"last": {name: w.detach().float() for name, w in last.items()}}
        if self.ema:
            found["ema"] = self.ema
        if self.swa:
            found["swa"] = self.swa
        if self.ema and self.swa:
            share = self.config.swa_share
            found["blend"] = {name: torch.lerp(self.ema[name], self.swa[name], share) for name in self.ema}
        return found

    def tensors(self) -> Weights:
        """What a checkpoint keeps, by ``ema/name`` and ``swa/name``."""
        return {f"ema/{n}": t for n, t in self.ema.items()} | {f"swa/{n}": t for n, t in self.swa.items()}

    def load_tensors(self, tensors: Weights, snapshots: int, device: str) -> None:
        """Go on from what ``tensors`` gave."""
        self.ema = {n.removeprefix("ema/"): t.to(device) for n, t in tensors.items() if n.startswith("ema/")}
        self.swa = {n.removeprefix("swa/"): t.to(device) for n, t in tensors.items() if n.startswith("swa/")}
        self.snapshots = snapshots
