"""A whole model's weights to codes, by role and block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bytefit.errors import UserError
from bytefit.model.roles import ParameterInfo, Role
from bytefit.quant.calibrate import Statistics
from bytefit.quant.clip import Searched
from bytefit.quant.codes import Codes, RowSteps
from bytefit.quant.equal_damage import round_equal_damage
from bytefit.quant.gptq import Gptq, Nearest, Rounding, round_rows
from bytefit.quant.grid import EqualDamageGrid, Grid, RowGrid, StepGrid
from bytefit.quant.low_rank import Correction, LowRankConfig, add_correction, correct
from bytefit.quant.metric import Factor, Metric, factorise
from bytefit.quant.prune import PruneConfig

RoleName = Literal["table", "attention", "attention_out", "mlp", "projection", "head"]
RELATIVE_DIAL = 2.0**14  # from nothing but zeros to codes of 18 bits
FINEST_GAIN_STEP = 2.0**-14
GREATEST_GAIN_CODE = 1 << 20  # what the coder of codes takes


@dataclass(frozen=True, kw_only=True)
class MatrixQuant:
    """How a matrix is rounded.

    Attributes:
        grid: where its weights may land.
        rounding: to the nearest code, or with error feedback (an ``EqualDamageGrid`` always has feedback).
    """

    grid: Grid
    rounding: Rounding = field(default_factory=Nearest)

    @property
    def needs_inputs(self) -> bool:
        """Whether it has to know what the matrix sees."""
        searched = isinstance(self.grid, RowGrid) and isinstance(self.grid.clip, Searched) and self.grid.clip.error == "weighted"
        return isinstance(self.grid, EqualDamageGrid) or isinstance(self.rounding, Gptq) or searched

    @property
    def needs_gradients(self) -> bool:
        """Whether it has to know how much the outputs matter."""
        return isinstance(self.grid, EqualDamageGrid) and self.grid.row_factors


@dataclass(frozen=True, kw_only=True)
class BlockRule:
    """Another rounding for one role's matrices in some blocks.

    Attributes:
        role: which matrices.
        blocks: in which blocks.
    """

    role: RoleName
    blocks: tuple[int, ...]
    quant: MatrixQuant


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """The rounding of each role, under the role's own name.

    Attributes:
        attention_out: None is as ``attention``; PR #578 tried int8 there.
        block_rules: exceptions for single blocks; the first that fits counts.
        gain_step: gains are rounded to multiples of this; None keeps them in fp32.
        prune: weights that are set to zero first.
        low_rank: corrections of the worst matrices afterwards.
    """

    table: MatrixQuant
    attention: MatrixQuant
    attention_out: MatrixQuant | None = None
    mlp: MatrixQuant
    projection: MatrixQuant
    head: MatrixQuant
    block_rules: tuple[BlockRule, ...] = ()
    gain_step: float | None = None
    prune: PruneConfig | None = None
    low_rank: LowRankConfig | None = None

    def __post_init__(self) -> None:
        if self.gain_step is not None and not FINEST_GAIN_STEP <= self.gain_step <= 1:
            raise ValueError(f"gain_step {self.gain_step} must lie in [{FINEST_GAIN_STEP:g}, 1], or be null")

    def rule_for(self, role: Role, block: int | None = None) -> MatrixQuant | None:
        """None for roles that are not rounded to a grid."""
        for rule in self.block_rules:
            if rule.role == role.value and block in rule.blocks:
                return rule.quant
        own: MatrixQuant | None = getattr(self, role.value, None)
        return self.attention if own is None and role is Role.ATTENTION_OUT else own

    def rules(self) -> list[MatrixQuant]:
        """Every rule that there is."""
        named = [getattr(self, role.value, None) for role in Role]
        return [rule for rule in [*named, *(rule.quant for rule in self.block_rules)] if rule is not None]

    @property
    def needs_inputs(self) -> bool:
        return self.low_rank is not None or any(rule.needs_inputs for rule in self.rules())

    @property
    def needs_gradients(self) -> bool:
        return any(rule.needs_gradients for rule in self.rules())


@dataclass(frozen=True)
class QuantisedModel:
    """
    Attributes:
        codes: of every matrix, by parameter name, in the model's order.
        gains: the other parameters: codes where they are rounded, else fp32.
        corrections: low-rank corrections by parameter name.
        floor_rows: how many rows a grid's floor binds.
        pruned: how many weights were set to zero before they were rounded.
    """

    codes: dict[str, Codes]
    gains: dict[str, Codes | np.ndarray]
    corrections: dict[str, Correction]
    floor_rows: int
    pruned: int = 0

    def weights(self, name: str) -> np.ndarray:
        """What a decoder will read back, float32."""
        if name in self.codes:
            return add_correction(self.codes[name].weights(), self.corrections.get(name))
        gain = self.gains[name]
        return gain.weights() if isinstance(gain, Codes) else gain


class Quantiser:
    """One model ready to be rounded at any position of the dial: what does not depend on it is done once.

    Args:
        weights: fp32 by parameter name.
        statistics: of the calibration; needed where ``config.needs_inputs``.

    Raises:
        UserError: NaN or infinite weights.
    """

    def __init__(self, weights: dict[str, Tensor], infos: Iterable[ParameterInfo], config: QuantConfig, statistics: Statistics):
        self.config, self.infos, self.statistics = config, list(infos), statistics
        self.weights: dict[str, Tensor] = {}
        self.keep: dict[str, Tensor] = {}
        self.rules: dict[str, MatrixQuant] = {}
        for info in self.infos:
            w = weights[info.name].float().cpu()
            if not torch.isfinite(w).all():
                raise UserError(f"the weights {info.name} hold NaN or infinite values; the run diverged (lower the learning rates)")
            rule = config.rule_for(info.role, info.block)
            if rule is not None:
                self.rules[info.name] = rule
                if rule.needs_inputs and info.name not in statistics:
                    raise UserError(f"{info.name} cannot be rounded like this without a calibration; set calibrate in the recipe")
                keep = config.prune.keep(w) if config.prune is not None else None
                if keep is not None:
                    self.keep[info.name] = keep
                    w = w * keep
            self.weights[info.name] = w
        self.factors = self._factorise()

    def _factorise(self) -> dict[str, Factor]:
        """Matrices that see the same input, and are to be rounded alike, share a factor."""
        made: dict[tuple[object, ...], Factor] = {}
        factors = {}
        for name, rule in self.rules.items():
            if isinstance(rule.grid, EqualDamageGrid):
                how: dict[str, object] = {"damp": rule.grid.damp}
            elif isinstance(rule.rounding, Gptq):
                own = rule.rounding
                how = {"damp": own.damp, "times": own.damp_times, "order": own.order, "downdate": own.downdate}
            else:
                continue
            columns = self.statistics[name].columns
            key = (columns.data_ptr(), *how.values())
            if key not in made:
                made[key] = factorise(columns, name=name, **how)  # type: ignore[arg-type]
            factors[name] = made[key]
        return factors

    def at(self, dial: float = 1.0) -> QuantisedModel:
        """The model's codes with all steps divided by ``dial``."""
        found: dict[str, Codes] = {}
        floor_rows = 0
        batches: dict[tuple[object, ...], list[str]] = defaultdict(list)
        for name, rule in self.rules.items():
            if isinstance(rule.grid, EqualDamageGrid):
                metric, factor = self.statistics[name], self.factors[name]
                keep = self.keep[name].numpy() if name in self.keep else None
                found[name] = round_equal_damage(self.weights[name].numpy(), metric, factor, rule.grid, dial, keep)
            else:
                batches[(rule, self.weights[name].shape, name in self.keep)].append(name)
        for names in batches.values():
            codes, bound = self._round_batch(names, dial)
            found |= codes
            floor_rows += bound
        found = {info.name: found[info.name] for info in self.infos if info.name in found}
        corrections = {}
        if self.config.low_rank is not None:
            weights = {name: self.weights[name].numpy() for name in found}
            corrections = correct(weights, found, self.statistics, self.config.low_rank)
        return QuantisedModel(found, self._gains(), corrections, floor_rows, sum(int((~keep).sum()) for keep in self.keep.values()))

    def _round_batch(self, names: list[str], dial: float) -> tuple[dict[str, Codes], int]:
        rule = self.rules[names[0]]
        assert isinstance(rule.grid, RowGrid | StepGrid)
        metrics: list[Metric] | None = [self.statistics[name] for name in names] if rule.needs_inputs else None
        factors = [self.factors[name] for name in names] if names[0] in self.factors else None
        keep = torch.stack([self.keep[name] for name in names]) if names[0] in self.keep else None
        stacked = torch.stack([self.weights[name] for name in names])
        dial = min(max(dial, 1 / RELATIVE_DIAL), RELATIVE_DIAL)  # steps relative to the weights have their end well before those of damage
        rounded = round_rows(stacked, rule.grid, rule.rounding, dial=dial, metrics=metrics, factors=factors, keep_NRC=keep)
        dtype = rule.grid.scale_dtype if isinstance(rule.grid, RowGrid) else "float32"
        parts = zip(names, rounded.codes.numpy(), rounded.steps.numpy(), strict=True)
        return {name: Codes(codes, RowSteps(steps, dtype)) for name, codes, steps in parts}, rounded.bound

    def _gains(self) -> dict[str, Codes | np.ndarray]:
        gains: dict[str, Codes | np.ndarray] = {}
        step = self.config.gain_step
        for info in self.infos:
            if info.name not in self.rules:
                values = self.weights[info.name].numpy()
                gains[info.name] = values if step is None else _gain_codes(info.name, values, step)
        return gains


def _gain_codes(name: str, values: np.ndarray, step: float) -> Codes:
    """One row of codes, whatever the shape was. Raises UserError where a gain is too large for a code."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest > GREATEST_GAIN_CODE * step:
        raise UserError(f"{name} has grown to {largest:g}, too large for a gain_step of {step:g}; give --set pack.quant.gain_step=null")
    return Codes(np.round(values.reshape(1, -1) / step).astype(np.int32), RowSteps(np.array([step], dtype=np.float32), "float32"))
