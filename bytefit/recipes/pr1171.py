"""``pr1171``: Parallel Muon over parameter banks, int5 GPTQ, the coprime loader, test-time training."""

from __future__ import annotations

from dataclasses import replace

from bytefit.data.coprime import CoprimeConfig
from bytefit.model.exclusive import ExclusiveConfig
from bytefit.model.mlp import ReluSquaredConfig
from bytefit.optim.average import AverageConfig
from bytefit.quant.calibrate import CalibrationConfig, ModelText, RandomIds
from bytefit.quant.clip import Percentile
from bytefit.quant.fake import FakeQuantConfig, StraightThrough
from bytefit.quant.prune import PruneConfig
from bytefit.recipes.baseline import packed_as
from bytefit.recipes.eleven import CHOICE_SECONDS, TIGHT_SWA, contest_gptq, eleven_layers
from bytefit.recipes.recipe import Recipe
from bytefit.recipes.sizes import Known
from bytefit.score.adapt import IN_BLOCKS, AdamW, Adapt, Selection

KNOWN = Known(steps=6_333, dial=0.345)  # steps by its step time
# Windows that the model writes side by side: 4 batches of 2,047 forward passes one after another, where 4 at once would take 64 batches.
# 131,072 tokens hold 5.9 GB of keys and values (fp32) while they are written, then 19.6 GB of matrices' inputs while they are measured.
WRITTEN_AT_ONCE = 64


def pr1171(*, as_submitted: bool = False) -> Recipe:
    """33,317,980 parameters.

    The ``as_submitted`` form does what really ran: no fake quantisation, calibration on random ids instead of the model's own text,
    the EMA (the original chose among averages on validation text, and which one it chose is not known; otherwise held-out training text
    decides here), GPTQ without the Cholesky factor, and no head among what is adapted: the original looked for one by a name that a tied
    head does not have.
    """
    base = eleven_layers(
        "pr1171", bigram_buckets=6144, mlp=ReluSquaredConfig(width=3.5, slope=0.5), num_kv_heads=8, side_table_gain=1.0
    )  # fmt: skip
    optimizer = base.train.optimizer
    fake_quant = FakeQuantConfig(rounding=StraightThrough(), lowest=-16, highest=15, clip=Percentile(share=0.9995), below=0.15)
    return replace(
        base,
        model=replace(base.model, attention=replace(base.model.attention, exclusive=ExclusiveConfig())),
        train=replace(
            base.train,
            loader=CoprimeConfig(anneal_steps=1800, exponent_start=0.9, exponent_end=0.5),
            optimizer=replace(
                optimizer,
                matrices=replace(optimizer.matrices, state_dtype="bfloat16"),
                projections="gains",
                clip_when="before averaging",
            ),
            average=AverageConfig(ema_decay=0.997, swa=TIGHT_SWA, use="ema" if as_submitted else "held_out"),
            fake_quant=None if as_submitted else fake_quant,
            reserve_seconds=0.0 if as_submitted else CHOICE_SECONDS,
        ),
        calibrate=CalibrationConfig(source=RandomIds() if as_submitted else ModelText(), windows=256, batch_windows=WRITTEN_AT_ONCE),
        pack=packed_as(contest_gptq(15, block=64, damp=0.002, as_submitted=as_submitted), "zstd", prune=PruneConfig(share=0.03)),
        score=replace(
            base.score,
            adapt=Adapt(
                window=2048,
                stride=64,
                chunk_tokens=262_144,
                optimizer=AdamW(lr=1e-4),
                trains=Selection(last_blocks=2, roles=IN_BLOCKS, everywhere=("gain",) if as_submitted else ("gain", "head")),
                epochs=5,
                dtype="auto",
            ),
            headline="adapt",
        ),
    )
