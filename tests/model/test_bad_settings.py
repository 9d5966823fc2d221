"""A setting that cannot work is refused with its name and its value."""

from __future__ import annotations

import re

import pytest

from bytefit.model.attention import AttentionConfig
from bytefit.model.bigram import BigramHashConfig
from bytefit.model.exclusive import ExclusiveConfig
from bytefit.model.head import HeadConfig, LearnedCaps
from bytefit.model.lanes import ParallelLanesConfig
from bytefit.model.linear import OrthogonalInit
from bytefit.model.loop_positions import LoopPositionsConfig
from bytefit.model.mlp import ReluSquaredConfig, SwigluConfig
from bytefit.model.output_gate import OutputGateConfig
from bytefit.model.plan import Step, looped_plan
from bytefit.model.rotary import RotaryConfig
from bytefit.model.trigram import TrigramHashConfig
from bytefit.model.value_embedding import ValueEmbeddingConfig
from tests.model.parts import configured, straight_plan


def heads(queries: int, pairs: int) -> AttentionConfig:
    return AttentionConfig(num_heads=queries, num_kv_heads=pairs)


BAD_PARTS = [  # (what makes it, what the message says)
    (lambda: BigramHashConfig(buckets=1), "bigram buckets 1 must"),
    (lambda: BigramHashConfig(buckets=1 << 25), "bigram buckets 33554432 must"),
    (lambda: BigramHashConfig(dim=0), "bigram dim 0 must"),
    (lambda: TrigramHashConfig(buckets=1), "trigram buckets 1 must"),
    (lambda: TrigramHashConfig(dim=0), "trigram dim 0 must"),
    (lambda: LoopPositionsConfig(count=0), "loop_positions count 0 must"),
    (lambda: LoopPositionsConfig(count=2, scale=-1.0), "loop_positions scale -1.0 must"),
    (lambda: Step(block=0, position=-1), "plan position -1 must"),
    (lambda: ValueEmbeddingConfig(blocks=()), "value_embedding.blocks is empty"),
    (lambda: ValueEmbeddingConfig(blocks=(0,), dim=-3), "value_embedding dim -3 must"),
    (lambda: ValueEmbeddingConfig(blocks=(0,), init_std=-0.1), "value_embedding init_std -0.1 must"),
    (lambda: RotaryConfig(base=1.0), "rotary base 1.0 must"),
    (lambda: RotaryConfig(dims=3), "rotary dims 3 must"),
    (lambda: RotaryConfig(dims=0), "rotary dims 0 must"),
    (lambda: RotaryConfig(reference_length=1024), "rotary reference_length 1024 and length None: give both"),
    (lambda: RotaryConfig(length=1024), "rotary reference_length None and length 1024: give both"),
    (lambda: RotaryConfig(reference_length=2048, length=1024), "rotary reference_length 2048 must lie in 1..1024"),
    (lambda: RotaryConfig(reference_length=0, length=1024), "rotary reference_length 0 must"),
    (lambda: OutputGateConfig(channels=0), "output_gate channels 0 must"),
    (lambda: OrthogonalInit(min_size=0), "orthogonal min_size 0 must"),
    (lambda: ReluSquaredConfig(width=0.0), "mlp width 0.0 must"),
    (lambda: ReluSquaredConfig(width=float("nan")), "mlp width nan must"),
    (lambda: ReluSquaredConfig(slope=1.0), "mlp slope 1.0 must"),
    (lambda: ReluSquaredConfig(slope=-0.1), "mlp slope -0.1 must"),
    (lambda: SwigluConfig(width=2000.0), "mlp width 2000.0 must"),
    (lambda: HeadConfig(softcap=0.0), "softcap 0.0 must"),
    (lambda: HeadConfig(softcap=61.0), "softcap 61.0 must"),
    (lambda: LearnedCaps(init=0.0), "softcap init 0.0 must"),
    (lambda: LearnedCaps(init=1001.0), "softcap init 1001.0 must"),
    (lambda: heads(4, 3), "num_kv_heads 3 must divide num_heads 4"),
    (lambda: heads(4, 8), "num_kv_heads 8 must divide num_heads 4"),
    (lambda: heads(4, 0), "num_kv_heads 0 must"),
    (lambda: heads(0, 1), "num_heads 0"),
]
BAD_MODELS = [  # (changes to the small model, what the message says)
    ({"vocab_size": 1}, "vocab_size 1 must"),
    ({"vocab_size": 70_000}, "vocab_size 70000 must"),
    ({"dim": 1}, "dim 1 must"),
    ({"context": 1}, "context 1 must"),
    ({"context": 65_537}, "context 65537 must"),
    ({"attention": heads(5, 5)}, "num_heads 5 must divide dim 24"),
    ({"attention": heads(8, 8)}, "rotary dims 3 do not fit a head of 3 channels"),
    ({"attention.rotary": RotaryConfig(dims=8)}, "rotary dims 8 do not fit a head of 6 channels"),
    ({"attention.rotary": RotaryConfig(reference_length=512, length=1024, dims=2)}, "2 rotary dims cannot be stretched"),
    ({"embed_init_std": -1.0}, "embed_init_std -1.0 must"),
    ({"attention.output_gate": OutputGateConfig(channels=25)}, "output_gate channels 25 are more than dim 24"),
    ({"attention.exclusive": ExclusiveConfig(blocks=(0, 2))}, "attention.exclusive names block 2; the plan has the blocks 0..1"),
    ({"attention.output_gate": OutputGateConfig(blocks=(-1,))}, "attention.output_gate names block -1;"),
    ({"value_embedding": ValueEmbeddingConfig(blocks=(7,))}, "value_embedding names block 7;"),
    ({"lanes": ParallelLanesConfig(start=2)}, "lanes names block 2;"),
    ({"lanes": ParallelLanesConfig(start=-1)}, "lanes names block -1;"),
    ({"plan": ()}, "plan is empty"),
    ({"plan": looped_plan(2, (0, 1))}, "the plan asks for 2 loop positions; model.loop_positions has 0"),
    ({"loop_positions": LoopPositionsConfig(count=1), "plan": looped_plan(2, (1,))}, "the plan asks for 2 loop positions; "),
    ({"loop_positions": LoopPositionsConfig(count=25)}, "loop_positions count 25 is more than dim 24"),
    ({"plan": straight_plan(1)}, "plan uses blocks [1];"),
    ({"plan": straight_plan(0, 2)}, "plan uses blocks [0, 2];"),
    ({"plan": (Step(block=0, pop=0),)}, "plan step 0 pops from an empty skip stack"),
    ({"plan": (Step(block=0, push=True), Step(block=0, pop=0), Step(block=0, pop=0))}, "plan step 2 pops from an empty"),
    ({"plan": (Step(block=0, push=True),)}, "plan leaves 1 pushed"),
    ({"plan": (Step(block=0, push=True), Step(block=0, pop=1))}, "plan uses skip weights [1];"),
    ({"plan": (Step(block=0, push=True), Step(block=0, pop=-1))}, "plan uses skip weights [-1];"),
]


@pytest.mark.parametrize(("make", "says"), BAD_PARTS, ids=[says for _, says in BAD_PARTS])
def test_part_is_refused(make, says) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        make()


@pytest.mark.parametrize(("changes", "says"), BAD_MODELS, ids=[says for _, says in BAD_MODELS])
def test_model_is_refused(changes, says) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        configured(changes)


def test_limits_themselves_are_allowed() -> None:
    """What the tables above refuse is refused for its value, not for its neighbourhood."""
    assert BigramHashConfig(buckets=2, dim=1).buckets == 2
    assert RotaryConfig(dims=4, reference_length=1024, length=1024).stretched_base(4) == 10_000.0
    assert HeadConfig(softcap=60.0).softcap == 60.0
    assert LearnedCaps(init=1000.0).init == 1000.0
    assert configured({"attention.rotary": RotaryConfig(dims=6)}).attention.rotary.dims == 6
    assert configured({"attention.output_gate": OutputGateConfig(channels=24)}).dim == 24
    assert configured({"lanes": ParallelLanesConfig(start=1)}).lanes == ParallelLanesConfig(start=1)
