"""Damaged and hostile files give clear errors, and nothing is expanded before it is known to be bounded."""

from __future__ import annotations

import random

import pytest

from bytefit.artifact.codecs import CODECS
from bytefit.artifact.container import Section, read_sections, write_container
from bytefit.artifact.load import parse_artifact
from bytefit.errors import UserError
from tests.artifact.tools import COARSE, EVERYTHING, one_rule, packed


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
