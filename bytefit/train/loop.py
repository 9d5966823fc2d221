"""Training: batch, loss, backward, clip, optimizers, average, clock.

``train`` reads from top to bottom as a run happens. The clock counts everything in the loop, checkpoints included; warm-up,
which compiles, stands in ledger entries of its own.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
import torch._dynamo.exc
import torch._inductor.exc
from torch import Tensor, nn

from bytefit.data.loaders import Loader, LoaderConfig
from bytefit.data.shards import TokenStream
from bytefit.dtypes import DtypeName, dtype_name, resolve_dtype
from bytefit.errors import UserError
from bytefit.ledger import Ledger
from bytefit.model.language_model import LanguageModel
from bytefit.optim.average import ExponentialAverage
from bytefit.optim.groups import OptimizerConfig, build_optimizers
from bytefit.optim.schedule import Moment, WarmdownConfig, linear_warmup, lr_scale
from bytefit.progress import progress_bar, say
from bytefit.train.checkpoint import Checkpoint, load_checkpoint, load_optimizer_tensors, optimizer_tensors, save_checkpoint
from bytefit.train.metrics import MetricsLog
from bytefit.train.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        seconds: the budget by the clock, or
        steps: the budget in steps (comparable across machines, resumable bit for bit). Give exactly one.
        seq_len: tokens a window.
        batch_tokens: tokens a step, over all ranks; a multiple of ``seq_len``.
        micro_batch_tokens: most tokens in one forward pass on one rank (gradients are accumulated).
        clip_norm: global gradient norm above which gradients are scaled down; None never.
        ema_decay: average of the weights that is kept and packed; None packs the last weights.
        warmup_steps: steps taken and undone before the clock starts (they compile and touch memory).
        compile: run the loss through ``torch.compile``.
        dtype: of activations; ``auto`` takes the faster one here. Weights and optimizer states are fp32.
        checkpoint_seconds: time between checkpoints.
    """

    seconds: float | None = None
    steps: int | None = None
    seq_len: int
    batch_tokens: int
    micro_batch_tokens: int
    loader: LoaderConfig
    optimizer: OptimizerConfig
    schedule: WarmdownConfig
    clip_norm: float | None = None
    ema_decay: float | None = None
    warmup_steps: int = 2
    compile: bool = False
    dtype: DtypeName = "auto"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.steps is None):
            raise ValueError("give exactly one of train.seconds and train.steps (set the other to null)")
        if (self.seconds or self.steps or 0) <= 0:
            raise ValueError(f"the training budget (seconds {self.seconds}, steps {self.steps}) must be above 0")
        if self.seq_len < 2:
            raise ValueError(f"seq_len {self.seq_len} must be at least 2")
        if self.batch_tokens < self.seq_len or self.batch_tokens % self.seq_len:
            raise ValueError(f"batch_tokens {self.batch_tokens} must be a multiple of seq_len {self.seq_len}")
        if self.micro_batch_tokens < self.seq_len:
            raise ValueError(f"micro_batch_tokens {self.micro_batch_tokens} must be at least seq_len {self.seq_len}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay} must lie in [0, 1)")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm {self.clip_norm} must be above 0")
        if self.warmup_steps < 0 or self.checkpoint_seconds <= 0:
            raise ValueError("warmup_steps must not be negative and checkpoint_seconds must be above 0")


LossFunction = Callable[..., Tensor]  # (ids_BT, targets_BT, dtype) -> mean loss


