"""The container: a magic number, a table of sections, their payloads. ``docs/format.md`` describes it byte by byte.

Every section names its part, the codec of its payload, its sizes before and after, and a checksum, so that damage is found
before anything is interpreted, and every byte of the file belongs to exactly one part of the size report.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from bytefit.artifact.codecs import CODEC_BY_NUMBER, Codec
from bytefit.errors import UserError

MAGIC = b"bytefit\n"
VERSION = 2
_HEAD = struct.Struct("<8sBB")  # magic, version, number of sections
_ENTRY = struct.Struct("<BBIII")  # kind, codec, stored bytes, raw bytes, CRC-32 of the stored bytes

# The parts of an artifact. Codes stand in one section a role, so that the size report can name them.
KINDS = {
    "config": 1,
    "tokenizer": 2,
    "gains": 3,
    "scales": 4,
    "table": 5,
    "attention": 6,
    "mlp": 7,
    "head": 8,
    "projection": 9,
    "attention_out": 10,
    "exponents": 11,
    "low_rank": 12,
}
_KIND_NAMES = {number: name for name, number in KINDS.items()}


@dataclass(frozen=True)
class Section:
    """One part, compressed."""

    kind: str
    codec: Codec
    payload: bytes
    raw_size: int

    def expand(self, limit: int) -> bytes:
        """The section's content. Raises UserError where it is damaged or would be longer than ``limit``."""
        if self.raw_size > limit:
            raise UserError(f"its {self.kind} section claims {self.raw_size:,} bytes; at most {limit:,} fit its model")
        try:
            return self.codec.decompress(self.payload, self.raw_size)
        except (ValueError, MemoryError) as error:
            raise UserError(f"its {self.kind} section does not decompress ({error})") from None


def write_container(sections: list[Section]) -> bytes:
    head = _HEAD.pack(MAGIC, VERSION, len(sections))
    table = b"".join(_ENTRY.pack(KINDS[s.kind], s.codec.number, len(s.payload), s.raw_size, zlib.crc32(s.payload)) for s in sections)
    body = head + table + b"".join(s.payload for s in sections)
    return body + struct.pack("<I", zlib.crc32(head + table))


def bytes_by_part(sections: list[Section]) -> dict[str, int]:
    """Bytes of each part; they sum to the file's size."""
    sizes = {"header": _HEAD.size + _ENTRY.size * len(sections) + 4}
    for section in sections:
        sizes[section.kind] = sizes.get(section.kind, 0) + len(section.payload)
    return sizes


def read_sections(data: bytes) -> list[Section]:
    """The sections as they stand in the file, checksums verified, nothing expanded. Raises UserError."""
    if not data.startswith(MAGIC):
        raise UserError("it does not start like a bytefit artifact (wrong magic number)")
    if len(data) < _HEAD.size:
        raise UserError("it is cut short (no header)")
    _, version, count = _HEAD.unpack_from(data)
    if version != VERSION:
        raise UserError(f"its format version is {version}; this program reads version {VERSION}; use a matching bytefit")
    payload_start = _HEAD.size + count * _ENTRY.size
    if len(data) < payload_start + 4:
        raise UserError("it is cut short (no section table)")
    if zlib.crc32(data[:payload_start]) != struct.unpack("<I", data[-4:])[0]:
        raise UserError("its header is damaged or the file is cut short (checksum mismatch)")
    sections: list[Section] = []
    position = payload_start
    for i in range(count):
        kind, codec, stored, raw_size, checksum = _ENTRY.unpack_from(data, _HEAD.size + i * _ENTRY.size)
        if kind not in _KIND_NAMES or codec not in CODEC_BY_NUMBER:
            raise UserError(f"section {i} has the unknown kind {kind} or codec {codec}")
        payload = data[position : position + stored]
        position += stored
        if len(payload) != stored or zlib.crc32(payload) != checksum:
            raise UserError(f"its {_KIND_NAMES[kind]} section is damaged (checksum mismatch)")
        sections.append(Section(_KIND_NAMES[kind], CODEC_BY_NUMBER[codec], payload, raw_size))
    if position + 4 != len(data):
        raise UserError(f"it holds {len(data)} bytes, its sections end at {position + 4}")
    if len({section.kind for section in sections}) != len(sections):
        raise UserError("a section stands in it twice")
    return sections
