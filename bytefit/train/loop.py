"""Training: batch, loss, backward, clip, optimizers, average, clock.

``train`` reads from top to bottom as a run happens. The clock counts everything in the loop, checkpoints and burst replay
included; warm-up, which compiles, stands in ledger entries of its own.
"""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from bytefit.data.shards import TokenStream
from bytefit.dtypes import dtype_name, resolve_dtype
from bytefit.errors import Interrupted, UserError
from bytefit.ledger import Ledger
from bytefit.model.language_model import LanguageModel
from bytefit.optim.average import Averages, Weights
from bytefit.optim.groups import Optimizers
from bytefit.optim.schedule import Moment, lr_scale
from bytefit.progress import progress_bar
from bytefit.ranks import Ranks
from bytefit.train.batches import Batches
from bytefit.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bytefit.train.choose import choose_weights, hold_out
from bytefit.train.config import TrainConfig
from bytefit.train.machine import describe_machine, hardware_of, peak_memory_bytes
from bytefit.train.metrics import MetricsLog
from bytefit.train.step import Objective, plan_at, warm_up

SETTLED = 5  # steps after which their median says what a step takes: the first ones may be slow
LEDGER_ENTRIES = ("compile", "warmup", "train", "average")  # their seconds live in the checkpoint


@dataclass
class Position:
    """Where a run stands, besides its tensors.

    Attributes:
        step: optimizer steps done.
        tokens: trained on so far.
        step_seconds: what a step takes (median of recent ones); 0 while unknown.
        main_steps: how many steps came before those that the run ends with (a replay, distillation); None until they begin.
        replayed: how many of the batches before it the replay goes over.
        lowest_scale: the lowest factor on the learning rates so far, the rise at the very start left out. What comes on when the rates
            have fallen goes by this, so that it stays on where they rise again (a replay, or a clock that is read anew).
        rounded_from: the step at which fake quantisation began; None until it does.
    """

    step: int = 0
    tokens: int = 0
    step_seconds: float = 0.0
    main_steps: int | None = None
    replayed: int = 0
    lowest_scale: float = 1.0
    rounded_from: int | None = None

    def begin_last_steps(self, config: TrainConfig, moment: Moment) -> None:
        """The steps in order are over; what is left of the budget decides how many batches a replay has."""
        self.main_steps = self.step
        if config.replay is not None:
            if moment.total_steps is not None:
                left = float(moment.total_steps - self.step)
            else:
                left = ((moment.total_seconds or 0.0) - moment.seconds) / self.step_seconds if self.step_seconds else 0.0
            self.replayed = min(config.replay.batches, self.step, math.ceil(left / config.replay.epochs))

    def begin_step(self, config: TrainConfig, scale: float) -> None:
        """Note the factor on the learning rates of the step that comes, and whether fake quantisation begins with it."""
        if self.step >= config.schedule.ramp_steps:
            self.lowest_scale = min(self.lowest_scale, scale)
        if config.fake_quant is not None and self.rounded_from is None and self.lowest_scale < config.fake_quant.below:
            self.rounded_from = self.step

    @property
    def rounded_steps(self) -> int | None:
        """Steps taken with fake quantisation; None before it begins."""
        return None if self.rounded_from is None else self.step - self.rounded_from


def next_step(config: TrainConfig, moment: Moment, position: Position) -> tuple[int, float] | None:
    """The batch that comes next and the factor on its learning rates; None at the end of the run.

    First the batches in order, then, inside the same budget, new ones for distillation or those of the replay.
    """
    if position.main_steps is None:
        return position.step, lr_scale(config.schedule, moment)
    replay, distil, done = config.replay, config.distil, position.step - position.main_steps
    if distil is not None and not moment.spent and done < distil.steps:
        return position.step, distil.lr_scale
    if replay is None or moment.spent or done >= position.replayed * replay.epochs:
        return None
    return position.main_steps - position.replayed + done % position.replayed, replay.lr_scale


