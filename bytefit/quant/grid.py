"""Grids: where a weight may land. Codes are signed integers; a weight is its code's point times the steps of its row and column.

* ``RowGrid``: each row has a step of its own and codes have end points, as in the contest (int6 is −31…31).
* ``StepGrid``: one step for the whole matrix and no end points; an entropy coder pays for the tails. At equal bytes this does less
  plain damage than rows spread to their maximum: a row with small weights gets fewer bits by itself.
* ``EqualDamageGrid``: a step for each column and row such that every weight's error costs the same (``equal_damage.py``).

The dial of the byte budget divides all steps of a model by one number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bytefit.quant.clip import Clip, FixedClip, RowMaximum, Searched

MAX_CODE = 1 << 20
TINY = 1e-30  # steps below this are of rows that are all but zero
LARGEST_FP16 = float(np.finfo(np.float16).max)
SMALLEST_FP16 = float(np.finfo(np.float16).tiny)  # the smallest normal fp16: below it digits are lost


@dataclass(frozen=True, kw_only=True)
class RowGrid:
    """A step a row.

    Attributes:
        lowest, highest: end points of the codes; both None leaves them open. Int8 is −127…127; PR #128 packed −32…31, PR #578 −31…31.
        levels: steps between zero and the row's reach (None: ``highest``).
        clip: how far a row reaches.
        floor: no step is smaller than this (1/31, 1/15 in the contest); None, or it destroys rows of small weights.
        scale_dtype: how steps are stored; codes are chosen for the step as stored.
    """

    lowest: int | None
    highest: int | None
    levels: int | None = None
    clip: Clip = field(default_factory=RowMaximum)
    floor: float | None = None
    scale_dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        if (self.lowest is None) != (self.highest is None):
            raise ValueError("give both ends of the codes, lowest and highest, or neither")
        if self.highest is None and self.levels is None:
            raise ValueError("a grid without end points needs levels")
        if self.highest is not None and self.lowest is not None and not (-MAX_CODE <= self.lowest <= 0 < self.highest <= MAX_CODE):
            raise ValueError(f"codes {self.lowest}..{self.highest} must reach from 0 or below to 1 or above")
        if self.levels is not None and not 1 <= self.levels <= MAX_CODE:
            raise ValueError(f"levels {self.levels} must lie in 1..{MAX_CODE} (31 is int6, 127 is int8)")
        if self.floor is not None and not self.floor > 0:
            raise ValueError(f"floor {self.floor} must be above 0, or null")

    def ends(self, dial: float) -> tuple[int, int]:
        """Lowest and highest code at a position of the dial."""
        if self.lowest is None or self.highest is None:
            return -MAX_CODE, MAX_CODE
        least = 0 if self.lowest == 0 else min(-1, round(self.lowest * dial))
        return max(-MAX_CODE, least), min(MAX_CODE, max(1, round(self.highest * dial)))

    def steps(self, w: Tensor, dial: float, clip: FixedClip) -> tuple[Tensor, int]:
        """The steps (…, rows) as stored, and how many rows the floor binds."""
        levels = float(self.levels if self.levels is not None else self.highest or 1) * dial
        reach = clip.reach(w)
        steps = reach / levels
        bound = 0
        if self.floor is not None:
            bound = int((steps < self.floor).sum())
            steps = steps.clamp_min(self.floor)
        if self.highest is None:  # codes without ends must still fit what the format holds
            steps = torch.maximum(steps, w.abs().amax(-1) / MAX_CODE)
        steps = steps.masked_fill(steps < TINY, 1.0)  # a row of zeros needs no step, but some number
        if self.scale_dtype == "float16":
            shift = half_shift(w.abs().amax((-1, -2)) / levels)[..., None]
            steps = torch.ldexp(torch.ldexp(steps, shift).clamp(SMALLEST_FP16, LARGEST_FP16).half().float(), -shift)
        return steps, bound

    def candidates(self) -> tuple[FixedClip, ...]:
        return self.clip.among if isinstance(self.clip, Searched) else (self.clip,)


def half_shift(largest: Tensor) -> Tensor:
    """By how many octaves a matrix's steps are shifted before they become fp16: none while they lie in its range with room on both sides,
    which only a dial turned far leaves."""
    octave = largest.clamp_min(TINY).log2().floor()
    return torch.where((octave >= -10) & (octave <= 10), 0.0, -octave).int()


def integer_grid(bits: int, clip: Clip | None = None) -> RowGrid:
    """Symmetric codes of so many bits: 2 is −1…1 (ternary), 6 is −31…31, 8 is −127…127."""
    if not 2 <= bits <= 16:
        raise ValueError(f"bits {bits} must lie in 2..16")
    highest = 2 ** (bits - 1) - 1
    return RowGrid(lowest=-highest, highest=highest, clip=clip or RowMaximum())


@dataclass(frozen=True, kw_only=True)
class StepGrid:
    """One step for the matrix: its root-mean-square weight divided by ``fineness``.

    Attributes:
        fineness: steps in one rms weight; 4 costs about 4 bits a weight, each doubling one bit more.
    """

    fineness: float

    def __post_init__(self) -> None:
        if not 0.01 <= self.fineness <= 4096:
            raise ValueError(f"fineness {self.fineness} must lie in 0.01..4096")

    def step(self, w: Tensor, dial: float) -> Tensor:
        """The step (…, 1)."""
        rms = w.double().square().mean((-1, -2)).sqrt()
        step = torch.maximum(rms / (self.fineness * dial), w.abs().amax((-1, -2)).double() / MAX_CODE).clamp_min(1e-30)
        return step.float()[..., None]


@dataclass(frozen=True, kw_only=True)
class EqualDamageGrid:
    """Steps ``c / (L_jj · √G_ii)`` for column j and row i, one c for the whole model, no end points (WaterSIC, arXiv 2603.04956).

    L is the Cholesky factor of the inputs' second moment in the order of rounding, G the second moment of the outputs' gradients.

    Attributes:
        step: c: the square root of twelve times the nats a token that each weight's error may cost (times two); the dial divides it.
        row_factors: whether rows differ by their gradients; needs a calibration with gradients.
        trellis: 0 rounds each weight by itself; 4 or 8 states choose whole columns of codes together (trellis-coded quantisation).
        rate_weight: how much a code's price counts against its error: 0 takes the nearest point, 1 the slope of the curve of bytes against
            damage. A little is best for a model's loss (benchmarks/rate.py): the full slope shrinks all weights at once, and none lets
            feedback pile up weights of any size where the calibration saw next to nothing.
        damp: share of the mean diagonal added to the inputs' second moment.
        rescale: steps are fitted to the codes again afterwards: one factor for the matrix, which is free, or one for each row and
            column, which takes finer exponents.
    """

    step: float = 0.01
    row_factors: bool = True
    trellis: Literal[0, 4, 8] = 8
    rate_weight: float = 0.15
    damp: float = 1e-3
    rescale: Literal["none", "matrix", "rows and columns"] = "none"

    def __post_init__(self) -> None:
        if not 0 < self.step < 1e6:
            raise ValueError(f"step {self.step} must lie in (0, 1e6)")
        if not 0 <= self.rate_weight <= 2:
            raise ValueError(f"rate_weight {self.rate_weight} must lie in 0..2")
        if not 0 <= self.damp <= 1:
            raise ValueError(f"damp {self.damp} must lie in 0..1")


Grid = RowGrid | StepGrid | EqualDamageGrid
