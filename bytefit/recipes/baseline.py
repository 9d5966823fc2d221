"""``baseline``: the contest's naive baseline, and the parts of a recipe that every contest system shares.

Differences from the published script: rotary tables stay fp32 (bf16 in the ``as_submitted`` form), tables and their Adam states are
fp32 (bf16 there), the scored tail is exact, and steps have no floor (the script keeps them above 1/127). The sequential loader is the
original's.
"""

from __future__ import annotations

from bytefit.artifact.pack import PackConfig
from bytefit.artifact.weights_part import CodecName
from bytefit.data.loaders import SequentialConfig
from bytefit.data.tokenizer import TokenizerConfig
from bytefit.model.attention import AttentionConfig
from bytefit.model.head import HeadConfig
from bytefit.model.language_model import ModelConfig
from bytefit.model.mlp import ReluSquaredConfig
from bytefit.model.plan import unet_plan
from bytefit.model.rotary import RotaryConfig
from bytefit.optim.groups import AdamConfig, MuonConfig, OptimizerConfig
from bytefit.optim.schedule import WarmdownConfig
from bytefit.quant.clip import Percentile
from bytefit.quant.grid import integer_grid
from bytefit.quant.prune import PruneConfig
from bytefit.quant.quantise import MatrixQuant, QuantConfig
from bytefit.recipes.recipe import Recipe, ScoreConfig
from bytefit.recipes.sizes import Known
from bytefit.train.config import TrainConfig

BUDGET_BYTES = 16_000_000
TOKENIZER = TokenizerConfig(vocab_size=1024, normalization="nmt_nfkc")
HEAD = HeadConfig(tied=True, softcap=30.0)
INT8 = MatrixQuant(grid=integer_grid(8, Percentile(share=0.9999984)))
KNOWN = Known(steps=13_780)


def packed_as(
    matrices: MatrixQuant, codec: CodecName, *, fit: bool = True, prune: PruneConfig | None = None, zero_ones: float = 0.0
) -> PackConfig:
    """The blocks' matrices rounded by one rule, everything else int8, under one general-purpose compressor.

    With ``fit`` all steps are scaled to the budget: without the originals' floors under the steps, fixed levels may not fit.
    """
    return PackConfig(
        budget_bytes=BUDGET_BYTES,
        quant=QuantConfig(table=INT8, attention=matrices, mlp=matrices, projection=INT8, head=INT8, prune=prune),
        codec=codec,
        fit=fit,
        zero_ones=zero_ones,
    )


def baseline(*, as_submitted: bool = False) -> Recipe:
    """17,059,912 parameters, 16,000,000 bytes, 600 s on 8 GPUs."""
    return Recipe(
        name="baseline",
        size="full",
        tokenizer=TOKENIZER,
        model=ModelConfig(
            vocab_size=1024,
            dim=512,
            context=1024,
            plan=unet_plan(9),
            attention=AttentionConfig(
                num_heads=8, num_kv_heads=4, rotary=RotaryConfig(table_dtype="bfloat16" if as_submitted else "float32")
            ),
            mlp=ReluSquaredConfig(width=2.0),
            head=HEAD,
        ),
        train=TrainConfig(
            seconds=600.0,
            seq_len=1024,
            batch_tokens=524_288,
            micro_batch_tokens=65_536,
            loader=SequentialConfig(num_spans=8),
            optimizer=OptimizerConfig(
                matrices=MuonConfig(lr=0.04, momentum_start=0.85, momentum=0.95, momentum_warmup_steps=500),
                tables=AdamConfig(lr=0.05),
                gains=AdamConfig(lr=0.04),
            ),
            schedule=WarmdownConfig(steps=1200),
            warmup_steps=20,
            compile=True,
            dtype="bfloat16",
            checkpoint_seconds=300.0,  # one of hundreds of megabytes takes seconds of the clock
        ),
        pack=packed_as(INT8, "zlib", fit=False),
        score=ScoreConfig(window=1024, stride=64, headline="full"),
    )
