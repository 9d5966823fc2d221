"""Every part of the model in one table: all tests in this folder run over it. A new part is one new line in ``PARTS``."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bytefit.data.tokenizer import BOS_ID
from bytefit.model.attention import AttentionConfig
from bytefit.model.bigram import BigramHashConfig
from bytefit.model.exclusive import ExclusiveConfig
from bytefit.model.head import HeadConfig, LearnedCaps
from bytefit.model.lanes import ParallelLanesConfig
from bytefit.model.language_model import LanguageModel, ModelConfig
from bytefit.model.loop_positions import LoopPositionsConfig
from bytefit.model.mlp import ReluSquaredConfig, SwigluConfig
from bytefit.model.output_gate import OutputGateConfig
from bytefit.model.plan import Plan, Step, looped_plan, unet_plan
from bytefit.model.roles import Role, role_of
from bytefit.model.rotary import RotaryConfig
from bytefit.model.smear import SmearGateConfig
from bytefit.model.trigram import TrigramHashConfig
from bytefit.model.value_embedding import ValueEmbeddingConfig
from bytefit.model.value_residual import ValueResidualConfig

Changes = dict[str, Any]  # dotted path in ModelConfig -> value


def straight_plan(*order: int) -> Plan:
    """The blocks in this order, without skips."""
    return tuple(Step(block=block) for block in order)


VOCAB, CONTEXT = 61, 48
BASE = ModelConfig(
    vocab_size=VOCAB,
    dim=24,
    context=CONTEXT,
    plan=straight_plan(0, 1),
    attention=AttentionConfig(num_heads=4, num_kv_heads=2),
    mlp=ReluSquaredConfig(width=2.0),
    head=HeadConfig(tied=True, softcap=20.0),
)


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        on: changes to ``BASE`` that switch the part on.
        off: changes to ``BASE`` that give the model it is compared with.
        neutral: its parameters start where the part changes nothing, by design (the tests hold it to that).
    """

    on: Changes
    off: Changes = field(default_factory=dict)
    neutral: bool = False


BIGRAM = BigramHashConfig(buckets=17, dim=10)
STRETCHED = RotaryConfig(dims=4, reference_length=16, length=40)
LOOPED = straight_plan(0, 1, 0, 1)
TRIGRAM = TrigramHashConfig(buckets=19, dim=10)
COUNTED = looped_plan(2, (0, 1))
UNCOUNTED = tuple(dataclasses.replace(step, position=None) for step in COUNTED)

PARTS: dict[str, Part] = {
    "bigram": Part({"bigram": BIGRAM}, neutral=True),  # its table starts at zero
    "bigram, masked": Part({"bigram": dataclasses.replace(BIGRAM, mask_documents=True)}, off={"bigram": BIGRAM}),
    "trigram": Part({"trigram": TRIGRAM}, neutral=True),  # as the bigram's
    "trigram, masked": Part({"trigram": dataclasses.replace(TRIGRAM, mask_documents=True)}, off={"trigram": TRIGRAM}),
    "smear": Part({"smear": SmearGateConfig()}),
    "smear, masked": Part({"smear": SmearGateConfig(mask_documents=True)}, off={"smear": SmearGateConfig()}),
    "depth-scaled norm": Part({"depth_scaled_norm": True}),
    "rotary on some channels": Part({"attention.rotary": RotaryConfig(dims=4)}),
    "rotary base": Part({"attention.rotary": RotaryConfig(base=50.0)}),
    "rotary, stretched": Part({"attention.rotary": STRETCHED}, off={"attention.rotary": RotaryConfig(dims=4)}),
    "rotary, stretched, all channels": Part({"attention.rotary": RotaryConfig(reference_length=16, length=40)}),
    "rotary, bf16 table": Part({"attention.rotary": RotaryConfig(table_dtype="bfloat16")}),
    "exclusive, all blocks": Part({"attention.exclusive": ExclusiveConfig()}),
    "exclusive, first block": Part({"attention.exclusive": ExclusiveConfig(blocks=(0,))}),
    "exclusive, last block": Part({"attention.exclusive": ExclusiveConfig(blocks=(1,))}),
    "output gate": Part({"attention.output_gate": OutputGateConfig()}, neutral=True),  # every gate starts at 1
    "output gate, one block": Part({"attention.output_gate": OutputGateConfig(channels=5, blocks=(1,))}, neutral=True),
    "value embedding": Part({"value_embedding": ValueEmbeddingConfig(blocks=(0, 1), dim=10)}),
    "value embedding, last block": Part({"value_embedding": ValueEmbeddingConfig(blocks=(1,), dim=10)}),
    "value residual": Part({"attention.value_residual": ValueResidualConfig()}),
    "value residual, block 1 first": Part(
        {"plan": straight_plan(1, 0), "attention.value_residual": ValueResidualConfig()}, off={"plan": straight_plan(1, 0)}
    ),
    "leaky relu squared": Part({"mlp": ReluSquaredConfig(width=2.0, slope=0.5)}),
    "relu squared, odd width": Part({"mlp": ReluSquaredConfig(width=3.55)}),
    "swiglu": Part({"mlp": SwigluConfig(width=2.0)}),
    "swiglu, odd width": Part({"mlp": SwigluConfig(width=1.7)}, off={"mlp": SwigluConfig(width=2.0)}),
    "u-net": Part({"plan": unet_plan(2)}),
    "u-net, two skips": Part({"plan": unet_plan(4)}, off={"plan": straight_plan(0, 1, 2, 3)}),
    "depth recurrence": Part({"plan": LOOPED}),
    "loop positions": Part({"loop_positions": LoopPositionsConfig(count=2), "plan": COUNTED}, off={"plan": UNCOUNTED}),
    "shared blocks": Part({"plan": unet_plan((0, 1, 0, 1))}, off={"plan": unet_plan(2)}),
    "lanes": Part({"lanes": ParallelLanesConfig(start=0)}),
    "lanes, last block": Part({"lanes": ParallelLanesConfig(start=1)}),
    "lanes, split again": Part({"plan": LOOPED, "lanes": ParallelLanesConfig(start=1)}, off={"plan": LOOPED}),  # block 0 merges them
    "lanes and skips": Part({"plan": unet_plan(4), "lanes": ParallelLanesConfig(start=1)}, off={"plan": unet_plan(4)}),
    "q gain": Part({"attention.q_gain_init": 4.0}),
    "one key/value head": Part({"attention.num_kv_heads": 1}),
    "as many key/value heads": Part({"attention.num_kv_heads": 4}),
    "untied head": Part({"head": HeadConfig(tied=False, softcap=20.0)}),
    "softcap": Part({"head": HeadConfig(softcap=7.0)}),
    "no softcap": Part({"head": HeadConfig(softcap=None)}),
    "learned caps": Part({"head": HeadConfig(softcap=LearnedCaps(init=20.0))}, neutral=True),  # they start at BASE's fixed cap
}

