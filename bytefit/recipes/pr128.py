"""``pr128``: int6 with fake quantisation from the first step, a 3x MLP, windows of 4,096 tokens, sliding score.

Beyond the baseline's differences: the table is packed as int8 (fp16 in the original).
"""

from __future__ import annotations

from dataclasses import replace

from bytefit.model.mlp import ReluSquaredConfig
from bytefit.optim.groups import AdamConfig, MuonConfig, OptimizerConfig
from bytefit.optim.schedule import WarmdownConfig
from bytefit.quant.clip import Percentile
from bytefit.quant.fake import FakeQuantConfig, StraightThrough
from bytefit.quant.grid import RowGrid
from bytefit.quant.quantise import MatrixQuant
from bytefit.recipes.baseline import baseline, packed_as
from bytefit.recipes.recipe import Recipe, ScoreConfig
from bytefit.recipes.sizes import Known

KNOWN = Known(steps=10_535, dial=0.71)


def pr128(*, as_submitted: bool = False) -> Recipe:
    """21,778,504 parameters. The ``as_submitted`` form has bf16 rotary tables, which blur positions above 256."""
    base = baseline(as_submitted=as_submitted)
    return replace(
        base,
        name="pr128",
        model=replace(base.model, context=4096, mlp=ReluSquaredConfig(width=3.0)),
        train=replace(
            base.train,
            seq_len=4096,
            batch_tokens=393_216,
            micro_batch_tokens=49_152,
            optimizer=OptimizerConfig(
                matrices=MuonConfig(lr=0.02, momentum_start=0.92, momentum=0.99, momentum_warmup_steps=1500),
                tables=AdamConfig(lr=0.03),
                gains=AdamConfig(lr=0.02),
            ),
            schedule=WarmdownConfig(steps=3000),
            fake_quant=FakeQuantConfig(rounding=StraightThrough(), lowest=-31, highest=31, clip=Percentile(share=0.9999984), below=1.01),
        ),
        pack=packed_as(MatrixQuant(grid=RowGrid(lowest=-32, highest=31)), "zstd"),
        score=ScoreConfig(window=4096, stride=64),
    )
