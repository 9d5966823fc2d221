"""``pr578``: int6 by GPTQ, early fake quantisation, an EMA, score-first test-time training."""

from __future__ import annotations

from dataclasses import replace

from bytefit.model.mlp import ReluSquaredConfig
from bytefit.optim.average import AverageConfig
from bytefit.quant.calibrate import CalibrationConfig, TrainingText
from bytefit.quant.clip import Percentile
from bytefit.quant.fake import FakeQuantConfig, StraightThrough
from bytefit.recipes.baseline import packed_as
from bytefit.recipes.eleven import CALIBRATION_SECONDS, SIDE_TABLE_GAIN, TIGHT_SWA, contest_gptq, eleven_layers
from bytefit.recipes.recipe import Recipe
from bytefit.recipes.sizes import Known
from bytefit.score.adapt import IN_BLOCKS, Adapt, Selection, Sgd

KNOWN = Known(steps=6_990, dial=0.333)


def pr578(*, as_submitted: bool = False) -> Recipe:
    """26,993,756 parameters. What really ran is the ``as_submitted`` form: no fake quantisation (the compiler had folded its switch), the
    EMA alone (snapshots were collected and never used; here held-out training text chooses), the inverse second moment without its Cholesky
    factor, and calibration on training text after the clock, not inside.

    The original's steps are never finer than 1/31, which rounds the small weights of a short run to zero; here they have no floor.
    """
    base = eleven_layers("pr578", bigram_buckets=2048, mlp=ReluSquaredConfig(width=3.0), side_table_gain=SIDE_TABLE_GAIN)
    fake_quant = FakeQuantConfig(rounding=StraightThrough(), lowest=-32, highest=31, clip=Percentile(share=0.9995), below=0.5)
    return replace(
        base,
        train=replace(
            base.train,
            average=AverageConfig(ema_decay=0.997) if as_submitted else AverageConfig(ema_decay=0.997, swa=TIGHT_SWA, use="held_out"),
            fake_quant=None if as_submitted else fake_quant,
            reserve_seconds=0.0 if as_submitted else CALIBRATION_SECONDS,
        ),
        calibrate=CalibrationConfig(source=TrainingText(), windows=256, batch_windows=4),
        pack=packed_as(contest_gptq(31, block=128, damp=0.01, as_submitted=as_submitted), "zstd"),
        score=replace(
            base.score,
            adapt=Adapt(
                window=2048,
                stride=64,
                chunk_tokens=32_768,
                optimizer=Sgd(lr=0.002),
                trains=Selection(first_blocks_frozen=2, roles=(*IN_BLOCKS, "gain")),
                train_chunks=200,
                ema_decay=0.995,
                dtype="auto",
            ),
            headline="adapt",
        ),
    )