class Interrupted(Exception):
    """The user (or the system) asked to stop; the checkpoint is saved."""


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
        folder: run folder; gets ``metrics.jsonl`` and ``checkpoint/``, whose last state is marked finished.
        ledger: seconds go to ``compile``, ``warmup`` and ``train``.
        resume: go on from ``folder/checkpoint`` if it is there.

    Raises:
        Interrupted: after a checkpoint, on SIGINT or SIGTERM.
        UserError: a split too short for a window, a batch that does not divide over the ranks, a diverged run.
    """
    loader = build_loader(config, stream, seed, ranks)
    checkpoint_folder = folder / "checkpoint"
    checkpoint = load_checkpoint(checkpoint_folder) if resume and (checkpoint_folder / "state.json").exists() else None
    dtype, muon_dtype = _agree_on_dtypes(config, ranks, checkpoint)
    model.to(ranks.device)
    parameters = dict(model.named_parameters())
    loss_of = _warm_up(model, config, loader, ranks, dtype, muon_dtype, ledger)
    optimizers = build_optimizers(config.optimizer, model.parameter_infos(), muon_dtype)
    average = ExponentialAverage(parameters, config.ema_decay) if config.ema_decay is not None else None

    step, last_loss = 0, float("nan")
    if checkpoint is not None:
        _restore(checkpoint, parameters, optimizers, average)
        step, last_loss = checkpoint.progress["step"], checkpoint.progress["loss"]
        ledger.add(checkpoint.progress["seconds"])
    metrics = MetricsLog(folder / "metrics.jsonl", step) if ranks.is_first else None

    def save(finished: bool) -> None:
        if not ranks.is_first:
            return
        ledger.settle()
        spent = {entry: ledger.seconds[entry] for entry in ("compile", "warmup", "train")}
        progress = {"step": step, "loss": last_loss, "finished": finished, "seed": seed, "seconds": spent}
        progress |= {"dtype": dtype_name(dtype), "muon_dtype": dtype_name(muon_dtype)}
        weights = {name: p.detach() for name, p in parameters.items()}
        states = [optimizer_tensors(optimizer) for optimizer in optimizers]
        save_checkpoint(checkpoint_folder, Checkpoint(weights, average.average if average else {}, states, progress))

    saved_at, finished = time.monotonic(), False
    with _catch_signals() as stop_asked, _progress(config, ranks, step, ledger) as show, ledger.measure("train"):
        while True:
            (seconds,) = ranks.from_first([ledger.read("train")])
            moment = Moment(step, seconds, config.steps, config.seconds)
            if moment.fraction >= 1.0:
                finished = True
                break
            scale = lr_scale(config.schedule, moment)
            last_loss = _step(loss_of, loader, config, optimizers, parameters, ranks, dtype, step, scale)
            if average is not None:
                average.update(parameters)
            step += 1
            if math.isnan(last_loss):
                raise UserError(f"the loss became NaN at step {step}; lower train.optimizer.*.lr or set train.clip_norm")
            if metrics is not None:
                record = {"step": step, "seconds": round(ledger.read("train"), 3), "loss": round(last_loss, 6), "lr_scale": round(scale, 5)}
                metrics.write(record | {"tokens": step * config.batch_tokens})
            show(step, last_loss)
            if ranks.any(bool(stop_asked)):
                break
            if time.monotonic() - saved_at > config.checkpoint_seconds:
                save(finished=False)
                saved_at = time.monotonic()
    save(finished)
    ranks.barrier()
    if not finished:
        raise Interrupted(f"stopped at step {step}; everything so far is saved in {folder}")


def build_loader(config: TrainConfig, stream: TokenStream, seed: int, ranks: Ranks) -> Loader:
    """Raises UserError where the split is too short for a window or the batch does not divide over the ranks."""
    loader = config.loader.build(stream, config.seq_len, config.batch_tokens // config.seq_len, seed)
    if loader.num_rows % ranks.world:
        raise UserError(f"{loader.num_rows} windows a step do not divide over {ranks.world} ranks; change train.batch_tokens")
    return loader


def _agree_on_dtypes(config: TrainConfig, ranks: Ranks, checkpoint: Checkpoint | None) -> tuple[torch.dtype, torch.dtype]:
    """Dtypes of activations and of Muon: the checkpoint's, else the first rank's choice (``auto`` is decided by timing)."""
    if checkpoint is not None:
        return getattr(torch, checkpoint.progress["dtype"]), getattr(torch, checkpoint.progress["muon_dtype"])
    wanted = [resolve_dtype(name, ranks.device) for name in (config.dtype, config.optimizer.matrices.dtype)]
    flags = ranks.from_first([float(dtype is torch.bfloat16) for dtype in wanted])
    first, second = (torch.bfloat16 if flag else torch.float32 for flag in flags)
    return first, second


def _step(
    loss_of: LossFunction,
    loader: Loader,
    config: TrainConfig,
    optimizers: list[torch.optim.Optimizer],
    parameters: dict[str, nn.Parameter],
    ranks: Ranks,
    dtype: torch.dtype,
    step: int,
    scale: float,
) -> float:
    """One optimizer step on this rank's share of the global batch; returns the global mean loss."""
    share = loader.num_rows // ranks.world
    first = ranks.rank * share
    micro_rows = max(1, config.micro_batch_tokens // config.seq_len)
    total = torch.zeros((), device=ranks.device)
    for start in range(first, first + share, micro_rows):
        end = min(start + micro_rows, first + share)
        tokens = torch.from_numpy(loader.rows(step, start, end)).to(ranks.device)
        loss = loss_of(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), dtype) * ((end - start) / share)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    ranks.mean_([*gradients, total])
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters.values(), config.clip_norm)
    muon = config.optimizer.matrices
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
            if "momentum" in group:
                group["momentum"] = linear_warmup(muon.momentum_start, muon.momentum, muon.momentum_warmup_steps, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(total)


def _warm_up(
    model: LanguageModel,
    config: TrainConfig,
    loader: Loader,
    ranks: Ranks,
    dtype: torch.dtype,
    muon_dtype: torch.dtype,
    ledger: Ledger,
) -> LossFunction:
    """Take a few real steps and undo them, so that compilation and first touches stand outside the training clock.

    Returns the loss to train with: compiled where that was asked for and a C++ compiler is there, else the model itself.
    """
    parameters = dict(model.named_parameters())
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    random_state = torch.get_rng_state()
    loss_of: LossFunction = model
    if config.compile:
        with ledger.measure("compile"):
            loss_of = _compiled(model, loader, dtype, config, ranks)
    optimizers = build_optimizers(config.optimizer, model.parameter_infos(), muon_dtype)
    for _ in range(config.warmup_steps):
        with ledger.measure("warmup"):
            _step(loss_of, loader, config, optimizers, parameters, ranks, dtype, 0, 1.0)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(kept[name])
            p.grad = None
    torch.set_rng_state(random_state)
    return loss_of


def _compiled(model: LanguageModel, loader: Loader, dtype: torch.dtype, config: TrainConfig, ranks: Ranks) -> LossFunction:
    """The compiled loss, tried once forward and backward; the eager one, with a word, where compilation fails."""
    compiled = torch.compile(model, dynamic=False)
    share = loader.num_rows // ranks.world
    tokens = torch.from_numpy(loader.rows(0, 0, min(share, max(1, config.micro_batch_tokens // config.seq_len)))).to(ranks.device)
    failed = ""
    try:
        compiled(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), dtype).backward()
    except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
        failed = str(error).strip().splitlines()[0]
    model.zero_grad(set_to_none=True)
    if not ranks.any(bool(failed)):
        return compiled
    say(f"torch.compile does not work here ({failed or 'on another rank'}); training eagerly, which is slower (is g++ installed?)")
    return model


def _restore(
    checkpoint: Checkpoint,
    parameters: dict[str, nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
    average: ExponentialAverage | None,
) -> None:
    def check(found: dict[str, Tensor], what: str) -> None:
        same = found.keys() == parameters.keys() and all(found[name].shape == p.shape for name, p in parameters.items())
        if not same:
            raise UserError(f"the checkpoint's {what} belong to another model; train into another --out, or without --resume")

    check(checkpoint.weights, "weights")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(checkpoint.weights[name])
    if average is not None:
        check(checkpoint.average, "averaged weights")
        average.average = {name: tensor.to(parameters[name].device) for name, tensor in checkpoint.average.items()}
    for optimizer, tensors in zip(optimizers, checkpoint.optimizers, strict=True):
        load_optimizer_tensors(optimizer, tensors)


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
def _progress(config: TrainConfig, ranks: Ranks, first_step: int, ledger: Ledger) -> Iterator[Callable[[int, float], None]]:
    """Yields ``show(step, loss)``: a line with the share of the budget, ETA, loss and tokens a second."""
    start = ledger.read("train")
    unit = " s" if config.seconds is not None else " steps"
    total = config.seconds or config.steps
    smooth: list[float] = []
    with progress_bar(
        total=total, desc="training", unit=unit, disable=not ranks.is_first, delay=0.0,
        bar_format="{desc} {percentage:3.0f}% |{bar:20}| {n:.0f}/{total:.0f}{unit}{postfix}",
    ) as bar:  # fmt: skip

        def show(step: int, loss: float) -> None:
            smooth.append(loss if not smooth else 0.95 * smooth[-1] + 0.05 * loss)
            spent = ledger.read("train")
            done = max(spent - start, 1e-9)
            fraction = Moment(step, spent, config.steps, config.seconds).fraction
            left = (config.seconds - spent) if config.seconds else done / max(1, step - first_step) * ((config.steps or 0) - step)
            speed = (step - first_step) * config.batch_tokens / done
            bar.n = fraction * (total or 0)
            bar.set_postfix_str(f" {max(0.0, left):.0f} s left, step {step}, loss {smooth[-1]:.3f}, {speed:,.0f} tokens/s", refresh=False)
            bar.update(0)

        yield show
