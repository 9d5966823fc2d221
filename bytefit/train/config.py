"""How a model is trained, as data."""

from __future__ import annotations

from dataclasses import dataclass

from bytefit.data.loaders import LoaderConfig
from bytefit.dtypes import DtypeName
from bytefit.model.plan import Plan, check_plan
from bytefit.optim.average import AverageConfig
from bytefit.optim.groups import OptimizerConfig
from bytefit.optim.schedule import WarmdownConfig
from bytefit.quant.crown import CrownQConfig
from bytefit.quant.fake import FakeQuantConfig
from bytefit.train.distil import DistilConfig
from bytefit.train.multi_token import MultiTokenConfig


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Burst replay: the run ends with a few passes over its last batches (PR #693), inside the budget.

    Attributes:
        batches: how many of the last batches, each that of a whole optimizer step; fewer where the replay would take more than a
            quarter of the budget.
        epochs: passes over them.
        lr_scale: factor on the learning rates during the replay.
    """

    batches: int = 100
    epochs: int = 2
    lr_scale: float = 0.1

    def __post_init__(self) -> None:
        if self.batches < 1 or self.epochs < 1:
            raise ValueError(f"replay batches {self.batches} and epochs {self.epochs} must be at least 1")
        if not self.lr_scale >= 0:
            raise ValueError(f"replay lr_scale {self.lr_scale} must not be negative")

    @property
    def steps(self) -> int:
        return self.batches * self.epochs


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """Another plan over the same blocks for the first part of the run (looped blocks switched on late, as in PR #1334).

    Attributes:
        plan: what runs at first; ``model.plan`` runs afterwards, and in everything that comes after training.
        until: the share of the budget at which it changes.
    """

    plan: Plan
    until: float

    def __post_init__(self) -> None:
        check_plan(self.plan)
        if not 0 < self.until < 1:
            raise ValueError(f"curriculum until {self.until} must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class CadenceConfig:
    """One step in a few runs ``model.plan``, the others a shorter plan over the same blocks ("fractal" cadence, tried in PR #578).

    The loss that is logged is that of the step's own plan.

    Attributes:
        plan: the shorter one.
        every: ``model.plan`` runs at the steps that this divides, counted from 0; and in everything that comes after training.
    """

    plan: Plan
    every: int = 3

    def __post_init__(self) -> None:
        check_plan(self.plan)
        if self.every < 2:
            raise ValueError(f"cadence every {self.every} must be at least 2")


@dataclass(frozen=True, kw_only=True)
class LengthStage:
    """Shorter windows for the first part of the run (sequence-length curriculum, tried in PR #578: 256, 512 and 1,024 of 2,048 tokens, a
    twelfth of the budget each).

    Attributes:
        until: the share of the budget at which it ends.
        seq_len: tokens a window; a batch has as many tokens as ever.
    """

    until: float
    seq_len: int


@dataclass(frozen=True, kw_only=True)
class BatchWarmupConfig:
    """Batches grow linearly to ``batch_tokens``, by whole forward passes of all ranks (tried in PR #578).

    A small batch is the beginning of what a whole one would be: the sequential and the coprime loader pass over the rest of its text.

    Attributes:
        tokens: of the first step, about.
        steps: after so many they have their full size.
    """

    tokens: int
    steps: int

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.steps < 1:
            raise ValueError(f"batch_warmup tokens {self.tokens} and steps {self.steps} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """
    Attributes:
        seconds: the budget by the clock, or
        steps: the budget in steps (comparable across machines; resumable bit for bit on a CPU). Give exactly one.
        seq_len: tokens a window.
        batch_tokens: tokens a step, over all ranks; a multiple of ``seq_len``.
        micro_batch_tokens: most tokens in one forward pass on one rank (gradients are accumulated).
        lengths: shorter windows at first, stage after stage.
        batch_warmup: fewer tokens a step at first.
        multi_token: more heads, while it trains, that say what comes after the next token.
        average: averages of the weights, one of which is packed; None packs the last weights.
        replay, distil: what a run ends with; one of them at most.
        curriculum, cadence: other plans at some of the steps; one of them at most.
        fake_quant: train with rounded weights from some moment on.
        crown_q: penalty on the rounding error of every row from some moment on; not part of the loss that is logged.
        warmup_steps: steps taken and undone before the clock starts (they compile and touch memory).
        compile: run the loss through ``torch.compile``.
        dtype: of activations; ``auto`` takes the faster one here. Weights, averages and Adam's states are fp32.
        checkpoint_seconds: time between checkpoints.
        reserve_seconds: part of ``seconds`` that is left for what reads training text after the loop, which the contest counts as
            training: choosing among averages, then calibrating; at most a quarter of it.
    """

    seconds: float | None = None
    steps: int | None = None
    seq_len: int
    batch_tokens: int
    micro_batch_tokens: int
    loader: LoaderConfig
    optimizer: OptimizerConfig
    schedule: WarmdownConfig
    average: AverageConfig | None = None
    lengths: tuple[LengthStage, ...] | None = None
    batch_warmup: BatchWarmupConfig | None = None
    multi_token: MultiTokenConfig | None = None
    replay: ReplayConfig | None = None
    distil: DistilConfig | None = None
    curriculum: CurriculumConfig | None = None
    cadence: CadenceConfig | None = None
    fake_quant: FakeQuantConfig | None = None
    crown_q: CrownQConfig | None = None
    warmup_steps: int = 2
    compile: bool = False
    dtype: DtypeName = "auto"
    checkpoint_seconds: float = 60.0
    reserve_seconds: float = 0.0

    @property
    def last_steps(self) -> int:
        """Steps that are reserved for what the run ends with."""
        return self.replay.steps if self.replay else self.distil.steps if self.distil else 0

    @property
    def chooses_on_text(self) -> bool:
        """Whether held-out training text decides which weights are packed."""
        return self.average is not None and self.average.use == "held_out"

    @property
    def reserved_seconds(self) -> float:
        """What choosing among averages and calibrating may use of the clock."""
        return 0.0 if self.seconds is None else min(self.reserve_seconds, self.seconds / 4)

    @property
    def loop_seconds(self) -> float | None:
        """What the training loop may use of the clock."""
        return None if self.seconds is None else self.seconds - self.reserved_seconds

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
        self._check_lengths()
        if self.batch_warmup is not None and self.batch_warmup.tokens >= self.batch_tokens:
            raise ValueError(f"batch_warmup tokens {self.batch_warmup.tokens} must be below batch_tokens {self.batch_tokens}")
        for one, other in (("replay", "distil"), ("curriculum", "cadence"), ("multi_token", "distil")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"train.{one} and train.{other} do not go together; set one of them to null")
        if self.distil is not None and (self.average is None or self.average.ema_decay is None):
            raise ValueError("train.distil follows the EMA of the weights; set train.average.ema_decay")
        last = "distil" if self.distil is not None else "replay" if self.replay is not None else None
        if last is not None and self.average is not None and self.average.use == "swa":
            raise ValueError(f"train.{last} comes after the last snapshot; set train.average.use to something else than 'swa'")
        snapshots = self.average.swa if self.average is not None else None
        for name, part in (("fake_quant", self.fake_quant), ("crown_q", self.crown_q), ("average.swa", snapshots)):
            if part is not None and part.below <= self.schedule.floor:
                raise ValueError(
                    f"{name} begins below {part.below} of the learning rate, which never falls under schedule.floor "
                    f"{self.schedule.floor}; lower that, or raise {name}.below"
                )
        if self.batch_warmup is not None and self.steps is not None and self.batch_warmup.steps >= self.steps:
            raise ValueError(f"batch_warmup steps {self.batch_warmup.steps} must be fewer than train.steps {self.steps}")
        if self.multi_token is not None and self.multi_token.heads >= self.shortest_seq_len:
            raise ValueError(f"multi_token heads {self.multi_token.heads} must be fewer than a window's tokens ({self.shortest_seq_len})")
        if self.reserve_seconds < 0:
            raise ValueError(f"reserve_seconds {self.reserve_seconds} must not be negative")
        if self.warmup_steps < 0 or self.checkpoint_seconds <= 0:
            raise ValueError("warmup_steps must not be negative and checkpoint_seconds must be above 0")

    @property
    def shortest_seq_len(self) -> int:
        return min([stage.seq_len for stage in self.lengths or ()] + [self.seq_len])

    def _check_lengths(self) -> None:
        before = 0.0
        for stage in self.lengths or ():
            if not before < stage.until < 1:
                raise ValueError(f"train.lengths: until {stage.until} must lie between {before} and 1")
            if not 2 <= stage.seq_len <= self.seq_len or self.batch_tokens % stage.seq_len:
                raise ValueError(
                    f"train.lengths: seq_len {stage.seq_len} must lie in 2..{self.seq_len} and divide batch_tokens {self.batch_tokens}"
                )
            before = stage.until
