from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bytefit.artifact.codecs import CODECS, smallest
from bytefit.artifact.container import Section, read_sections, write_container
from bytefit.artifact.load import parse_artifact
from bytefit.artifact.pack import Packer, pack
from bytefit.artifact.tokenizer_part import pack_tokenizer, unpack_tokenizer
from bytefit.data.tokenizer import ByteTokenizer
from bytefit.errors import UserError
from bytefit.model.roles import Role
from bytefit.quant.calibrate import collect
from bytefit.quant.clip import Percentile, Searched, Sigmas
from bytefit.quant.codes import LogSteps, RowSteps
from bytefit.quant.gptq import Gptq, Nearest
from bytefit.quant.grid import EqualDamageGrid, RowGrid, StepGrid, integer_grid
from bytefit.quant.low_rank import LowRankConfig
from bytefit.quant.prune import PruneConfig
from bytefit.quant.quantise import BlockRule, MatrixQuant, QuantConfig, quantise_model
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


@pytest.fixture(scope="module")
def tiny(dataset):
    return spread_out(find_recipe("pocket", "tiny"), dataset)


@pytest.fixture(scope="module")
def rich(dataset):
    """Side tables, a value embedding, an untied head."""
    recipe = find_recipe("pr693", "tiny")
    head = dataclasses.replace(recipe.model.head, tied=False)
    bigram = dataclasses.replace(recipe.model.bigram, buckets=40)
    return spread_out(dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, head=head, bigram=bigram)), dataset)


def packed(model, dataset, **changes):
    weights, infos, recipe, statistics = model
    config = dataclasses.replace(recipe.pack, **changes)
    return pack(weights, infos, recipe.model, dataset.tokenizer, config, statistics=statistics, notes={"recipe": "test"})


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
    with pytest.raises(UserError, match="over the budget"):
        packed(tiny, dataset, budget_bytes=3_000, fit=False)


def test_packing_is_deterministic(tiny, dataset) -> None:
    assert packed(tiny, dataset).data == packed(tiny, dataset).data


def test_tokenizers_survive_packing(dataset, documents) -> None:
    for tokenizer in (dataset.tokenizer, ByteTokenizer()):
        again = unpack_tokenizer(pack_tokenizer(tokenizer))
        assert again.token_bytes == tokenizer.token_bytes
        assert again.encode(documents[:5]) == tokenizer.encode(documents[:5])
    assert len(smallest(pack_tokenizer(dataset.tokenizer))[1]) < len(smallest(dataset.tokenizer.to_bytes())[1])


@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.name)
def test_codecs_restore_and_refuse_bombs(codec) -> None:
    for data in (b"", b"x", random.Random(0).randbytes(5000), bytes(1_000_000)):
        assert codec.decompress(codec.compress(data), len(data)) == data
    with pytest.raises(ValueError, match="promised"):
        codec.decompress(codec.compress(bytes(1_000_000)), 1000)


def _mutated(data: bytes, generator: random.Random) -> bytes:
    """A copy with flipped bits, a cut, an insertion, a swap, a hole, or a changed number."""
    changed = bytearray(data)
    kind = generator.choice(["flip", "flip", "cut", "insert", "swap", "zero", "digit"])
    at = generator.randrange(len(data))
    if kind == "flip":
        for _ in range(generator.choice([1, 1, 3, 20])):
            changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind == "insert":
        changed[at:at] = generator.choice([generator.randbytes(4), generator.randbytes(100), b"[" * 30000, b'"', b"9" * 5000, b"-1"])
    elif kind == "swap":
        other = generator.randrange(len(data))
        changed[at], changed[other] = changed[other], changed[at]
    elif kind == "zero":
        changed[at : at + 16] = bytes(len(changed[at : at + 16]))
    else:
        digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
        if digits:
            changed[generator.choice(digits)] = ord(generator.choice("0123456789-.e"))
    return bytes(changed)


def _with_mutated_section(original: bytes, generator: random.Random) -> bytes:
    """One section's *content* mutated and packed again with fitting sizes and checksums: what an attacker would send."""
    sections = read_sections(original)
    i = generator.choice([0, 0, 0, 1, 1, *range(len(sections))])  # mostly the config and the tokenizer
    content = _mutated(sections[i].expand(1 << 30), generator)
    codec = sections[i].codec if sections[i].codec.name == "stored" else CODECS["zlib"]
    sections[i] = Section(sections[i].kind, codec, codec.compress(content), len(content))
    return write_container(sections)


@pytest.fixture(scope="module")
def with_everything(rich, dataset) -> bytes:
    """An artifact with every kind of section and of steps."""
    result = packed(rich, dataset, budget_bytes=1_000_000, quant=EVERYTHING, codec="context", fit=False)
    assert {"exponents", "low_rank", "head", "projection", "attention_out"} <= set(result.parts)
    return result.data


