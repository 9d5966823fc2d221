"""A tiny model with weights large enough to have opinions, and a text for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bytefit.data.tokenizer import BOS_ID
from bytefit.model.attention import AttentionConfig
from bytefit.model.head import HeadConfig
from bytefit.model.language_model import ModelConfig
from bytefit.model.mlp import ReluSquaredConfig
from bytefit.model.plan import unet_plan

CONFIG = ModelConfig(
    vocab_size=37,
    dim=16,
    context=16,
    plan=unet_plan(3),
    attention=AttentionConfig(num_heads=2, num_kv_heads=1),
    mlp=ReluSquaredConfig(width=2),
    head=HeadConfig(softcap=8.0),
)


def make_model(config: ModelConfig = CONFIG, seed: int = 1):
    torch.manual_seed(seed)
    model = config.build()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return model.eval()


@pytest.fixture
def tiny_model():
    return make_model()


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    """Documents of different lengths that repeat themselves: there is something to learn."""
    rng = np.random.default_rng(0)
    pieces = []
    for length in (23, 5, 40, 1, 31):
        motif = rng.integers(3, 37, 4)
        pieces += [[BOS_ID], np.where(rng.random(length) < 0.8, np.resize(motif, length), rng.integers(3, 37, length))]
    return np.concatenate(pieces).astype(np.int64)
