from __future__ import annotations

import dataclasses
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytefit.artifact.codecs import CODECS, smallest
from bytefit.artifact.container import _ENTRY, _HEAD, read_sections
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
    quant = QuantConfig(table=grid, attention=grid, mlp=grid, head=grid)
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


def _fix_checksums(data: bytearray) -> bytes:
    """Recompute the checksums of a mutated file, so that the damage reaches the layers behind them."""
    count = data[9]
    position = _HEAD.size + count * _ENTRY.size
    for i in range(count):
        offset = _HEAD.size + i * _ENTRY.size
        kind, codec, stored, raw, _ = _ENTRY.unpack_from(data, offset)
        _ENTRY.pack_into(data, offset, kind, codec, stored, raw, zlib.crc32(bytes(data[position : position + stored])))
        position += stored
    table_end = _HEAD.size + count * _ENTRY.size
    data[-4:] = struct.pack("<I", zlib.crc32(bytes(data[:table_end])))
    return bytes(data)


@pytest.mark.parametrize("fix_checksums", [False, True], ids=["damaged", "hostile"])
def test_mutated_artifacts_give_clean_errors_only(tiny, dataset, fix_checksums) -> None:
    """2,400 mutated files in all: each loads or raises UserError; nothing else escapes."""
    original = packed(tiny, dataset, budget_bytes=12_000).data
    generator = random.Random(7)
    refused = 0
    for _ in range(1200):
        data = bytearray(original)
        kind = generator.choice(["flip", "flip", "cut", "insert", "swap", "zero", "header"])
        if kind == "flip":
            for _ in range(generator.choice([1, 1, 3, 20])):
                data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        elif kind == "cut":
            del data[generator.randrange(len(data)) :]
        elif kind == "insert":
            at = generator.randrange(len(data))
            data[at:at] = generator.randbytes(generator.choice([1, 4, 100]))
        elif kind == "swap":
            a, b = sorted(generator.sample(range(len(data)), 2))
            data[a], data[b] = data[b], data[a]
        elif kind == "zero":
            at = generator.randrange(len(data))
            data[at : at + 16] = bytes(len(data[at : at + 16]))
        else:
            data[generator.randrange(min(len(data), 140))] = generator.randrange(256)
        if fix_checksums and len(data) > 200 and kind in ("flip", "swap", "zero"):
            try:
                data = bytearray(_fix_checksums(data))
            except (struct.error, IndexError):
                continue
        try:
            parse_artifact(bytes(data))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 300


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