def train(
    model: LanguageModel,
    config: TrainConfig,
    stream: TokenStream,
    *,
    seed: int,
    folder: Path,
    ledger: Ledger,
    ranks: Ranks,
    resume: bool = False,
) -> None:
    """Train ``model`` in place until the budget is used.

    Args:
        stream: training tokens.
        folder: run folder; gets ``metrics.jsonl`` and ``checkpoint/``, whose last state is marked finished and holds the weights to
            pack.
        ledger: seconds go to ``compile``, ``warmup``, ``train`` and ``average``.
        resume: go on from ``folder/checkpoint`` if it is there; a finished run is left as it is (its seconds are added).

    Raises:
        Interrupted: after a checkpoint, on SIGINT or SIGTERM.
        UserError: a split too short for a window, a batch that does not divide over the ranks, a diverged run.
    """
    stream, held_out = hold_out(config, stream)
    batches = Batches(config, stream, seed, ranks)
    checkpoint_folder = folder / "checkpoint"
    checkpoint = load_checkpoint(checkpoint_folder) if resume and (checkpoint_folder / "state.json").exists() else None
    if checkpoint is not None and checkpoint.progress["finished"]:
        ledger.add(checkpoint.progress["seconds"])
        return
    dtype, muon_dtype = _agree_on_dtypes(config, ranks, checkpoint)
    model.to(ranks.device)
    parameters = dict(model.named_parameters())
    ranks.copy_from_first([p.detach() for p in parameters.values()])  # machines of different kinds may draw other last bits from a seed
    objective = Objective(model, config)
    stepper = warm_up(objective, config, batches, ranks, dtype, muon_dtype, ledger)
    optimizers = Optimizers(config.optimizer, objective.infos(), muon_dtype, ranks)
    averages = Averages(config.average, parameters) if config.average is not None else None
    machine, earlier = describe_machine(ranks.world), []
    position = Position()
    if checkpoint is not None:
        position = _restore(checkpoint, parameters, objective, optimizers, averages, config.batch_tokens)
        ledger.add(checkpoint.progress["seconds"])
        earlier = machines_before(checkpoint, machine)
    metrics = MetricsLog(folder / "metrics.jsonl", position.step) if ranks.is_first else None
    cycle = config.cadence.every if config.cadence is not None else 1
    durations: deque[float] = deque(maxlen=max(31, cycle))
    loss = float("nan")

    def save(*, finished: bool = False, final: Weights | None = None, choice: dict[str, Any] | None = None) -> None:
        state = optimizers.state_tensors()  # every rank takes part
        state |= {f"beside.{info.name}": info.parameter for info in objective.own_infos()}
        if not ranks.is_first:
            return
        ledger.settle()
        spent = {entry: ledger.seconds[entry] for entry in LEDGER_ENTRIES}
        progress = {"step": position.step, "finished": finished, "position": asdict(position), "seed": seed, "seconds": spent}
        progress |= {"dtype": dtype_name(dtype), "muon_dtype": dtype_name(muon_dtype)}
        progress |= {"machine": machine, "earlier_machines": earlier, "compiled": stepper.compiled}
        progress |= {"snapshots": averages.snapshots if averages else 0, "average": choice}
        progress["peak_memory_bytes"] = peak_memory_bytes(ranks.device)
        weights = {name: p.detach() for name, p in parameters.items()}
        running = averages.tensors() if averages and not finished else {}
        save_checkpoint(checkpoint_folder, Checkpoint(weights, running, final or {}, state, progress))

    saved_at, finished, preparation = time.monotonic(), False, stepper.preparation
    with (
        _catch_signals() as stop_asked, _progress(config, ranks, position, ledger) as show, ledger.measure("train"),
        preparation.undone_afterwards(),
    ):  # fmt: skip
        while True:
            started = ledger.read("train")
            due = time.monotonic() - saved_at > config.checkpoint_seconds
            seconds, position.step_seconds, save_now = ranks.from_first([started, position.step_seconds, float(due)])
            if save_now:
                save()
                saved_at = time.monotonic()
            moment = _moment(config, position, seconds)
            if position.main_steps is None and moment.fraction >= 1.0:
                position.begin_last_steps(config, moment)
            todo = next_step(config, moment, position)
            if todo is None:
                finished = True
                break
            batch, scale = todo
            last, shape = position.main_steps is not None, batches.shape(step=position.step, fraction=moment.fraction)
            model.run_plan(plan_at(model, config, step=position.step, fraction=moment.fraction))
            if last and objective.last_loss is not None and averages is not None:
                objective.last_loss.teach(averages.ema)
            position.begin_step(config, scale)
            preparation.begin_step(lowest_scale=position.lowest_scale, rounded_steps=position.rounded_steps)
            loss = stepper.step(optimizers, batch=batch, shape=shape, step=position.step, lr_scale=scale, last=last)
            position.step += 1
            position.tokens += shape.tokens
            if averages is not None:
                averages.update(parameters, step=position.step, lr_scale=scale, snapshots=not last)
            if math.isnan(loss):
                raise UserError(f"the loss became NaN at step {position.step}; lower train.optimizer.*.lr or set train.optimizer.clip_norm")
            if metrics is not None:
                record = {"step": position.step, "seconds": round(ledger.read("train"), 6), "loss": round(loss, 6)}
                record |= {"lr_scale": round(scale, 5), "tokens": position.tokens, "batch": batch}
                metrics.write(record | preparation.record(position.step))
            show(position, loss)
            durations.append(ledger.read("train") - started)
            position.step_seconds = typical_step(list(durations), cycle) or position.step_seconds
            if ranks.any(bool(stop_asked)):
                break
    model.run_plan(model.config.plan)
    if not finished:
        save()
        ranks.barrier()
        raise Interrupted(f"stopped at step {position.step}; everything so far is saved in {folder}")
    if held_out is not None:
        save()  # choosing takes a while; nothing of the training must be lost in it
    with ledger.measure("average"):
        name, final, losses = choose_weights(model, averages, held_out, config, dtype, tell=ranks.is_first)
    save(finished=True, final=None if name == "last" else final, choice={"used": name, "held_out_loss": losses})
    ranks.barrier()