TOGETHER: Changes = {
    "loop_positions": LoopPositionsConfig(count=2),
    "plan": tuple(  # splits into lanes before block 2, merges them after it
        dataclasses.replace(step, position={1: 0, 3: 1}.get(i)) for i, step in enumerate(unet_plan((0, 1, 2, 1)))
    ),
    "trigram": dataclasses.replace(TRIGRAM, mask_documents=True),
    "bigram": dataclasses.replace(BIGRAM, mask_documents=True),
    "smear": SmearGateConfig(mask_documents=True),
    "depth_scaled_norm": True,
    "attention.rotary": STRETCHED,
    "attention.exclusive": ExclusiveConfig(blocks=(0, 2)),
    "attention.output_gate": OutputGateConfig(blocks=(1, 2)),
    "attention.value_residual": ValueResidualConfig(),
    "attention.q_gain_init": 2.0,
    "value_embedding": ValueEmbeddingConfig(blocks=(0, 2), dim=10),
    "mlp": ReluSquaredConfig(width=2.7, slope=0.5),
    "lanes": ParallelLanesConfig(start=2),
    "head": HeadConfig(softcap=LearnedCaps(init=20.0)),
}
OTHER_FORMS: Changes = TOGETHER | {
    "bigram": BIGRAM,
    "trigram": TRIGRAM,
    "smear": SmearGateConfig(),
    "attention.num_kv_heads": 4,
    "attention.rotary": RotaryConfig(dims=4, table_dtype="bfloat16"),
    "attention.exclusive": ExclusiveConfig(),
    "mlp": SwigluConfig(width=1.3),
    "head": HeadConfig(tied=False, softcap=20.0),
}


def configured(changes: Changes) -> ModelConfig:
    """``BASE`` with changes by dotted path."""
    config: Any = BASE
    for path, value in changes.items():
        if path.startswith("attention."):
            path, value = "attention", dataclasses.replace(config.attention, **{path.removeprefix("attention."): value})
        # One replace for all fields would be checked once, at the end; the table keeps to an order that is valid throughout.
        config = dataclasses.replace(config, **{path: value})
    return config


CONFIGS: dict[str, ModelConfig] = {
    "base": BASE,
    **{name: configured(part.on) for name, part in PARTS.items()},
    "all together": configured(TOGETHER),
    "all together, other forms": configured(OTHER_FORMS),
}


def noise(name: str, like: Tensor) -> Tensor:
    """The same normal numbers for the same name and shape, whatever else is in the model."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(like.shape, generator=generator)


@torch.no_grad()
def disturb(name: str, made: nn.Parameter) -> None:
    """Move a parameter to where every term of the formula matters: nothing stays at 0 or 1."""
    if role_of(made) is Role.GAIN:
        made.add_(0.3 * noise(name, made))
    elif role_of(made) in (Role.TABLE, Role.HEAD):
        made.copy_(2.0 * noise(name, made))
    else:
        made.copy_(noise(name, made) * made.size(1) ** -0.5)


def random_model(config: ModelConfig, *, leave: frozenset[str] = frozenset()) -> LanguageModel:
    """A model whose parameters depend only on their names, shapes and starts; those named in ``leave`` stay as they start."""
    torch.manual_seed(0)
    model = config.build()
    for name, made in model.named_parameters():
        if name not in leave:
            disturb(name, made)
    return model


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random ids with document starts among them: after the first position, and two in a row."""
    ids = torch.randint(2, VOCAB, shape, generator=torch.Generator().manual_seed(seed))
    ids[..., 4] = BOS_ID
    ids[..., 8:10] = BOS_ID
    return ids
