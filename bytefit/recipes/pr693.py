"""``pr693``: CROWN-Q, full GPTQ, a fixed blend of EMA and snapshots, burst replay; ``pr606``, its first commit: int5 with
soft rounding."""

from __future__ import annotations

from dataclasses import replace

from bytefit.model.exclusive import ExclusiveConfig
from bytefit.model.mlp import ReluSquaredConfig
from bytefit.model.value_residual import ValueResidualConfig
from bytefit.optim.average import AverageConfig
from bytefit.optim.schedule import WarmdownConfig
from bytefit.quant.calibrate import CalibrationConfig, TrainingText
from bytefit.quant.clip import Percentile, RowMaximum, Searched
from bytefit.quant.crown import CrownQConfig
from bytefit.quant.fake import FakeQuantConfig, SigmoidGradient, SoftRound
from bytefit.quant.gptq import Gptq
from bytefit.quant.grid import RowGrid
from bytefit.quant.prune import PruneConfig
from bytefit.quant.quantise import MatrixQuant
from bytefit.recipes.baseline import packed_as
from bytefit.recipes.eleven import CALIBRATION_SECONDS, SIDE_TABLE_GAIN, TIGHT_SWA, contest_gptq, eleven_layers
from bytefit.recipes.recipe import Recipe
from bytefit.recipes.sizes import Known
from bytefit.score.adapt import IN_BLOCKS, AdamW, Adapt, Selection
from bytefit.train.config import ReplayConfig

KNOWN_693, KNOWN_606 = Known(steps=6_613, dial=0.31), Known(steps=6_163, dial=0.336)
LEAKY = 0.5
# Each of five percentiles gets a whole pass with feedback, and one of them serves a matrix, by the plain error of its weights.
FULL_GPTQ = MatrixQuant(
    grid=RowGrid(lowest=-31, highest=31, clip=Searched(each="matrix", judge="feedback")), rounding=Gptq(damp=0.01, damp_times=2)
)


def pr693(*, as_submitted: bool = False) -> Recipe:
    """27,124,848 parameters. The replay, which ran after the original's clock of 585 s, is inside the 600 s here.

    In the ``as_submitted`` form the fake quantisation is off: its compiled script never ran it.
    """
    base = eleven_layers(
        "pr693", bigram_buckets=3072, mlp=ReluSquaredConfig(width=3.0, slope=LEAKY), side_table_gain=SIDE_TABLE_GAIN
    )  # fmt: skip
    fake_quant = FakeQuantConfig(rounding=SigmoidGradient(), lowest=-31, highest=31, clip=RowMaximum(), below=0.15)
    return replace(
        base,
        model=replace(base.model, attention=replace(base.model.attention, value_residual=ValueResidualConfig())),
        train=replace(
            base.train,
            schedule=WarmdownConfig(steps=4000),
            average=AverageConfig(ema_decay=0.997, swa=TIGHT_SWA, use="blend", swa_share=0.5),
            replay=ReplayConfig(batches=100, epochs=2, lr_scale=0.1),
            fake_quant=None if as_submitted else fake_quant,
            crown_q=CrownQConfig(),
            reserve_seconds=0.0 if as_submitted else CALIBRATION_SECONDS,
        ),
        calibrate=CalibrationConfig(source=TrainingText(), windows=12_288, batch_windows=48),
        pack=packed_as(FULL_GPTQ, "lzma", zero_ones=0.1),
    )


def pr606(*, as_submitted: bool = False) -> Recipe:
    """33,580,124 parameters, int5. The original chose between EMA and snapshots on validation text; here held-out training text
    decides, or in the ``as_submitted`` form nothing: the EMA, which won there each time. That form has no soft rounding either:
    its compiled script never ran it; and its GPTQ is without the Cholesky factor.
    """
    base = eleven_layers(
        "pr606", bigram_buckets=8192, mlp=ReluSquaredConfig(width=3.5, slope=LEAKY), num_kv_heads=8, side_table_gain=SIDE_TABLE_GAIN
    )
    fake_quant = FakeQuantConfig(rounding=SoftRound(), lowest=-16, highest=15, clip=Percentile(share=0.9995), below=0.5)
    return replace(
        base,
        model=replace(base.model, attention=replace(base.model.attention, exclusive=ExclusiveConfig())),
        train=replace(
            base.train,
            average=AverageConfig(ema_decay=0.997, swa=TIGHT_SWA, use="ema" if as_submitted else "held_out"),
            fake_quant=None if as_submitted else fake_quant,
            reserve_seconds=0.0 if as_submitted else CALIBRATION_SECONDS,
        ),
        calibrate=CalibrationConfig(source=TrainingText(), windows=256, batch_windows=4),
        pack=packed_as(contest_gptq(15, block=128, damp=0.01, as_submitted=as_submitted), "zstd", prune=PruneConfig(share=0.02)),
        score=replace(
            base.score,
            adapt=Adapt(
                window=2048,
                stride=32,
                chunk_tokens=131_072,
                optimizer=AdamW(lr=1e-4),
                trains=Selection(last_blocks=2, roles=IN_BLOCKS, everywhere=("gain",) if as_submitted else ("gain", "head")),
                temperature=0.98,
                dtype="auto",
            ),
            headline="adapt",
        ),
    )
