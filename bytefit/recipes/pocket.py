"""``pocket``: the best model in a million bytes from three minutes on two CPU cores.

Dimensions, rates and parts were chosen by measuring; docs/log.md keeps what was tried.
"""

from __future__ import annotations

from bytefit.artifact.pack import PackConfig
from bytefit.data.loaders import ShuffledConfig
from bytefit.data.tokenizer import TokenizerConfig
from bytefit.model.attention import AttentionConfig
from bytefit.model.bigram import BigramHashConfig
from bytefit.model.exclusive import ExclusiveConfig
from bytefit.model.head import HeadConfig
from bytefit.model.language_model import ModelConfig
from bytefit.model.mlp import ReluSquaredConfig
from bytefit.model.plan import unet_plan
from bytefit.model.smear import SmearGateConfig
from bytefit.model.value_embedding import ValueEmbeddingConfig
from bytefit.optim.groups import AdamConfig, MuonConfig, OptimizerConfig
from bytefit.optim.schedule import WarmdownConfig
from bytefit.quant.calibrate import CalibrationConfig, TrainingText
from bytefit.quant.grid import EqualDamageGrid
from bytefit.quant.quantise import MatrixQuant, QuantConfig
from bytefit.recipes.recipe import Recipe, ScoreConfig
from bytefit.score.adapt import DocumentLora
from bytefit.train.config import TrainConfig

# What every weight's error costs decides its step, in the tied table as anywhere else; benchmarks/rate.py compares that with the other
# schemes at equal bytes.
MATRICES = MatrixQuant(grid=EqualDamageGrid())
QUANT = QuantConfig(table=MATRICES, head=MATRICES, attention=MATRICES, mlp=MATRICES, projection=MATRICES, gain_step=1 / 256)

# A document's first bytes teach the model the rest of it. Steps without momentum: what was just read says most about what comes next.
# Long documents are cut so that a large file is compressed side by side.
ADAPTERS = DocumentLora(window=128, chunk_tokens=64, lr=0.004, betas=(0.0, 0.99), batch_documents=64, piece_tokens=8192)


def pocket_lab() -> Recipe:
    """1,000,000 bytes, 180 s.

    Short windows mix more documents into a batch and cost less attention. Hashed and shared tables spend bytes, which are plenty, and
    hardly any time, which is not. The position tables reach further than the windows it is trained and scored with, but how well rotary
    positions carry over depends on the seed.
    """
    return Recipe(
        name="pocket",
        size="lab",
        tokenizer=TokenizerConfig(vocab_size=2048),
        model=ModelConfig(
            vocab_size=2048,
            dim=192,
            context=256,
            plan=unet_plan(3),
            bigram=BigramHashConfig(buckets=4096, dim=64),
            smear=SmearGateConfig(),
            attention=AttentionConfig(num_heads=3, num_kv_heads=3, exclusive=ExclusiveConfig()),
            value_embedding=ValueEmbeddingConfig(blocks=(1, 2), dim=48),
            mlp=ReluSquaredConfig(width=3.0, slope=0.5),
            head=HeadConfig(tied=True, softcap=30.0),
        ),
        train=TrainConfig(
            seconds=180.0,
            seq_len=128,
            batch_tokens=4096,
            micro_batch_tokens=4096,
            loader=ShuffledConfig(),
            optimizer=OptimizerConfig(
                matrices=MuonConfig(lr=0.02, momentum_warmup_steps=300), tables=AdamConfig(lr=0.03), gains=AdamConfig(lr=0.02)
            ),
            schedule=WarmdownConfig(fraction=0.5),
            compile=True,
            reserve_seconds=4.0,
        ),
        calibrate=CalibrationConfig(source=TrainingText(), windows=512),
        pack=PackConfig(budget_bytes=1_000_000, quant=QUANT),
        score=ScoreConfig(window=128, stride=64, adapt=ADAPTERS, headline="adapt", max_bytes=1_000_000),
    )


def pocket_tiny() -> Recipe:
    """20,000 bytes, a few seconds: for tests and first looks."""
    return Recipe(
        name="pocket",
        size="tiny",
        tokenizer=TokenizerConfig(vocab_size=512),
        model=ModelConfig(
            vocab_size=512,
            dim=32,
            context=64,
            plan=unet_plan(2),
            attention=AttentionConfig(num_heads=2, num_kv_heads=1),
            mlp=ReluSquaredConfig(width=2.0),
            head=HeadConfig(tied=True, softcap=30.0),
        ),
        train=TrainConfig(
            steps=60,
            seq_len=64,
            batch_tokens=1024,
            micro_batch_tokens=1024,
            loader=ShuffledConfig(),
            optimizer=OptimizerConfig(
                matrices=MuonConfig(lr=0.02, momentum_warmup_steps=20), tables=AdamConfig(lr=0.03), gains=AdamConfig(lr=0.02)
            ),
            schedule=WarmdownConfig(fraction=0.5),
            reserve_seconds=1.0,
        ),
        calibrate=CalibrationConfig(source=TrainingText(), windows=128),
        pack=PackConfig(budget_bytes=20_000, quant=QUANT),
        score=ScoreConfig(window=64, stride=32, max_bytes=50_000, proof_bytes=2_000),
    )


SIZES = {"lab": pocket_lab, "tiny": pocket_tiny}
