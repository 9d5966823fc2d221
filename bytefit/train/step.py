"""One optimizer step on this rank's share of a global batch, and the warm-up that compiles it before the clock starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bytefit.compiled import DoesNotCompile, graphs_allowed
from bytefit.ledger import Ledger
from bytefit.model.language_model import LanguageModel
from bytefit.model.plan import Plan
from bytefit.model.roles import ParameterInfo
from bytefit.optim.groups import Optimizers
from bytefit.progress import say
from bytefit.quant.crown import CrownQ
from bytefit.quant.fake import FakeQuantiser
from bytefit.ranks import Ranks
from bytefit.train.batches import Batches, Shape
from bytefit.train.config import TrainConfig
from bytefit.train.distil import Distillation
from bytefit.train.multi_token import MultiToken

LossFunction = Callable[..., Tensor]  # (ids_BT, targets_BT, dtype) -> mean loss
DISTANCE_EVERY = 20  # steps between two looks at how far the weights are from their grid


class Preparation:
    """What prepares a model's weights for rounding while it trains: fake quantisation and the CROWN-Q penalty, where asked for."""

    def __init__(self, model: LanguageModel, config: TrainConfig):
        self.rounding = FakeQuantiser(config.fake_quant, model) if config.fake_quant is not None else None
        self.crown_q = CrownQ(config.crown_q, model) if config.crown_q is not None else None
        self._penalty: Tensor | None = None  # of the last step, while the penalty is on
        self._penalised = False

    def begin_step(self, *, lowest_scale: float, rounded_steps: int | None) -> None:
        """
        Args:
            lowest_scale: the lowest factor on the learning rates so far.
            rounded_steps: steps taken with fake quantisation; None before it begins.
        """
        if self.rounding is not None:
            self.rounding.update(rounded_steps, lowest_scale)
        self._penalised = self.crown_q is not None and lowest_scale < self.crown_q.config.below

    def add_gradients(self) -> None:
        """Once a step, when the loss's own gradients are complete; the same on every rank."""
        if self.rounding is not None:
            self.rounding.dampen()
        self._penalty = self.crown_q.add_gradient() if self.crown_q is not None and self._penalised else None

    def record(self, step: int) -> dict[str, float]:
        """What to log after a step."""
        found = {} if self._penalty is None else {"crown_q": float(self._penalty)}
        if self.rounding is not None and self.rounding.on and step % DISTANCE_EVERY == 0:
            found["grid_distance"] = self.rounding.distance()
        return found

    def forms(self) -> list[bool]:
        """Whether the weights are rounded, in every form that the loss takes along a run, the first one last."""
        if self.rounding is None:
            return [False]
        return [True] if self.rounding.config.always else [True, False]

    def take_form(self, rounded: bool) -> None:
        self.begin_step(lowest_scale=1.0, rounded_steps=0 if rounded else None)

    @contextmanager
    def undone_afterwards(self) -> Iterator[None]:
        """Whatever happens inside, nothing stands between the weights and the model when it is left."""
        try:
            yield
        finally:
            self.take_form(False)


class Objective:
    """What a run minimises: the model's own loss, with more heads beside its own where asked for, and another loss in its last steps.

    Attributes:
        loss: (ids_BT, targets_BT, dtype) -> mean loss.
        last_loss: the same for the steps that a run ends with; None where they have no other.
    """

    def __init__(self, model: LanguageModel, config: TrainConfig):
        self.model = model
        self.multi_token: MultiToken | None = config.multi_token.build(model).to(model.skip_scales.device) if config.multi_token else None
        self.loss: nn.Module = self.multi_token or model
        self.last_loss: Distillation | None = config.distil.build(model) if config.distil else None

    def own_infos(self) -> list[ParameterInfo]:
        """Parameters that are trained beside the model's and left behind."""
        return list(self.multi_token.own_infos()) if self.multi_token is not None else []

    def infos(self) -> list[ParameterInfo]:
        """Everything that is trained."""
        return [*self.model.parameter_infos(), *self.own_infos()]


