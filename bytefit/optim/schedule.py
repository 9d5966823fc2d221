"""Schedules: pure functions of how far a run has come."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Moment:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        seconds: training seconds spent (0 in step-driven runs).
        total_steps: the budget in steps, or None when the clock is the budget.
        total_seconds: the budget in seconds, or None when steps are.
        step_seconds: what a step takes, the *median* of recent ones; None while too few were taken to know. The contest's scripts take
            the mean since the start, which a slow first step inflates so much that the learning rate looks warmed down at step 1.
        reserved_steps: steps at the end that follow a schedule of their own (burst replay), inside the budget; at most a quarter of it.
    """

    step: int
    seconds: float = 0.0
    total_steps: int | None = None
    total_seconds: float | None = None
    step_seconds: float | None = None
    reserved_steps: int = 0

    @property
    def fraction(self) -> float:
        """Share of the budget, less what is reserved, that is used: 0 to 1."""
        if self.total_steps:
            return min(1.0, self.step / (self.total_steps - self._reserved))
        return min(1.0, self.seconds / ((self.total_seconds or 1.0) - self._reserved))

    @property
    def spent(self) -> bool:
        """Whether the whole budget is used, what is reserved included."""
        return self.step >= self.total_steps if self.total_steps else self.seconds >= (self.total_seconds or 0.0)

    @property
    def _reserved(self) -> float:
        """What is reserved, in the budget's own unit."""
        if self.total_steps:
            return min(self.reserved_steps, self.total_steps // 4)
        return min(self.reserved_steps * (self.step_seconds or 0.0), (self.total_seconds or 0.0) / 4)

    @property
    def steps_left(self) -> float:
        """Steps that still fit before what is reserved; by the clock, infinite while the length of a step is not known."""
        if self.total_steps:
            return max(0.0, self.total_steps - self._reserved - self.step)
        if not self.step_seconds:
            return float("inf")
        return max(0.0, (self.total_seconds or 0.0) - self._reserved - self.seconds) / self.step_seconds


@dataclass(frozen=True, kw_only=True)
class WarmdownConfig:
    """Constant, then linear to ``floor`` at the end of the budget (Parameter Golf baseline).

    ``fraction=1`` with ``ramp_steps`` is D2Z: a short rise, then linear to zero over the whole run (tried in PR #578).

    Attributes:
        fraction: length of the linear part as a share of the budget, or
        steps: its length in steps, by the clock estimated from what a step takes (the contest's rule). Give exactly one.
        floor: last value.
        ramp_steps: steps of linear rise at the very start.
    """

    fraction: float | None = None
    steps: int | None = None
    floor: float = 0.0
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.steps is None):
            raise ValueError("give exactly one of schedule.fraction and schedule.steps")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"schedule.fraction {self.fraction} must lie in (0, 1]")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"schedule.steps {self.steps} must be at least 1")
        if self.ramp_steps < 0:
            raise ValueError(f"schedule.ramp_steps {self.ramp_steps} must not be negative")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"schedule.floor {self.floor} must lie in [0, 1]")


def lr_scale(config: WarmdownConfig, moment: Moment) -> float:
    """Factor on every learning rate at this moment, 0 to 1."""
    if config.fraction is not None:
        remaining = (1.0 - moment.fraction) / config.fraction
    else:
        remaining = moment.steps_left / (config.steps or 1)
    ramp = min(1.0, (moment.step + 1) / config.ramp_steps) if config.ramp_steps else 1.0
    return ramp * max(config.floor, min(1.0, remaining))


def linear_warmup(start: float, end: float, steps: int, step: int) -> float:
    """From ``start`` at step 0 to ``end`` at ``steps``, then constant (Muon's momentum)."""
    return end if step >= steps else start + (end - start) * step / steps