def typical_step(durations: list[float], cycle: int) -> float | None:
    """What a step takes: the median of recent ones, or of the means over whole cycles where a cadence makes some steps longer than others;
    None while there are too few."""
    if len(durations) < max(SETTLED, cycle):
        return None
    return statistics.median(statistics.fmean(durations[i : i + cycle]) for i in range(len(durations) - cycle + 1))


def _moment(config: TrainConfig, position: Position, seconds: float) -> Moment:
    return Moment(
        step=position.step,
        seconds=seconds,
        total_steps=config.steps,
        total_seconds=config.loop_seconds,
        step_seconds=position.step_seconds or None,
        reserved_steps=config.last_steps,
    )


def _agree_on_dtypes(config: TrainConfig, ranks: Ranks, checkpoint: Checkpoint | None) -> tuple[torch.dtype, torch.dtype]:
    """Dtypes of activations and of Muon: the checkpoint's, else the first rank's choice (``auto`` is decided by timing)."""
    if checkpoint is not None:
        return getattr(torch, checkpoint.progress["dtype"]), getattr(torch, checkpoint.progress["muon_dtype"])
    wanted = [resolve_dtype(name, ranks.device) for name in (config.dtype, config.optimizer.matrices.dtype)]
    flags = ranks.from_first([float(dtype is torch.bfloat16) for dtype in wanted])
    first, second = (torch.bfloat16 if flag else torch.float32 for flag in flags)
    return first, second


def _restore(
    checkpoint: Checkpoint,
    parameters: dict[str, nn.Parameter],
    objective: Objective,
    optimizers: Optimizers,
    averages: Averages | None,
    batch_tokens: int,
) -> Position:
    """Where the checkpoint's run stood. Raises UserError where it belongs to another model."""

    def check(found: dict[str, Tensor], what: str) -> None:
        if {name: t.shape for name, t in found.items()} != {name: p.shape for name, p in parameters.items()}:
            raise UserError(f"the checkpoint's {what} belong to another model; train into another --out")

    check(checkpoint.weights, "weights")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(checkpoint.weights[name])
    if averages is not None:
        device = next(iter(parameters.values())).device
        averages.load_tensors(checkpoint.average, checkpoint.progress["snapshots"], str(device))
        for held in (averages.ema, averages.swa):
            if held:
                check(held, "averaged weights")
    try:
        with torch.no_grad():
            for info in objective.own_infos():
                info.parameter.copy_(checkpoint.optimizer[f"beside.{info.name}"])
        optimizers.load_state_tensors(checkpoint.optimizer)
        held = checkpoint.progress["position"]
        return Position(**{"tokens": held["step"] * batch_tokens} | held)  # checkpoints did not always count tokens
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"the checkpoint's optimizer states belong to another model ({error}); train into another --out") from None


def machines_before(checkpoint: Checkpoint, machine: dict[str, Any]) -> list[dict[str, Any]]:
    """Other machines, or numbers of ranks, on which the run was before, the latest first, each with the step that it came to."""
    last, before = checkpoint.progress["machine"], checkpoint.progress.get("earlier_machines", [])
    if hardware_of(last) == hardware_of(machine):
        return list(before)
    return [last | {"until_step": checkpoint.progress["step"]}, *before]


@contextmanager
def _catch_signals() -> Iterator[list[int]]:
    """A list that is filled when SIGINT or SIGTERM arrives; a second signal acts at once, as usual."""
    caught: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, remember)
    except ValueError:  # not the main thread: signals are somebody else's business
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _progress(config: TrainConfig, ranks: Ranks, first: Position, ledger: Ledger) -> Iterator[Callable[[Position, float], None]]:
    """Yields ``show(position, loss)``: a line with the share of the budget, ETA, loss and tokens a second."""
    start, first_step, first_tokens = ledger.read("train"), first.step, first.tokens
    unit = " s" if config.seconds is not None else " steps"
    total = config.loop_seconds or config.steps
    smooth: list[float] = []
    with progress_bar(
        total=total, desc="training", unit=unit, disable=not ranks.is_first, delay=0.0,
        bar_format="{desc} {percentage:3.0f}% |{bar:20}| {n:.0f}/{total:.0f}{unit}{postfix}",
    ) as bar:  # fmt: skip

        def show(position: Position, loss: float) -> None:
            step = position.step
            smooth.append(loss if not smooth else 0.95 * smooth[-1] + 0.05 * loss)
            spent = ledger.read("train")
            done = max(spent - start, 1e-9)
            fraction = Moment(step=step, seconds=spent, total_steps=config.steps, total_seconds=config.loop_seconds).fraction
            left = (config.loop_seconds - spent) if config.loop_seconds else done / max(1, step - first_step) * ((config.steps or 0) - step)
            speed = (position.tokens - first_tokens) / done
            bar.n = fraction * (total or 0)
            bar.set_postfix_str(f" {max(0.0, left):.0f} s left, step {step}, loss {smooth[-1]:.3f}, {speed:,.0f} tokens/s", refresh=False)
            bar.update(0)

        yield show
