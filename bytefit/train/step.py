"""One optimizer step on this rank's share of a global batch, and the warm-up that compiles it before the clock starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bytefit.data.loaders import Loader
from bytefit.ledger import Ledger
from bytefit.model.language_model import LanguageModel
from bytefit.model.plan import Plan
from bytefit.optim.groups import Optimizers
from bytefit.progress import say
from bytefit.quant.crown import CrownQ
from bytefit.quant.fake import FakeQuantiser
from bytefit.ranks import Ranks
from bytefit.train.config import TrainConfig

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


@dataclass(frozen=True)
class Stepper:
    """Everything that a step needs and that stays the same over a run."""

    loss_of: LossFunction
    loader: Loader
    config: TrainConfig
    ranks: Ranks
    dtype: torch.dtype
    preparation: Preparation

    def step(self, optimizers: Optimizers, *, batch: int, step: int, lr_scale: float) -> float:
        """Train on the loader's batch number ``batch``; returns the mean loss over the global batch."""
        total = torch.zeros((), device=self.ranks.device)
        share = self.loader.num_rows // self.ranks.world
        for start, end in self._micro_batches():
            ids_BT, targets_BT = self._tokens(batch, start, end)
            loss = self.loss_of(ids_BT, targets_BT, self.dtype) * ((end - start) / share)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.preparation.add_gradients()
        optimizers.step(lr_scale=lr_scale, step=step)
        return float(self.ranks.sum(total)) / self.ranks.world

    def try_once(self) -> None:
        """Forward and backward on a micro-batch of each size (what triggers compilation); leaves gradients behind."""
        for start, end in {end - start: (start, end) for start, end in self._micro_batches()}.values():
            self.loss_of(*self._tokens(0, start, end), self.dtype).backward()  # type: ignore[no-untyped-call]

    def _micro_batches(self) -> list[tuple[int, int]]:
        """Row ranges of this rank's share of the global batch."""
        share = self.loader.num_rows // self.ranks.world
        first, rows = self.ranks.rank * share, max(1, self.config.micro_batch_tokens // self.config.seq_len)
        return [(start, min(start + rows, first + share)) for start in range(first, first + share, rows)]

    def _tokens(self, batch: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        tokens = torch.from_numpy(self.loader.rows(batch, start, end))
        if self.ranks.device != "cpu":
            tokens = tokens.pin_memory().to(self.ranks.device, non_blocking=True)  # the GPU works on while they travel
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def plans_of(model: LanguageModel, config: TrainConfig) -> list[Plan]:
    """The plans that a run goes through, in order."""
    return ([config.curriculum.plan] if config.curriculum else []) + [model.config.plan]


def warm_up(
    model: LanguageModel, config: TrainConfig, loader: Loader, ranks: Ranks, dtype: torch.dtype, muon_dtype: torch.dtype, ledger: Ledger
) -> Stepper:
    """Take a few real steps and undo them, so that compilation and first touches stand outside the training clock.

    Every plan of the run is compiled here, with and without rounded weights where both come. Returns what to train with: the compiled
    loss where that was asked for and a C++ compiler is there, else the model itself.
    """
    parameters = dict(model.named_parameters())
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    random_state = torch.get_rng_state()
    stepper = Stepper(model, loader, config, ranks, dtype, Preparation(model, config))
    with stepper.preparation.undone_afterwards():
        if config.compile:
            with ledger.measure("compile"):
                stepper = _compiled(model, stepper)
        optimizers = Optimizers(config.optimizer, model.parameter_infos(), muon_dtype, ranks)
        with ledger.measure("warmup"):
            for _ in range(config.warmup_steps):
                stepper.step(optimizers, batch=0, step=0, lr_scale=1.0)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(kept[name])
            p.grad = None
    torch.set_rng_state(random_state)
    return stepper


def _compiled(model: LanguageModel, eager: Stepper) -> Stepper:
    """The same with the loss compiled, tried once for each plan and form; the eager one, with a word, where compilation fails."""
    from torch._dynamo.exc import TorchDynamoException  # here: the compiler takes a second to import, and most verbs do without it
    from torch._inductor.exc import InductorError

    compiled = replace(eager, loss_of=torch.compile(model, dynamic=False))
    failed = ""
    try:
        for rounded in eager.preparation.forms():
            eager.preparation.take_form(rounded)
            for plan in reversed(plans_of(model, eager.config)):  # ends with the plan that the run starts with
                model.run_plan(plan)
                compiled.try_once()
    except (TorchDynamoException, InductorError) as error:
        failed = str(error).strip().splitlines()[0]
    model.zero_grad(set_to_none=True)
    if not eager.ranks.any(bool(failed)):
        return compiled
    if eager.ranks.is_first:
        say(f"torch.compile does not work here ({failed or 'on another rank'}); training eagerly, which is slower (is g++ installed?)")
    return eager
