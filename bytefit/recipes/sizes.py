"""One dial from the contest's size to two CPU cores: the same list of techniques, smaller in every direction.

``lab`` is a sixteenth of the contest's bytes, and of its parameters within a tenth; ``tiny`` is for tests. Lengths that count
optimizer steps (momentum warm-up, averages, replay, annealing) shrink with the number of steps that fit the budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bytefit.artifact.pack import PackConfig
from bytefit.data.coprime import CoprimeConfig
from bytefit.data.loaders import LoaderConfig, SequentialConfig
from bytefit.data.tokenizer import TokenizerConfig
from bytefit.model.attention import AttentionConfig
from bytefit.model.language_model import ModelConfig
from bytefit.model.plan import num_blocks, num_positions, unet_plan
from bytefit.model.rotary import RotaryConfig
from bytefit.optim.average import AverageConfig, SnapshotConfig
from bytefit.optim.groups import OptimizerConfig
from bytefit.optim.schedule import WarmdownConfig
from bytefit.quant.fake import FakeQuantConfig
from bytefit.quant.quantise import QuantConfig
from bytefit.recipes.recipe import Recipe, ScoreConfig, Size
from bytefit.score.adapt import Adapt
from bytefit.train.config import TrainConfig


@dataclass(frozen=True)
class Dial:
    """How much smaller a size is than the contest's.

    Attributes:
        seconds, train_steps: the training budget, by the clock (then compiled) or in steps.
        vocab_size: of the tokenizer; None keeps the contest's.
        dim: width instead of 512.
        heads, depth: factors on the numbers of heads and of blocks.
        tables: factor on the rows of hashed tables.
        window: factor on the training windows, which never get shorter than ``min_window`` tokens.
        steps: factor on every length in optimizer steps.
        shard_tokens: pieces into which the coprime loader cuts a small corpus.
        max_bytes, stride, proof_bytes: how much is scored and proven, and the stride of sliding windows.
        windows: most windows of a calibration.
        chunk, chunks: factors on the chunks that scoring learns from, and on how many there are.
    """

    size: Size
    seconds: float | None
    train_steps: int | None
    vocab_size: int | None
    dim: int
    heads: float
    depth: float
    tables: float
    window: float
    min_window: int
    steps: float
    batch_tokens: int
    shard_tokens: int
    budget_bytes: int
    max_bytes: int
    stride: int
    proof_bytes: int
    windows: int
    chunk: float
    chunks: float


LAB = Dial(
    size="lab", seconds=300.0, train_steps=None, vocab_size=None,
    dim=160, heads=1 / 4, depth=5 / 9, tables=1 / 4, window=1 / 4, min_window=512, steps=1 / 5, batch_tokens=4096,
    shard_tokens=65_536, budget_bytes=1_000_000, max_bytes=1_000_000, stride=64, proof_bytes=65_536, windows=128,
    chunk=1 / 16, chunks=1 / 11,
)  # fmt: skip
TINY = Dial(
    size="tiny", seconds=None, train_steps=40, vocab_size=512,
    dim=32, heads=1 / 4, depth=1 / 3, tables=1 / 32, window=1 / 32, min_window=64, steps=1 / 50, batch_tokens=1024,
    shard_tokens=4096, budget_bytes=40_000, max_bytes=50_000, stride=32, proof_bytes=2_000, windows=32,
    chunk=1 / 128, chunks=1 / 27,
)  # fmt: skip
FULL_DIM = 512


@dataclass(frozen=True)
class Known:
    """What only a run of a system can say, and its smaller sizes need.

    Attributes:
        steps: that the original took; turns its warm-down in steps into a share of the budget.
        dial: where the byte budget of ``lab`` puts the dial, so that fake quantisation aims at the codes that packing will choose.
    """

    steps: int
    dial: float = 1.0


def scaled(full: Recipe, dial: Dial, known: Known) -> Recipe:
    """A recipe of the contest's size at another size."""
    window = max(dial.min_window, round(full.train.seq_len * dial.window))
    tokenizer = full.tokenizer if dial.vocab_size is None else TokenizerConfig(vocab_size=dial.vocab_size)
    return replace(
        full,
        size=dial.size,
        tokenizer=tokenizer,
        model=_model(full.model, dial, tokenizer.vocab_size, window),
        train=_train(full.train, dial, known, window),
        calibrate=full.calibrate and replace(full.calibrate, windows=min(full.calibrate.windows, dial.windows), batch_windows=16),
        pack=_pack(full.pack, dial),
        score=_score(full.score, dial, window),
    )


