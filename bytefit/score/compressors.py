"""General-purpose compressors on the same text, for comparison."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable

import brotli
import zstandard

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "zlib-9": lambda data: zlib.compress(data, 9),
    "bz2-9": lambda data: bz2.compress(data, 9),
    "xz-9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    "zstd-22": lambda data: zstandard.ZstdCompressor(level=22).compress(data),
    "brotli-11": lambda data: brotli.compress(data, quality=11, lgwin=24),
}


def compressors_bits_per_byte(documents: list[bytes]) -> dict[str, float]:
    """Bits per byte of text by compressor; documents are joined with a line feed, which is not counted as text."""
    joined = b"\n".join(documents)
    size = sum(map(len, documents))
    return {name: 8 * len(run(joined)) / size for name, run in COMPRESSORS.items()}
