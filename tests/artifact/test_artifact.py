from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytefit.artifact.codecs import CODECS, smallest
from bytefit.artifact.container import Section, read_sections, write_container
from bytefit.artifact.entropy import decode_codes, encode_codes
from bytefit.artifact.load import parse_artifact
from bytefit.artifact.pack import pack
from bytefit.artifact.tokenizer_part import pack_tokenizer, unpack_tokenizer
from bytefit.data.tokenizer import ByteTokenizer
from bytefit.errors import UserError
from bytefit.quant.grid import RowGrid
from bytefit.quant.quantise import QuantConfig, quantise_model
from bytefit.recipes import find_recipe


@pytest.fixture(scope="module")
def tiny(dataset):
    """An untrained tiny model with spread-out weights: weights, infos, recipe."""
    recipe = find_recipe("pocket", "tiny")
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=dataset.tokenizer.vocab_size))
    torch.manual_seed(0)
    model = recipe.model.build()
    weights = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    return weights, list(model.parameter_infos()), recipe


def packed(tiny, dataset, **changes):
    weights, infos, recipe = tiny
    config = dataclasses.replace(recipe.pack, **changes)
    return pack(weights, infos, recipe.model, dataset.tokenizer, config, notes={"recipe": "test"})


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4),
    spread=st.sampled_from([0.0, 0.3, 3.0, 300.0]),
    seed=st.integers(0, 1000),
)
def test_entropy_coder_restores_any_codes(shapes, spread, seed) -> None:
    rng = np.random.default_rng(seed)
    matrices = [np.round(rng.standard_t(2, size=shape) * spread).clip(-(2**20), 2**20).astype(np.int32) for shape in shapes]
    decoded = decode_codes(encode_codes(matrices), shapes)
    assert all((a == b).all() for a, b in zip(matrices, decoded, strict=True))


def test_entropy_coder_notices_a_stream_of_another_length() -> None:
    codes = np.round(np.random.default_rng(0).normal(size=(40, 30)) * 20).astype(np.int32)
    data = encode_codes([codes])
    for wrong in (data + bytes(range(1, 9)), data[:-8]):
        with pytest.raises(UserError, match="do not decode"):
            decode_codes(wrong, [codes.shape])


def test_entropy_coder_beats_one_table_where_rows_differ() -> None:
    rng = np.random.default_rng(0)
    codes = np.round(rng.normal(size=(256, 256)) * np.exp(rng.normal(size=(256, 1))) * 6).astype(np.int32)
    counts = np.unique(codes, return_counts=True)[1] / codes.size
    one_table = -(counts * np.log2(counts)).sum() * codes.size / 8
    assert len(encode_codes([codes])) < 0.95 * one_table


@pytest.mark.parametrize("codec", ["range", "zlib", "zstd", "lzma", "brotli"])
@pytest.mark.parametrize("levels", [31, 127, 400])
def test_what_is_loaded_is_what_was_quantised(tiny, dataset, codec, levels) -> None:
    weights, infos, _ = tiny
    grid = RowGrid(levels=levels)
    quant = QuantConfig(table=grid, attention=grid, mlp=grid, projection=grid, head=grid)
    result = packed(tiny, dataset, budget_bytes=100_000, codec=codec, quant=quant, fit=False)
    artifact = parse_artifact(result.data)
    expected = quantise_model(weights, infos, quant)
    for name, p in artifact.model.named_parameters():
        want = expected.gains[name] if name in expected.gains else expected.codes[name].weights()
        assert np.array_equal(p.detach().numpy(), want), name
    assert artifact.tokenizer.token_bytes == dataset.tokenizer.token_bytes
    assert artifact.notes == {"recipe": "test"}


def test_every_byte_belongs_to_one_part(tiny, dataset) -> None:
    result = packed(tiny, dataset)
    assert sum(result.parts.values()) == len(result.data)
    assert parse_artifact(result.data).parts == result.parts
    assert set(result.parts) == {"header", "config", "tokenizer", "gains", "scales", "table", "attention", "mlp"}


@pytest.mark.parametrize("budget", [9_000, 12_345, 16_000, 24_000])
def test_fit_lands_just_under_the_budget(tiny, dataset, budget) -> None:
    size = len(packed(tiny, dataset, budget_bytes=budget).data)
    assert 0.985 * budget < size <= budget


def test_impossible_budget_names_the_least(tiny, dataset) -> None:
    with pytest.raises(UserError, match=r"a budget of 3,000 bytes is impossible .* the least it packs into is") as caught:
        packed(tiny, dataset, budget_bytes=3_000)
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
    codec, payload = smallest(content)
    sections[i] = Section(sections[i].kind, codec, payload, len(content))
    return write_container(sections)


@pytest.mark.parametrize("mutate", [_mutated, _with_mutated_section], ids=["damaged", "hostile"])
def test_mutated_artifacts_give_clean_errors_only(tiny, dataset, mutate) -> None:
    """2,400 mutated files in all: each loads or raises UserError with one line; nothing else escapes."""
    original = packed(tiny, dataset, budget_bytes=12_000).data
    generator = random.Random(7)
    refused = 0
    for _ in range(1200):
        try:
            parse_artifact(mutate(original, generator))
        except UserError as error:
            refused += 1
            assert len(str(error)) < 2000
    assert refused > 600


def test_a_bomb_is_refused_before_it_is_expanded(tiny, dataset) -> None:
    sections = read_sections(packed(tiny, dataset).data)
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
