"""Fake quantisation: training sees the weights as the grid will leave them, the optimizer keeps the fp32 ones.

A ``Rounding`` stands on each map, between its master weight and the matmul. It has no parameters and is in no state dict, so that
names, checkpoints and optimizers do not know of it. What changes along a run (the rows' scales, how far rounding is blended in, how
sharp it is) are tensors that ``FakeQuantiser`` writes once an optimizer step: a compiled loss reads them and is never compiled again.
Turning it on is one change of attribute, and exactly one other graph.

Legend: W master weight (rows, cols), y = W / scale, Q(W) the nearest point of the grid, a sharpness.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bytefit.model.linear import Linear
from bytefit.model.roles import MATRIX_ROLES, Role, role_of
from bytefit.quant.clip import FixedClip

ROLES = (*MATRIX_ROLES, Role.PROJECTION)  # what is rounded in training; tables and an untied head are not
MAX_CODE = 2048
NO_REACH = 1e-8  # a row of zeros reaches this far (PR #128)


@dataclass(frozen=True, kw_only=True)
class StraightThrough:
    """Hard rounding; the gradient passes as if it were not there (PR #128, #578, #1171)."""

    def sharpness(self, lr_scale: float, below: float) -> float:
        """Not used."""
        return 1.0

    def rounded(self, y: Tensor, a: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor | None]:
        """Codes, and the factor on the gradient (None: 1 everywhere)."""
        return y.round().clamp(lowest, highest), None


@dataclass(frozen=True, kw_only=True)
class SigmoidGradient:
    """Hard rounding; the gradient is multiplied by the slope of a soft step with mean 1 over each cell (PR #693).

    Large temperatures are straight-through. Small ones hold weights where they are round and move those between two codes.

    Attributes:
        tau, late_tau: temperature, a = 1 / (2 tau), before and after the factor on the learning rates falls below ``late_below``.
    """

    tau: float = 1000.0
    late_tau: float = 0.1
    late_below: float = 0.02

    def __post_init__(self) -> None:
        for name, tau in (("tau", self.tau), ("late_tau", self.late_tau)):
            if not 1e-3 <= tau <= 1e6:
                raise ValueError(f"fake_quant.rounding.{name} {tau} must lie in 0.001..1000000")
        if not self.late_below >= 0:
            raise ValueError(f"fake_quant.rounding.late_below {self.late_below} must not be negative")

    def sharpness(self, lr_scale: float, below: float) -> float:
        return 1 / (2 * (self.late_tau if lr_scale < self.late_below else self.tau))

    def rounded(self, y: Tensor, a: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor | None]:
        return y.round().clamp(lowest, highest), _soft_round(y, a)[1]


@dataclass(frozen=True, kw_only=True)
class SoftRound:
    """Differentiable rounding in both directions, ever sharper (PR #606). Weights beyond the last code get no gradient.

    Attributes:
        start, end: sharpness a when the phase begins and when the learning rates have come to 0, linear between.
    """

    start: float = 1.0
    end: float = 16.0

    def __post_init__(self) -> None:
        if not 1e-3 <= self.start <= self.end <= 1000:
            raise ValueError(f"fake_quant.rounding start {self.start} and end {self.end} must rise and lie in 0.001..1000")

    def sharpness(self, lr_scale: float, below: float) -> float:
        fallen = 1 - lr_scale / min(below, 1.0)
        return self.start + (self.end - self.start) * max(0.0, fallen)

    def rounded(self, y: Tensor, a: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor | None]:
        soft, slope = _soft_round(y, a)
        return soft.clamp(lowest, highest), slope * ((soft >= lowest) & (soft <= highest))


RoundingKind = StraightThrough | SigmoidGradient | SoftRound


def _soft_round(y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """``m + tanh(a(y − m)) / 2tanh(a/2)`` with m the middle of y's cell, and its slope: y itself for a → 0, a step for a → ∞."""
    middle = y.floor() + 0.5
    rise, width = torch.tanh(a * (y - middle)), 2 * torch.tanh(a / 2)
    return middle + rise / width, a * (1 - rise * rise) / width


@dataclass(frozen=True, kw_only=True)
class FakeQuantConfig:
    """
    Attributes:
        rounding: what stands in for rounding, forwards and backwards.
        lowest, highest: the codes; a row's scale is its reach divided by ``highest``.
        clip: how far a row reaches.
        floor: smallest scale, a weight. PR #578 has 1/31, which is a coarse step for small weights; None has none.
        below: on from the step at which the factor on the learning rates has fallen below this until the end; above 1 from the first step.
        ramp_steps: steps over which rounding is blended in.
        dampen: pull of each weight inside the grid towards its code (Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware
            Training"): dampen · Σ (W − Q(W))² is added to the loss.
    """

    rounding: RoundingKind
    lowest: int
    highest: int
    clip: FixedClip
    floor: float | None = None
    below: float
    ramp_steps: int = 0
    dampen: float = 0.0

    def __post_init__(self) -> None:
        if not -MAX_CODE <= self.lowest < 0 < self.highest <= MAX_CODE:
            raise ValueError(f"fake_quant lowest {self.lowest} and highest {self.highest} must stand on both sides of 0, up to {MAX_CODE}")
        if self.floor is not None and not self.floor > 0:
            raise ValueError(f"fake_quant floor {self.floor} must be above 0, or null")
        if not self.below > 0:
            raise ValueError(f"fake_quant below {self.below} must be above 0")
        if self.ramp_steps < 0:
            raise ValueError(f"fake_quant ramp_steps {self.ramp_steps} must not be negative")
        if not self.dampen >= 0:
            raise ValueError(f"fake_quant dampen {self.dampen} must not be negative")

    @property
    def always(self) -> bool:
        """On from the first step."""
        return self.below > 1

    def scales(self, weight: Tensor) -> Tensor:
        """One a row, (rows, 1)."""
        scale = self.clip.reach(weight).clamp(min=NO_REACH) / self.highest
        return (scale if self.floor is None else scale.clamp(min=self.floor)).unsqueeze(-1)


class Rounding(nn.Module):
    """Master weight (rows, cols) to what the matmul sees.

    Args:
        blend: 0-dim, how far rounding is blended in; shared by all maps, as is ``sharpness``.
    """

    def __init__(self, config: FakeQuantConfig, weight: Tensor, blend: Tensor, sharpness: Tensor):
        super().__init__()
        self.config = config
        self.scale: Tensor
        self.blend: Tensor
        self.sharpness: Tensor
        self.register_buffer("scale", weight.new_ones(weight.size(0), 1), persistent=False)
        self.register_buffer("blend", blend, persistent=False)
        self.register_buffer("sharpness", sharpness, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        fixed = weight.detach()
        codes, slope = self.config.rounding.rounded(fixed / self.scale, self.sharpness, self.config.lowest, self.config.highest)
        value = torch.lerp(fixed, codes * self.scale, self.blend)
        carrier = weight - fixed  # zero; only the gradient goes through it
        return value + (carrier if slope is None else carrier * (1 + self.blend * (slope - 1)))


class FakeQuantiser:
    """The roundings of a model's maps, and when they are on.

    Args:
        model: already on its device; nothing of it changes but ``Linear.rounding`` while the phase is on.
    """

    def __init__(self, config: FakeQuantConfig, model: nn.Module):
        self.config = config
        self.maps = [part for part in model.modules() if isinstance(part, Linear) and role_of(part.weight) in ROLES]
        device = self.maps[0].weight.device
        self.blend, self.sharpness = torch.ones((), device=device), torch.ones((), device=device)
        self._roundings = [Rounding(config, part.weight.detach(), self.blend, self.sharpness) for part in self.maps]
        self.on = False
        self._switch(True)  # a submodule that was there once leaves its name behind: so both states look alike to compiled guards
        self._switch(False)

    @torch.no_grad()
    def update(self, steps_on: int | None, lr_scale: float) -> None:
        """Before an optimizer step: turn roundings on or off, and fit them to the weights and the moment.

        Args:
            steps_on: optimizer steps since the phase began; None while it has not.
            lr_scale: the lowest factor on the learning rates so far.
        """
        if self.on != (steps_on is not None):
            self._switch(not self.on)
        if steps_on is None:
            return
        self.blend.fill_(min(1.0, (steps_on + 1) / max(1, self.config.ramp_steps)))
        self.sharpness.fill_(self.config.rounding.sharpness(lr_scale, self.config.below))
        for part, rounding in zip(self.maps, self._roundings, strict=True):
            rounding.scale.copy_(self.config.scales(part.weight))

    def _switch(self, on: bool) -> None:
        for part, rounding in zip(self.maps, self._roundings, strict=True):
            part.rounding = rounding if on else None
        self.on = on

    @torch.no_grad()
    def dampen(self) -> None:
        """Add the gradient of ``dampen · Σ (W − Q(W))²`` over the weights inside the grid, while the phase is on."""
        if not self.on or not self.config.dampen:
            return
        for part, rounding in zip(self.maps, self._roundings, strict=True):
            assert part.weight.grad is not None
            off_by, inside = self._off_by(part.weight, rounding.scale)
            part.weight.grad.addcmul_(off_by * inside, rounding.scale, value=2 * self.config.dampen)

    @torch.no_grad()
    def distance(self) -> float:
        """Mean of ``((W − Q(W)) / scale)²`` over the weights inside the grid: 1/12 where they lie anyhow, 0 where all are round."""
        squares, count = torch.zeros(2, dtype=torch.float64, device=self.blend.device)  # read once: each reading waits for a GPU
        for part in self.maps:
            off_by, inside = self._off_by(part.weight, self.config.scales(part.weight))
            squares += (off_by * inside).square().sum()
            count += inside.sum()
        return float(squares / count.clamp_min(1.0))

    def _off_by(self, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """``(W − Q(W)) / scale``, and which weights round to a code of the grid without clipping."""
        y = weight / scale
        codes = y.round()
        return y - codes, (codes >= self.config.lowest) & (codes <= self.config.highest)
