"""What is packed comes back as it was quantised, whatever the grid, the codec and the options, and fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bytefit.artifact.codecs import smallest
from bytefit.artifact.load import parse_artifact
from bytefit.artifact.pack import Packer
from bytefit.artifact.tokenizer_part import pack_tokenizer, unpack_tokenizer
from bytefit.data.tokenizer import ByteTokenizer
from bytefit.errors import UserError
from bytefit.model.roles import Role
from bytefit.quant.clip import Sigmas
from bytefit.quant.codes import LogSteps, RowSteps
from bytefit.quant.gptq import Gptq, Nearest
from bytefit.quant.grid import EqualDamageGrid, RowGrid, integer_grid
from bytefit.quant.low_rank import LowRankConfig
from bytefit.quant.quantise import BlockRule, MatrixQuant
from tests.artifact.tools import COARSE, CODEC_NAMES, EVERYTHING, GRIDS, one_rule, packed
from tests.quant.tools import quantise_model


def assert_loads_as_quantised(result, dataset) -> None:
    """What a decoder reads is, bit for bit, what the quantiser says it will read."""
    artifact = parse_artifact(result.data)
    for name, p in artifact.model.named_parameters():
        want = result.quantised.weights(name)
        assert want.dtype == np.float32
        assert np.array_equal(p.detach().numpy().ravel(), want.ravel()), name
    assert artifact.tokenizer.token_bytes == dataset.tokenizer.token_bytes
    assert artifact.notes == {"recipe": "test"}


def pairs_of(values: list, everywhere: Callable[[Any], bool]) -> list[tuple[Any, str]]:
    """With ``context`` and one of the others in turn; some with all of them."""
    others = CODEC_NAMES[1:]
    return [(v, codec) for i, v in enumerate(values) for codec in (CODEC_NAMES if everywhere(v) else ["context", others[i % 4]])]


@pytest.mark.parametrize(("grid", "codec"), pairs_of(GRIDS, lambda grid: grid in (GRIDS[1], GRIDS[3], GRIDS[11])), ids=str)
def test_what_is_loaded_is_what_was_quantised(tiny, dataset, codec, grid) -> None:
    weights, infos, _, statistics = tiny
    rounding = Gptq() if codec in ("context", "zlib") else Nearest()
    quant = one_rule(MatrixQuant(grid=grid, rounding=rounding))
    result = packed(tiny, dataset, budget_bytes=100_000, codec=codec, quant=quant, fit=False)
    assert_loads_as_quantised(result, dataset)
    alone = quantise_model(weights, infos, quant, statistics)
    assert all(np.array_equal(alone.weights(name), result.quantised.weights(name)) for name in weights)


OPTIONS: list[dict[str, Any]] = [
    {"low_rank": LowRankConfig(rank=2, matrices=4)},
    {"gain_step": 0.01},
    {"attention_out": MatrixQuant(grid=integer_grid(8))},
    {"block_rules": (BlockRule(role="mlp", blocks=(1,), quant=MatrixQuant(grid=EqualDamageGrid(trellis=4))),)},
    {"head": MatrixQuant(grid=RowGrid(lowest=None, highest=None, levels=31, clip=Sigmas(k=12.0)))},
    {},  # all of them at once
]


@pytest.mark.parametrize(
    ("changes", "codec"),
    pairs_of(OPTIONS, lambda changes: not changes),
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "all",
)
def test_every_option_survives_the_file(rich, dataset, codec, changes) -> None:
    """On a model with side tables and an untied head; last all of them at once, each role with a grid of its own."""
    quant = dataclasses.replace(one_rule(MatrixQuant(grid=integer_grid(6))), **changes) if changes else EVERYTHING
    result = packed(rich, dataset, budget_bytes=1_000_000, codec=codec, quant=quant, fit=False)
    assert_loads_as_quantised(result, dataset)
    assert ("low_rank" in result.parts) == (quant.low_rank is not None)
    assert ("exponents" in result.parts) == any(
        codes.trellis or isinstance(codes.steps, LogSteps) for codes in result.quantised.codes.values()
    )
    assert {"head", "projection", "table"} <= set(result.parts)


@pytest.mark.parametrize("dial_log", [-14.0, -6.0, 5.0, 14.0])
def test_the_dials_ends_survive_the_file(rich, dataset, dial_log) -> None:
    weights, infos, recipe, statistics = rich
    for quant in (EVERYTHING, one_rule(MatrixQuant(grid=integer_grid(2), rounding=Gptq()))):
        config = dataclasses.replace(recipe.pack, quant=quant)
        packer = Packer(weights, infos, recipe.model, dataset.tokenizer, config, statistics=statistics, notes={"recipe": "test"})
        assert_loads_as_quantised(packer.at(2.0**dial_log), dataset)


def test_rules_reach_their_roles_and_blocks(rich) -> None:
    weights, infos, _, statistics = rich
    codes = quantise_model(weights, infos, EVERYTHING, statistics).codes
    for info in infos:
        if info.name in codes:
            held = codes[info.name]
            kind = (type(held.steps).__name__, held.trellis, len(held.steps.values) if isinstance(held.steps, RowSteps) else 0)
            rows = info.parameter.shape[0]
            if info.role is Role.MLP and info.block == 1:
                want = ("LogSteps", 4, 0)
            else:
                want = {
                    Role.TABLE: ("RowSteps", 0, rows),
                    Role.ATTENTION: ("LogSteps", 8, 0),
                    Role.ATTENTION_OUT: ("RowSteps", 0, rows),
                    Role.MLP: ("RowSteps", 0, 1),
                    Role.PROJECTION: ("RowSteps", 0, rows),
                    Role.HEAD: ("LogSteps", 0, 0),
                }[info.role]
            assert kind == want, info.name
            if info.role is Role.ATTENTION_OUT:
                assert np.abs(held.codes).max() == 1
            if info.role is Role.TABLE:
                assert np.abs(held.codes).max() == 127


def test_attention_out_follows_attention_where_nothing_else_is_said() -> None:
    quant = one_rule(COARSE)
    other = dataclasses.replace(quant, attention=MatrixQuant(grid=integer_grid(3)))
    assert other.rule_for(Role.ATTENTION_OUT) == other.attention
    assert dataclasses.replace(other, attention_out=COARSE).rule_for(Role.ATTENTION_OUT) == COARSE
    assert quant.rule_for(Role.GAIN) is None


def test_coded_gains_are_rounded_to_their_step(rich, dataset) -> None:
    weights, infos, _, _ = rich
    plain = packed(rich, dataset, budget_bytes=1_000_000, quant=one_rule(COARSE), fit=False)
    coded = packed(rich, dataset, budget_bytes=1_000_000, quant=dataclasses.replace(one_rule(COARSE), gain_step=0.05), fit=False)
    assert coded.parts["gains"] < plain.parts["gains"] / 2
    kept, rounded = (dict(parse_artifact(result.data).model.named_parameters()) for result in (plain, coded))
    for info in infos:
        if info.role is Role.GAIN:
            assert torch.equal(kept[info.name].detach(), weights[info.name])
            left = (rounded[info.name].detach() - weights[info.name]).abs()
            assert float(left.max()) <= 0.0250001 if left.numel() else True
            codes = rounded[info.name].detach().double() / 0.05
            assert torch.allclose(codes, codes.round(), atol=1e-4)


def test_bytes_of_corrections_are_counted(rich, dataset) -> None:
    base = packed(rich, dataset, budget_bytes=1_000_000, quant=one_rule(COARSE), fit=False)
    sizes = []
    for rank in (1, 4):
        quant = dataclasses.replace(one_rule(COARSE), low_rank=LowRankConfig(rank=rank, matrices=2))
        result = packed(rich, dataset, budget_bytes=1_000_000, quant=quant, fit=False)
        assert {part: size for part, size in result.parts.items() if part not in ("low_rank", "header")} == {
            part: size for part, size in base.parts.items() if part != "header"
        }
        assert len(result.data) == len(base.data) + result.parts["low_rank"] + result.parts["header"] - base.parts["header"]
        codes = sum(part.codes.size for pair in result.quantised.corrections.values() for part in pair)
        assert codes / 4 < result.parts["low_rank"] < codes
        sizes.append(result.parts["low_rank"])
    assert sizes[1] > 2.5 * sizes[0]


def test_as_many_corrections_as_can_be_asked_for_can_be_written(rich, dataset) -> None:
    quant = dataclasses.replace(one_rule(COARSE), low_rank=LowRankConfig(rank=255, matrices=255))
    assert_loads_as_quantised(packed(rich, dataset, budget_bytes=10_000_000, quant=quant, fit=False), dataset)


@pytest.mark.parametrize("wrong", [{"rank": 300}, {"matrices": 1000}, {"rank": 0}])
def test_more_corrections_than_the_format_holds_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"must lie in 1\.\.255"):
        LowRankConfig(**wrong)


def test_every_byte_belongs_to_one_part(tiny, dataset) -> None:
    result = packed(tiny, dataset)
    assert sum(result.parts.values()) == len(result.data)
    assert parse_artifact(result.data).parts == result.parts
    assert set(result.parts) - {"exponents"} == {
        "header",
        "config",
        "tokenizer",
        "gains",
        "scales",
        "table",
        "attention",
        "attention_out",
        "mlp",
    }


@pytest.mark.parametrize("budget", [9_000, 12_345, 16_000, 24_000])
def test_fit_lands_just_under_the_budget(tiny, dataset, budget) -> None:
    size = len(packed(tiny, dataset, budget_bytes=budget).data)
    assert 0.999 * budget < size <= budget


def test_impossible_budget_names_the_least(tiny, dataset) -> None:
    with pytest.raises(UserError, match=r"a budget of 1,000 bytes is impossible .* the least it packs into is") as caught:
        packed(tiny, dataset, budget_bytes=1_000)
    least = int(str(caught.value).split("packs into is ")[1].split(" bytes")[0].replace(",", ""))
    assert len(packed(tiny, dataset, budget_bytes=least).data) <= least


def test_packing_is_deterministic(tiny, dataset) -> None:
    assert packed(tiny, dataset).data == packed(tiny, dataset).data


def test_tokenizers_survive_packing(dataset, documents) -> None:
    for tokenizer in (dataset.tokenizer, ByteTokenizer()):
        again = unpack_tokenizer(pack_tokenizer(tokenizer))
        assert again.token_bytes == tokenizer.token_bytes
        assert again.encode(documents[:5]) == tokenizer.encode(documents[:5])
    assert len(smallest(pack_tokenizer(dataset.tokenizer))[1]) < len(smallest(dataset.tokenizer.to_bytes())[1])