@pytest.mark.parametrize(("rich_one", "count"), [(False, 800), (True, 250)], ids=["simple", "everything"])
@pytest.mark.parametrize("mutate", [_mutated, _with_mutated_section], ids=["damaged", "hostile"])
def test_mutated_artifacts_give_clean_errors_only(tiny, dataset, with_everything, mutate, rich_one, count) -> None:
    """2,100 mutated files in all: each loads or raises UserError with one line; nothing else escapes."""
    original = with_everything if rich_one else packed(tiny, dataset, budget_bytes=12_000).data
    generator = random.Random(7)
    refused = 0
    for _ in range(count):
        try:
            parse_artifact(mutate(original, generator))
        except UserError as error:
            refused += 1
            assert len(str(error)) < 2000
    assert refused > count // 2


@pytest.mark.parametrize("rich_one", [False, True], ids=["simple", "everything"])
def test_a_bomb_is_refused_before_it_is_expanded(tiny, dataset, with_everything, rich_one) -> None:
    sections = read_sections(with_everything if rich_one else packed(tiny, dataset).data)
    payload = CODECS["zstd"].compress(bytes(1 << 25))
    for i, section in enumerate(sections):
        bomb = Section(section.kind, CODECS["zstd"], payload, 1 << 25)
        with pytest.raises(UserError, match="section claims 33,554,432 bytes"):
            parse_artifact(write_container([*sections[:i], bomb, *sections[i + 1 :]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"PK\x03\x04" + d[4:], "magic"),
        (lambda d: d[:5], "magic"),
        (lambda d: d[:8] + b"\x63" + d[9:], "version is 99"),
        (lambda d: d[:-100], "damaged|cut short"),
        (lambda d: d[:50] + bytes([d[50] ^ 1]) + d[51:], "checksum"),
        (lambda d: d[:-50] + bytes([d[-50] ^ 1]) + d[-49:], "mlp section is damaged"),
    ],
)
def test_each_damage_is_named(tiny, dataset, change, message) -> None:
    with pytest.raises(UserError, match=message):
        read_sections(change(packed(tiny, dataset).data))


def _with(sections: list[Section], kind: str, content: bytes | None) -> bytes:
    """The file with one section's content replaced, or without it."""
    kept = [section for section in sections if section.kind != kind]
    if content is not None:
        kept.append(Section(kind, CODECS["stored"], content, len(content)))
    return write_container(kept)


@pytest.mark.parametrize(
    "kind",
    ["config", "tokenizer", "gains", "scales", "exponents", "low_rank", "table", "attention", "attention_out", "mlp", "projection", "head"],
)
def test_no_section_can_be_missing(with_everything, kind) -> None:
    data = _with(read_sections(with_everything), kind, None)
    if kind == "low_rank":  # corrections are optional, so nothing tells that they were there
        parse_artifact(data)
        return
    with pytest.raises(UserError, match=kind):
        parse_artifact(data)


@pytest.mark.parametrize("kind", ["exponents", "low_rank", "head"])
def test_no_section_can_be_left_over(tiny, dataset, with_everything, kind) -> None:
    """A section of another model in a file that has no use for it."""
    foreign = next(section for section in read_sections(with_everything) if section.kind == kind)
    sections = read_sections(packed(tiny, dataset, quant=one_rule(COARSE)).data)
    with pytest.raises(UserError, match=rf"{kind}|do not decode"):
        parse_artifact(write_container([*sections, foreign]))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("scales", lambda raw: raw[:-1], "scales section"),
        ("scales", lambda raw: raw + b"\0", "scales section is longer|scales section claims"),
        ("scales", lambda raw: b"\x07" + raw[1:], "unknown kind"),
        ("scales", lambda raw: bytes([raw[0] | 0x20]) + raw[1:], "unknown kind"),
        ("low_rank", lambda raw: raw[:5], "low_rank section is cut short"),
        ("low_rank", lambda raw: b"", "low_rank section is cut short"),
        ("low_rank", lambda raw: raw[:1] + b"\xff\xff" + raw[3:], "low_rank section is cut short"),
        ("low_rank", lambda raw: raw[:3] + b"\0" + raw[4:], "rank 0"),
        ("low_rank", lambda raw: raw[:3] + b"\xff" + raw[4:], "rank 255"),
        ("gains", lambda raw: b"\2" + raw[1:], "gains section"),
        ("gains", lambda raw: raw[:4], "gains section"),
        ("gains", lambda raw: raw[:1] + b"\0\0\xc0\x7f" + raw[5:], "not finite"),
        ("exponents", lambda raw: raw[:3], "do not decode"),
    ],
)
def test_what_does_not_fit_is_named(with_everything, kind, change, message) -> None:
    sections = read_sections(with_everything)
    raw = next(section.expand(1 << 30) for section in sections if section.kind == kind)
    with pytest.raises(UserError, match=message):
        parse_artifact(_with(sections, kind, change(raw)))