def _score(full: ScoreConfig, dial: Dial, window: int) -> ScoreConfig:
    adapt = full.adapt
    if isinstance(adapt, Adapt):
        chunk_tokens = max(window, round(adapt.chunk_tokens * dial.chunk))
        train_chunks = adapt.train_chunks and round(adapt.train_chunks * dial.chunks)
        adapt = replace(adapt, window=window, stride=dial.stride, chunk_tokens=chunk_tokens, train_chunks=train_chunks)
    return replace(full, window=window, stride=dial.stride, adapt=adapt, max_bytes=dial.max_bytes, proof_bytes=dial.proof_bytes)


def _pack(full: PackConfig, dial: Dial) -> PackConfig:
    quant: QuantConfig = full.quant
    prune = quant.prune and replace(quant.prune, min_size=quant.prune.min_size * dial.dim**2 // FULL_DIM**2)
    return replace(full, budget_bytes=dial.budget_bytes, fit=True, quant=replace(quant, prune=prune))


def _model(full: ModelConfig, dial: Dial, vocab_size: int, window: int) -> ModelConfig:
    old, new = num_blocks(full.plan), round(num_blocks(full.plan) * dial.depth)

    def blocks(part: Any) -> Any:
        """A part in the corresponding blocks (None, for a part or its set of blocks, stays)."""
        if part is None or part.blocks is None:
            return part
        kept = tuple(b for b in range(new) if round(b * (old - 1) / (new - 1)) in part.blocks)
        return replace(part, blocks=kept)

    def narrower(part: Any) -> Any:
        """A side table's width, and the factor on its projection's start, which goes with the depth."""
        if part is None:
            return None
        gain = part.orthogonal_gain if part.orthogonal_gain == 1.0 else part.orthogonal_gain * (old / new) ** 0.5
        return replace(part, dim=part.dim * dial.dim // FULL_DIM, orthogonal_gain=gain)

    def hashed(part: Any) -> Any:
        """A hash table: narrower, and with fewer rows."""
        return part and replace(narrower(part), buckets=round(part.buckets * dial.tables))

    if num_positions(full.plan):
        raise ValueError("a plan with loop positions has no smaller size; give the recipe its plan at each size")
    exclusive, output_gate = blocks(full.attention.exclusive), blocks(full.attention.output_gate)
    return replace(
        full,
        vocab_size=vocab_size,
        dim=dial.dim,
        context=window,
        plan=unet_plan(new),
        bigram=hashed(full.bigram),
        trigram=hashed(full.trigram),
        attention=_attention(full.attention, dial, exclusive=exclusive, output_gate=output_gate),
        value_embedding=narrower(blocks(full.value_embedding)),
        orthogonal_init=full.orthogonal_init
        and replace(full.orthogonal_init, min_size=full.orthogonal_init.min_size * dial.dim // FULL_DIM),
    )


def _attention(full: AttentionConfig, dial: Dial, **parts: Any) -> AttentionConfig:
    num_heads = round(full.num_heads * dial.heads)
    head_dim, full_head_dim = dial.dim // num_heads, FULL_DIM // full.num_heads
    rotary: RotaryConfig = full.rotary
    if rotary.dims is not None:
        rotary = replace(rotary, dims=rotary.dims * head_dim // full_head_dim)
    if rotary.reference_length is not None and rotary.length is not None:
        rotary = replace(rotary, reference_length=int(rotary.reference_length * dial.window), length=int(rotary.length * dial.window))
    return replace(full, num_heads=num_heads, num_kv_heads=round(full.num_kv_heads * dial.heads), rotary=rotary, **parts)


def _train(full: TrainConfig, dial: Dial, known: Known, window: int) -> TrainConfig:
    schedule: WarmdownConfig = full.schedule
    if schedule.steps is not None:
        schedule = replace(schedule, steps=None, fraction=round(schedule.steps / known.steps, 2))
    average: AverageConfig | None = full.average and replace(full.average, held_out_tokens=full.average.held_out_tokens // 8)
    fake_quant: FakeQuantConfig | None = full.fake_quant
    if fake_quant is not None:
        ends = {name: round(getattr(fake_quant, name) * known.dial) for name in ("lowest", "highest")}
        fake_quant = replace(fake_quant, **ends)
    smaller = replace(
        full,
        seconds=dial.seconds,
        steps=dial.train_steps,
        compile=dial.seconds is not None,
        seq_len=window,
        batch_tokens=dial.batch_tokens,
        micro_batch_tokens=dial.batch_tokens,
        loader=_loader(full.loader, dial, dial.batch_tokens // window),
        schedule=schedule,
        average=average,
        fake_quant=fake_quant,
        reserve_seconds=full.reserve_seconds * (dial.seconds or 60.0) / 600.0,
        warmup_steps=2,
        dtype="auto",
        checkpoint_seconds=60.0,
    )
    return with_lengths(smaller, dial.steps)


def with_lengths(train: TrainConfig, factor: float) -> TrainConfig:
    """Everything that counts optimizer steps, for a run of ``factor`` times as many: warm-up of the momentum, a rise of the rates, a
    warm-down in steps, averages, snapshots, the blending-in of rounding, growing batches, replay, distillation, annealing."""

    def steps(count: int) -> int:
        return max(1, round(count * factor))

    optimizer: OptimizerConfig = train.optimizer
    matrices = replace(optimizer.matrices, momentum_warmup_steps=steps(optimizer.matrices.momentum_warmup_steps))
    schedule: WarmdownConfig = train.schedule
    average: AverageConfig | None = train.average
    if average is not None:
        swa: SnapshotConfig | None = average.swa and replace(average.swa, every=steps(average.swa.every))
        decay = average.ema_decay and max(0.0, round(1 - (1 - average.ema_decay) / factor, 4))
        average = replace(average, ema_decay=decay, swa=swa)
    fake_quant: FakeQuantConfig | None = train.fake_quant
    if fake_quant is not None and fake_quant.ramp_steps:
        fake_quant = replace(fake_quant, ramp_steps=steps(fake_quant.ramp_steps))
    loader: LoaderConfig = train.loader
    if isinstance(loader, CoprimeConfig):
        loader = replace(loader, anneal_steps=steps(loader.anneal_steps))
    return replace(
        train,
        optimizer=replace(optimizer, matrices=matrices),
        schedule=replace(
            schedule, steps=schedule.steps and steps(schedule.steps), ramp_steps=schedule.ramp_steps and steps(schedule.ramp_steps)
        ),
        average=average,
        fake_quant=fake_quant,
        replay=train.replay and replace(train.replay, batches=steps(train.replay.batches)),
        batch_warmup=train.batch_warmup and replace(train.batch_warmup, steps=steps(train.batch_warmup.steps)),
        distil=train.distil and replace(train.distil, steps=steps(train.distil.steps)),
        loader=loader,
    )


def _loader(loader: LoaderConfig, dial: Dial, rows: int) -> LoaderConfig:
    if isinstance(loader, SequentialConfig):
        return replace(loader, num_spans=min(loader.num_spans, rows))
    if isinstance(loader, CoprimeConfig):
        return replace(loader, shard_tokens=dial.shard_tokens)
    return loader
