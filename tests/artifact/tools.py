"""Grids, codecs and small models that artifacts are made of in tests."""

from __future__ import annotations

import dataclasses

import torch

from bytefit.artifact.pack import pack
from bytefit.quant.calibrate import collect
from bytefit.quant.clip import Percentile, Searched, Sigmas
from bytefit.quant.gptq import Gptq
from bytefit.quant.grid import EqualDamageGrid, RowGrid, StepGrid, integer_grid
from bytefit.quant.low_rank import LowRankConfig
from bytefit.quant.prune import PruneConfig
from bytefit.quant.quantise import BlockRule, MatrixQuant, QuantConfig
from bytefit.recipes import find_recipe

COARSE = MatrixQuant(grid=StepGrid(fineness=4.0))
CODEC_NAMES = ["context", "zlib", "zstd", "lzma", "brotli"]
GRIDS = [
    integer_grid(2),
    integer_grid(6),
    integer_grid(8),
    integer_grid(10),
    RowGrid(lowest=-32, highest=31, clip=Percentile(share=0.99), scale_dtype="float32"),
    RowGrid(lowest=-16, highest=15, clip=Searched()),
    RowGrid(lowest=None, highest=None, levels=31, clip=Sigmas(k=12.0)),
    StepGrid(fineness=6.0),
    StepGrid(fineness=400.0),
    EqualDamageGrid(trellis=0, row_factors=False),
    EqualDamageGrid(trellis=4),
    EqualDamageGrid(trellis=8, step=0.001),
    EqualDamageGrid(trellis=8, rescale="rows and columns"),
    EqualDamageGrid(trellis=0, rescale="none"),
]


def one_rule(quant: MatrixQuant) -> QuantConfig:
    return QuantConfig(table=quant, attention=quant, mlp=quant, projection=quant, head=quant)


EVERYTHING = QuantConfig(
    table=MatrixQuant(grid=integer_grid(8)),
    attention=MatrixQuant(grid=EqualDamageGrid(trellis=8)),
    attention_out=MatrixQuant(grid=integer_grid(2), rounding=Gptq()),
    mlp=MatrixQuant(grid=StepGrid(fineness=5.0), rounding=Gptq(order="ascending", downdate=False)),
    projection=MatrixQuant(grid=RowGrid(lowest=None, highest=None, levels=31, clip=Sigmas(k=12.0))),
    head=MatrixQuant(grid=EqualDamageGrid(trellis=0)),
    block_rules=(BlockRule(role="mlp", blocks=(1,), quant=MatrixQuant(grid=EqualDamageGrid(trellis=4, rescale="rows and columns"))),),
    gain_step=0.02,
    prune=PruneConfig(share=0.05, min_size=200),
    low_rank=LowRankConfig(rank=3, matrices=4),
)


def spread_out(recipe, dataset):
    """An untrained model with spread-out weights: weights, infos, recipe, and what its matrices see."""
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=dataset.tokenizer.vocab_size))
    torch.manual_seed(0)
    model = recipe.model.build()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    text = torch.from_numpy(dataset.train.read(0, 4 * 64).reshape(4, 64))
    statistics = collect(model, [text], gradients=True)
    infos = list(model.parameter_infos())
    return {info.name: info.parameter.detach() for info in infos}, infos, recipe, statistics


def rich_model(dataset):
    """Side tables, a value embedding, an untied head."""
    recipe = find_recipe("pr693", "tiny")
    head = dataclasses.replace(recipe.model.head, tied=False)
    bigram = dataclasses.replace(recipe.model.bigram, buckets=40)
    return spread_out(dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, head=head, bigram=bigram)), dataset)


def packed(model, dataset, **changes):
    weights, infos, recipe, statistics = model
    config = dataclasses.replace(recipe.pack, **changes)
    return pack(weights, infos, recipe.model, dataset.tokenizer, config, statistics=statistics, notes={"recipe": "test"})
