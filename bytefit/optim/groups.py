"""Which optimizer trains which role."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from bytefit.dtypes import DtypeName
from bytefit.model.roles import MATRIX_ROLES, ParameterInfo, Role
from bytefit.optim.muon import Muon


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon on the hidden matrices.

    Attributes:
        momentum_start, momentum, momentum_warmup_steps: linear from the first to the second over so many steps.
        iterations: Newton–Schulz iterations a step.
        dtype: of the iteration; ``auto`` takes the faster one here. Momentum is fp32.
    """

    lr: float
    momentum_start: float = 0.85
    momentum: float = 0.95
    momentum_warmup_steps: int = 500
    weight_decay: float = 0.0
    iterations: int = 5
    dtype: DtypeName = "auto"

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)
        if not 0 <= self.momentum_start < 1 or not 0 <= self.momentum < 1:
            raise ValueError(f"momentum {self.momentum_start} to {self.momentum} must lie in [0, 1)")
        if self.iterations < 1:
            raise ValueError(f"iterations {self.iterations} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """AdamW (plain Adam where ``weight_decay`` is 0)."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)


def _check_rates(lr: float, weight_decay: float) -> None:
    if lr < 0 or weight_decay < 0:
        raise ValueError(f"lr {lr} and weight_decay {weight_decay} must not be negative")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """One entry a family of roles; together they cover every role (``assign`` checks it)."""

    matrices: MuonConfig
    tables: AdamConfig
    gains: AdamConfig
    head: AdamConfig = field(default_factory=lambda: AdamConfig(lr=0.008))


def assign(infos: Iterable[ParameterInfo]) -> dict[str, list[ParameterInfo]]:
    """Parameters by entry of ``OptimizerConfig``; each lands in exactly one."""
    entry_of = {Role.TABLE: "tables", Role.HEAD: "head", Role.GAIN: "gains"} | dict.fromkeys(MATRIX_ROLES, "matrices")
    assigned: dict[str, list[ParameterInfo]] = {name: [] for name in ("matrices", "tables", "head", "gains")}
    for info in infos:
        if info.parameter.numel():
            assigned[entry_of[info.role]].append(info)
    return assigned


def build_optimizers(config: OptimizerConfig, infos: Iterable[ParameterInfo], muon_dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Muon (its iteration in ``muon_dtype``) for the matrices, one fused AdamW with a group for each other entry.

    Every group carries ``base_lr``, which the training loop multiplies by the schedule.
    """
    assigned = assign(infos)
    muon = config.matrices
    optimizers: list[torch.optim.Optimizer] = [
        Muon(
            [info.parameter for info in assigned["matrices"]],
            lr=muon.lr,
            momentum=muon.momentum,
            weight_decay=muon.weight_decay,
            iterations=muon.iterations,
            dtype=muon_dtype,
        )
    ]
    groups = [
        {
            "params": [info.parameter for info in assigned[name]],
            "lr": adam.lr,
            "betas": adam.betas,
            "eps": adam.eps,
            "weight_decay": adam.weight_decay,
        }
        for name, adam in (("tables", config.tables), ("head", config.head), ("gains", config.gains))
        if assigned[name]
    ]
    optimizers.append(torch.optim.AdamW(groups, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers
