"""General-purpose codecs behind one shape, with decoders that stop at a promised size.

A hostile file can ask a decompressor for gigabytes; every decoder here gives up as soon as the output is not exactly
``size`` bytes.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import brotli
import zstandard


@dataclass(frozen=True)
class Codec:
    """A named pair of functions.

    Attributes:
        number: how the container names it.
        compress: bytes to fewer bytes, at the strongest setting.
        decompress: (data, size) to exactly ``size`` bytes; raises ValueError otherwise.
    """

    name: str
    number: int
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes, int], bytes]


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"decompressed to {len(data)} bytes, {size} were promised")
    return data


def _zlib_decompress(data: bytes, size: int) -> bytes:
    try:
        return _exactly(zlib.decompressobj().decompress(data, size + 1), size)
    except zlib.error as error:
        raise ValueError(str(error)) from None


def _lzma_decompress(data: bytes, size: int) -> bytes:
    try:
        decoder = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=1 << 28)
        return _exactly(decoder.decompress(data, size + 1), size)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(str(error)) from None


def _zstd_decompress(data: bytes, size: int) -> bytes:
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data) as reader:
            return _exactly(reader.read(size + 1), size)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _brotli_decompress(data: bytes, size: int) -> bytes:
    decoder, out = brotli.Decompressor(), b""
    try:
        out = decoder.process(data, output_buffer_limit=size + 1)
        while len(out) <= size and not decoder.is_finished() and not decoder.can_accept_more_data():
            out += decoder.process(b"", output_buffer_limit=size + 1 - len(out))
    except brotli.error as error:
        raise ValueError(str(error)) from None
    return _exactly(out, size)


def _lzma_filter(size: int) -> dict[str, int]:
    """The strongest preset with no more dictionary than the data needs: 64 MiB of it for a few bytes take all the time."""
    return {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": min(max(4096, size), 1 << 26)}


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("stored", 0, lambda data: data, _exactly),
        Codec("zlib", 1, lambda data: zlib.compress(data, 9), _zlib_decompress),
        Codec(
            "zstd",
            2,
            lambda data: zstandard.ZstdCompressor(level=22, write_content_size=False, write_checksum=False).compress(data),
            _zstd_decompress,
        ),
        Codec(
            "lzma",
            3,
            lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE, filters=[_lzma_filter(len(data))]),
            _lzma_decompress,
        ),
        Codec("brotli", 4, lambda data: brotli.compress(data, quality=11, lgwin=24), _brotli_decompress),
    )
}
CODEC_BY_NUMBER = {codec.number: codec for codec in CODECS.values()}


def smallest(data: bytes) -> tuple[Codec, bytes]:
    """The codec that makes ``data`` smallest, and its output (``stored`` where none helps)."""
    tried = [(codec, codec.compress(data)) for codec in CODECS.values()]
    return min(tried, key=lambda pair: (len(pair[1]), pair[0].number))
