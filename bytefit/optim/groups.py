"""Which optimizer trains which role, and one step of all of them, on one rank or several."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bytefit.dtypes import DtypeName
from bytefit.model.roles import ParameterInfo, Role
from bytefit.optim.muon import ONE_RANK, Muon
from bytefit.optim.newton_schulz import CoefficientsName
from bytefit.optim.schedule import linear_warmup
from bytefit.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon on the hidden matrices.

    Attributes:
        momentum_start, momentum, momentum_warmup_steps: linear from the first to the second over so many steps.
        iterations: Newton–Schulz iterations a step.
        coefficients: of the iteration: one quintic for all, or Polar Express' own for each.
        row_normalise: MuonEq-R.
        mousse_beta: Mousse, with running means of this decay (PR #578 tried 0.99); None does without.
        dtype: of the iteration; ``auto`` takes the faster one here.
        state_dtype: of momentum, and of gradients between ranks (PR #1171: bf16, the others fp32).
    """

    lr: float
    momentum_start: float = 0.85
    momentum: float = 0.95
    momentum_warmup_steps: int = 500
    weight_decay: float = 0.0
    iterations: int = 5
    coefficients: CoefficientsName = "quintic"
    row_normalise: bool = False
    mousse_beta: float | None = None
    dtype: DtypeName = "auto"
    state_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)
        if not 0 <= self.momentum_start < 1 or not 0 <= self.momentum < 1:
            raise ValueError(f"momentum {self.momentum_start} to {self.momentum} must lie in [0, 1)")
        if self.momentum_warmup_steps < 0:
            raise ValueError(f"momentum_warmup_steps {self.momentum_warmup_steps} must not be negative")
        if not 1 <= self.iterations <= 100:
            raise ValueError(f"iterations {self.iterations} must lie in 1..100")
        if self.mousse_beta is not None and not 0 <= self.mousse_beta < 1:
            raise ValueError(f"mousse_beta {self.mousse_beta} must lie in [0, 1), or be null")


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """AdamW (plain Adam where ``weight_decay`` is 0)."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must lie in [0, 1)")
        if not self.eps > 0:
            raise ValueError(f"eps {self.eps} must be above 0")


def _check_rates(lr: float, weight_decay: float) -> None:
    if lr < 0 or weight_decay < 0:
        raise ValueError(f"lr {lr} and weight_decay {weight_decay} must not be negative")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """One entry a family of roles (as the Parameter Golf scripts group them).

    Attributes:
        projections: which entry trains the projections of side tables (bigram, value embedding): Muon as in PR #578 and #693, or
            Adam with the gains as in PR #1171.
        clip_norm: global gradient norm above which gradients are scaled down; None never.
        clip_when: on the mean gradient over the ranks, or on each rank's own before averaging (PR #1171).
    """

    matrices: MuonConfig
    tables: AdamConfig
    gains: AdamConfig
    head: AdamConfig = field(default_factory=lambda: AdamConfig(lr=0.008))
    projections: Literal["matrices", "gains"] = "matrices"
    clip_norm: float | None = None
    clip_when: Literal["after averaging", "before averaging"] = "after averaging"

    def __post_init__(self) -> None:
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm {self.clip_norm} must be above 0, or null")

    def entry_of(self, role: Role) -> str:
        """The field that trains parameters of this role."""
        return {
            Role.TABLE: "tables",
            Role.ATTENTION: "matrices",
            Role.ATTENTION_OUT: "matrices",
            Role.MLP: "matrices",
            Role.PROJECTION: self.projections,
            Role.HEAD: "head",
            Role.GAIN: "gains",
        }[role]


def assign(config: OptimizerConfig, infos: Iterable[ParameterInfo]) -> dict[str, list[ParameterInfo]]:
    """Parameters by entry of ``OptimizerConfig``; each lands in exactly one."""
    assigned: dict[str, list[ParameterInfo]] = {name: [] for name in ("matrices", "tables", "head", "gains")}
    for info in infos:
        if info.parameter.numel():
            assigned[config.entry_of(info.role)].append(info)
    return assigned


class Optimizers:
    """Muon for the matrices and one AdamW with a group for each other entry; from each rank's gradients to new weights.

    Gradients are averaged here, without a wrapper around the model: Muon's are reduce-scattered, the others all-reduced, both at
    once. AdamW steps while Muon's are still on their way, unless clipping after averaging has to see them all first.

    Args:
        infos: the model's parameters; those of the matrices become views of Muon's banks.
        muon_dtype: of Muon's iteration.
    """

    def __init__(self, config: OptimizerConfig, infos: Iterable[ParameterInfo], muon_dtype: torch.dtype, ranks: Ranks = ONE_RANK):
        assigned = assign(config, infos)
        muon = config.matrices
        self.config, self.ranks = config, ranks
        self.muon = Muon(
            [info.parameter for info in assigned["matrices"]],
            lr=muon.lr,
            momentum=muon.momentum,
            weight_decay=muon.weight_decay,
            iterations=muon.iterations,
            coefficients=muon.coefficients,
            row_normalise=muon.row_normalise,
            mousse_beta=muon.mousse_beta,
            dtype=muon_dtype,
            state_dtype=getattr(torch, muon.state_dtype),
            ranks=ranks,
        )
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
        self.adam = torch.optim.AdamW(groups, fused=True)
        self.base_lrs = [group["lr"] for group in self._groups()]

    def _groups(self) -> list[dict[str, Any]]:
        return [*self.muon.param_groups, *self.adam.param_groups]

    def step(self, *, lr_scale: float, step: int) -> None:
        """Average the gradients over the ranks, clip, update everything, and drop the gradients.

        Args:
            lr_scale: factor on every learning rate.
            step: optimizer steps done so far; decides Muon's momentum.
        """
        for group, base_lr in zip(self._groups(), self.base_lrs, strict=True):
            group["lr"] = base_lr * lr_scale
        muon = self.config.matrices
        for group in self.muon.param_groups:
            group["momentum"] = linear_warmup(muon.momentum_start, muon.momentum, muon.momentum_warmup_steps, step)
        others = [p for group in self.adam.param_groups for p in group["params"] if p.grad is not None]
        limit = self.config.clip_norm
        if limit is not None and self.config.clip_when == "before averaging":
            nn.utils.clip_grad_norm_([*others, *(p for bank in self.muon.banks for p in bank.parameters)], limit)
        wait_for_others = self.ranks.mean_started([_gradient(p) for p in others])  # few bytes, and first in the queue
        self.muon.start()
        wait_for_others()
        if limit is not None and self.config.clip_when == "after averaging":
            self._clip_mean([_gradient(p) for p in others], limit)
        self.adam.step()
        self.muon.step()
        self.zero_grad()

    def _clip_mean(self, others: list[Tensor], limit: float) -> None:
        """Scale the mean gradients to a global norm of at most ``limit``; Muon's lie shared out over the ranks."""
        shares = self.muon.gradient_shares()
        squares = self.ranks.sum(_sum_of_squares(shares)) + _sum_of_squares(others)
        factor = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in [*shares, *others]:
            gradient.mul_(factor)

    def zero_grad(self) -> None:
        self.muon.zero_grad()
        self.adam.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Every state tensor by ``muon.…`` and ``adam.…``; all ranks must ask, and all get everything."""
        adam = self.adam.state_dict()["state"]
        state = {f"adam.{index}.{key}": value for index, entry in adam.items() for key, value in entry.items()}
        return state | {f"muon.{name}": value for name, value in self.muon.state_tensors().items()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what ``state_tensors`` gave, on any number of ranks.

        Raises:
            KeyError, ValueError: they belong to another model.
        """
        self.muon.load_state_tensors({n.removeprefix("muon."): t for n, t in tensors.items() if n.startswith("muon.")})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            owner, index, key = name.split(".", 2)
            if owner == "adam":
                state.setdefault(int(index), {})[key] = value
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _sum_of_squares(tensors: list[Tensor]) -> Tensor:
    """Of all elements of all tensors, in fp32."""
    return torch.stack([tensor.float().square().sum() for tensor in tensors]).sum()
