"""Token shards in the contest's format, and a memory-mapped stream over several of them.

A shard is 256 little-endian int32 (magic 20240520, version 1, token count, zeros) and then the tokens as little-endian
uint16; the file holds exactly ``1024 + 2 * count`` bytes. Documents are concatenated, each after a BOS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bytefit.errors import UserError
from bytefit.files import cannot_write

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
SHARD_TOKENS = 100_000_000


def write_shards(folder: Path, prefix: str, chunks: Iterable[np.ndarray], shard_tokens: int = SHARD_TOKENS) -> list[Path]:
    """Write uint16 token chunks as ``{prefix}_000000.bin``, ``{prefix}_000001.bin``, …; each but the last is full."""
    paths: list[Path] = []
    pending: list[np.ndarray] = []
    held = 0

    def flush(count: int) -> None:
        nonlocal pending, held
        tokens = np.concatenate(pending)
        path = folder / f"{prefix}_{len(paths):06d}.bin"
        header = np.zeros(HEADER_INTS, dtype="<i4")
        header[:3] = MAGIC, VERSION, count
        try:
            with open(path, "wb") as file:
                file.write(header.tobytes())
                file.write(tokens[:count].astype("<u2").tobytes())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise cannot_write(path, error) from error
        paths.append(path)
        pending, held = [tokens[count:]], len(tokens) - count

    for chunk in chunks:
        pending.append(chunk)
        held += len(chunk)
        while held >= shard_tokens:
            flush(shard_tokens)
    if held:
        flush(held)
    return paths


def map_shard(path: Path) -> np.ndarray:
    """The tokens of one shard, memory-mapped, uint16 of shape (count,).

    Raises:
        UserError: wrong magic, version or size; names the file.
    """
    try:
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=HEADER_INTS)
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {error.strerror}") from None
    if len(header) < HEADER_INTS:
        raise UserError(f"{path} is too short to be a shard ({size} bytes; the header alone is {HEADER_BYTES})")
    if header[0] != MAGIC:
        raise UserError(f"{path} is not a token shard: its magic number is {header[0]}, expected {MAGIC}")
    if header[1] != VERSION:
        raise UserError(f"{path} is a shard of version {header[1]}; this program reads version {VERSION}")
    expected = HEADER_BYTES + 2 * int(header[2])
    if size != expected:
        raise UserError(f"{path} holds {size} bytes, but its header promises {expected}; it is cut short or damaged")
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(int(header[2]),)) if header[2] else np.zeros(0, "<u2")


class TokenStream:
    """Several shards read as one sequence of tokens."""

    def __init__(self, shards: list[np.ndarray]):
        self._shards = [shard for shard in shards if len(shard)]
        self._starts = np.cumsum([0] + [len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """``count`` tokens (int64) from position ``start``, going on at the beginning after the last one."""
        out = np.empty(count, dtype=np.int64)
        filled = 0
        while filled < count:
            position = (start + filled) % len(self)
            index = int(np.searchsorted(self._starts, position, side="right")) - 1
            offset = position - int(self._starts[index])
            part = self._shards[index][offset : offset + count - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
        return out

    def shard_sizes(self) -> np.ndarray:
        """Tokens of each shard that is not empty, int64 of shape (shards,)."""
        return np.diff(self._starts)

    def fingerprint(self) -> int:
        """256 bits of what the shards hold, wherever they lie: sizes, the first 1024 tokens of each and 64 spread over it.

        A sample, because reading 16 GB would take minutes: it tells datasets apart, it does not prove them equal.
        """
        digest = hashlib.sha256()
        for shard in self._shards:
            digest.update(len(shard).to_bytes(8, "little") + _sample(shard).astype("<u2").tobytes())
        return int.from_bytes(digest.digest(), "little")

    def part(self, start: int, end: int) -> TokenStream:
        """Positions ``start`` to ``end`` as a stream of their own; nothing is copied."""
        cut = [shard[max(0, start - first) : max(0, end - first)] for shard, first in zip(self._shards, self._starts, strict=False)]
        return TokenStream(cut)

    def highest_id(self, *, sampled: bool = False) -> int:
        """The largest token id anywhere in the stream, or in what ``fingerprint`` reads of it."""
        return max((int((_sample(shard) if sampled else shard).max()) for shard in self._shards), default=0)

    def all(self) -> np.ndarray:
        """Every token, int64 of shape (len(self),)."""
        return np.concatenate(self._shards).astype(np.int64) if self._shards else np.zeros(0, np.int64)


def _sample(shard: np.ndarray) -> np.ndarray:
    return np.concatenate([shard[:1024], shard[np.arange(64) * (len(shard) - 1) // 63]])


def check_length(tokens: int, seq_len: int, holder: str = "the training split") -> None:
    """Raises UserError where ``tokens`` are too few for a window of ``seq_len`` and the token that follows."""
    if tokens < seq_len + 1:
        raise UserError(f"{holder} holds {tokens} tokens, but one window needs {seq_len + 1}; give more text or a smaller train.seq_len")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
