"""What the 11-layer systems (PR #578, #606, #693, #1171) have in common."""

from __future__ import annotations

from dataclasses import replace

from bytefit.model.attention import AttentionConfig
from bytefit.model.bigram import BigramHashConfig
from bytefit.model.exclusive import ExclusiveConfig
from bytefit.model.linear import OrthogonalInit
from bytefit.model.mlp import ReluSquaredConfig
from bytefit.model.plan import unet_plan
from bytefit.model.rotary import RotaryConfig
from bytefit.model.smear import SmearGateConfig
from bytefit.model.value_embedding import ValueEmbeddingConfig
from bytefit.optim.average import AverageConfig, SnapshotConfig
from bytefit.optim.groups import AdamConfig, MuonConfig, OptimizerConfig
from bytefit.optim.schedule import WarmdownConfig
from bytefit.quant.clip import Searched
from bytefit.quant.gptq import Gptq
from bytefit.quant.grid import RowGrid
from bytefit.quant.quantise import MatrixQuant
from bytefit.recipes.baseline import baseline
from bytefit.recipes.recipe import Recipe, ScoreConfig

NUM_BLOCKS = 11
CALIBRATION_SECONDS = 14.0  # of the 600 that the repaired forms leave for calibrating on training text (as PR #1060 does)
CHOICE_SECONDS = 3.0  # that is left where nothing but the choice among averages reads training text afterwards
TIGHT_SWA = SnapshotConfig(every=50, below=0.2)
SIDE_TABLE_GAIN = (2 * NUM_BLOCKS) ** -0.5  # on the starts of the side tables' projections, in all but PR #1171


def contest_gptq(highest: int, *, block: int, damp: float, as_submitted: bool) -> MatrixQuant:
    """GPTQ of PR #578, #606 and #1171: the best of five percentiles for each row by plain rounding, then feedback, the column with the
    smallest input first. What ran there took the inverse second moment as it was, though Cholesky factors were advertised."""
    grid = RowGrid(lowest=-highest, highest=highest, clip=Searched())
    return MatrixQuant(grid=grid, rounding=Gptq(order="ascending", downdate=not as_submitted, block=block, damp=damp))


def eleven_layers(name: str, *, bigram_buckets: int, mlp: ReluSquaredConfig, num_kv_heads: int = 4, side_table_gain: float) -> Recipe:
    """11 blocks of width 512, windows of 2,048 tokens, bigram hash, smear gate, value embedding, XSA in the last four blocks,
    partial rotary positions, depth-scaled norms, orthogonal starts, AdamW and Muon with decay, an EMA of the weights.

    Rotary frequencies are those that the scripts end up with: made for 1,024 tokens and stretched to 2,048.
    """
    base = baseline()
    return replace(
        base,
        name=name,
        model=replace(
            base.model,
            context=2048,
            plan=unet_plan(NUM_BLOCKS),
            bigram=BigramHashConfig(buckets=bigram_buckets, dim=128, orthogonal_gain=side_table_gain),
            smear=SmearGateConfig(),
            attention=AttentionConfig(
                num_heads=8,
                num_kv_heads=num_kv_heads,
                rotary=RotaryConfig(dims=16, reference_length=1024, length=2048),
                exclusive=ExclusiveConfig(blocks=(7, 8, 9, 10)),
            ),
            value_embedding=ValueEmbeddingConfig(blocks=(9, 10), dim=128, orthogonal_gain=side_table_gain),
            mlp=mlp,
            depth_scaled_norm=True,
            orthogonal_init=OrthogonalInit(min_size=64),
        ),
        train=replace(
            base.train,
            seq_len=2048,
            batch_tokens=786_432,
            micro_batch_tokens=98_304,
            optimizer=OptimizerConfig(
                matrices=MuonConfig(lr=0.025, momentum_start=0.92, momentum=0.99, momentum_warmup_steps=1500, weight_decay=0.04),
                tables=AdamConfig(lr=0.035, weight_decay=0.04),
                gains=AdamConfig(lr=0.025, weight_decay=0.04),
                clip_norm=0.3,
            ),
            schedule=WarmdownConfig(steps=3500),
            average=AverageConfig(ema_decay=0.997),
        ),
        score=ScoreConfig(window=2048, stride=64),
    )