@dataclass(frozen=True)
class Stepper:
    """Everything that a step needs and that stays the same over a run."""

    loss_of: LossFunction
    last_loss_of: LossFunction | None
    batches: Batches
    ranks: Ranks
    dtype: torch.dtype
    preparation: Preparation
    compiled: bool = False

    def step(self, optimizers: Optimizers, *, batch: int, shape: Shape, step: int, lr_scale: float, last: bool = False) -> float:
        """Train on batch number ``batch``; returns the mean loss over the global batch.

        Args:
            last: whether this is one of the steps that the run ends with.
        """
        loss_of = self.last_loss_of if last and self.last_loss_of is not None else self.loss_of
        total = torch.zeros((), device=self.ranks.device)
        share = shape.rows // self.ranks.world
        for start, end in self.batches.micro_batches(shape):
            ids_BT, targets_BT = self.batches.tokens(batch, shape, start, end)
            loss = loss_of(ids_BT, targets_BT, self.dtype) * ((end - start) / share)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.preparation.add_gradients()
        optimizers.step(lr_scale=lr_scale, step=step)
        return float(self.ranks.sum(total)) / self.ranks.world

    def try_once(self) -> None:
        """Forward and backward on a micro-batch of each size (what triggers compilation); leaves gradients behind."""
        for shape in self.batches.shapes():
            is_last = shape.seq_len == self.batches.config.seq_len
            for start, end in {end - start: (start, end) for start, end in self.batches.micro_batches(shape)}.values():
                for loss_of in (self.last_loss_of if is_last else None, self.loss_of):
                    if loss_of is not None:
                        loss_of(*self.batches.tokens(0, shape, start, end), self.dtype).backward()  # type: ignore[no-untyped-call]


def other_plan(config: TrainConfig) -> Plan | None:
    """The plan that runs at some of the steps instead of the model's own."""
    part = config.curriculum or config.cadence
    return part.plan if part is not None else None


def plans_of(model: LanguageModel, config: TrainConfig) -> list[Plan]:
    """The plans that a run goes through, its own last."""
    other = other_plan(config)
    return [model.config.plan] if other is None else [other, model.config.plan]


def plan_at(model: LanguageModel, config: TrainConfig, *, step: int, fraction: float) -> Plan:
    """The plan of the step that comes, with this share of the budget used."""
    if config.cadence is not None:
        own = step % config.cadence.every == 0
    else:
        own = config.curriculum is None or fraction >= config.curriculum.until
    return plans_of(model, config)[-1 if own else 0]


def warm_up(
    objective: Objective, config: TrainConfig, batches: Batches, ranks: Ranks, dtype: torch.dtype, muon_dtype: torch.dtype, ledger: Ledger
) -> Stepper:
    """Take a few real steps and undo them, so that compilation and first touches stand outside the training clock.

    Every plan and shape of the run is compiled here, with and without rounded weights where both come. Returns what to train with: the
    compiled losses where that was asked for and a C++ compiler is there, else the modules themselves.
    """
    model, trained = objective.model, {info.name: info.parameter for info in objective.infos()}
    kept = {name: p.detach().clone() for name, p in trained.items()}
    random_state = torch.get_rng_state()
    stepper = Stepper(objective.loss, objective.last_loss, batches, ranks, dtype, Preparation(model, config))
    with stepper.preparation.undone_afterwards():
        if config.compile:
            with ledger.measure("compile"):
                stepper = _compiled(model, config, stepper)
        model.run_plan(plan_at(model, config, step=0, fraction=0.0))
        optimizers = Optimizers(config.optimizer, objective.infos(), muon_dtype, ranks)
        with ledger.measure("warmup"):
            for _ in range(config.warmup_steps):
                stepper.step(optimizers, batch=0, shape=batches.shape(step=0, fraction=0.0), step=0, lr_scale=1.0)
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(kept[name])
            p.grad = None
    torch.set_rng_state(random_state)
    return stepper


def _compiled(model: LanguageModel, config: TrainConfig, eager: Stepper) -> Stepper:
    """The same with its losses compiled, tried once for each plan, form and shape; the eager one, with a word, where compilation fails."""

    def compiled(loss_of: LossFunction | None) -> LossFunction | None:
        return None if loss_of is None else torch.compile(loss_of, dynamic=False)

    stepper = replace(eager, loss_of=torch.compile(eager.loss_of, dynamic=False), last_loss_of=compiled(eager.last_loss_of), compiled=True)
    failed = ""
    try:
        with graphs_allowed():  # each plan, form and shape is one
            for rounded in eager.preparation.forms():
                eager.preparation.take_form(rounded)
                for plan in plans_of(model, config):
                    model.run_plan(plan)
                    stepper.try_once()
    except DoesNotCompile as error:
        failed = str(error)
    if not eager.ranks.any(bool(failed)):
        return stepper
    if eager.ranks.is_first:
        say(f"torch.compile does not work here ({failed or 'on another rank'}); training eagerly, which is slower (is g++ installed?)")
    return eager
