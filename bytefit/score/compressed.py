"""Compressed files: documents to bytes and back with an artifact. ``docs/format.md`` describes the layout.

The file names the artifact (its hash), the protocol and the machine class it was written on. Restoring checks all of them
first and the content's checksum last.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from bytefit.artifact.load import Artifact
from bytefit.data.tokenizer import BOS_ID, Tokenizer
from bytefit.errors import UserError
from bytefit.score.coder import cut_into_streams, decode_streams, encode_streams, good_stream_count, most_tokens, stream_lengths
from bytefit.score.windows import Sliding

MAGIC = b"bytefitz"
VERSION = 1
# magic, version, artifact hash (8 bytes), CRC-32 of the content, threads, window, stride, streams, tokens, documents, length
# of the machine description
_HEAD = struct.Struct("<8sB8sIHIIHQIB")
_CHECKSUM = struct.Struct("<I")  # CRC-32 of everything before it


def machine_class() -> str:
    """What, with the thread count, must be equal for probabilities to be equal to the last bit."""
    return f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"


def default_protocol(artifact: Artifact) -> Sliding:
    """The sliding windows that the artifact was packed with; else the model's context, of which the newer half is coded."""
    context = artifact.model.config.context
    window, stride = artifact.notes.get("window"), artifact.notes.get("stride")
    if isinstance(window, int) and isinstance(stride, int) and 1 <= stride <= window <= context:
        return Sliding(window=window, stride=stride)
    return Sliding(window=context, stride=context - context // 2)


def document_tokens(tokenizer: Tokenizer, documents: list[bytes]) -> np.ndarray:
    """int64 ids of the documents with a BOS between two of them (none before the first)."""
    ids: list[int] = []
    for i, document in enumerate(documents):
        ids += ([BOS_ID] if i else []) + tokenizer.encode_exact(document)
    return np.array(ids, dtype=np.int64)


def overhead_bytes(data: bytes) -> int:
    """Bytes of a compressed file beside the coded text."""
    return _HEAD.size + int(_HEAD.unpack_from(data)[-1]) + _CHECKSUM.size


def _checksum(documents: list[bytes]) -> int:
    checksum = 0
    for document in documents:
        checksum = zlib.crc32(struct.pack("<Q", len(document)) + document, checksum)
    return checksum


def compress(artifact: Artifact, documents: list[bytes]) -> bytes:
    """Any bytes, one or several documents, to one compressed file."""
    tokens = document_tokens(artifact.tokenizer, documents)
    protocol = default_protocol(artifact)
    streams = cut_into_streams(tokens, good_stream_count(len(tokens), protocol.window))
    words = encode_streams(artifact.model, streams, protocol)
    machine = machine_class().encode()
    head = _HEAD.pack(
        MAGIC, VERSION, bytes.fromhex(artifact.sha256)[:8], _checksum(documents), torch.get_num_threads(),
        protocol.window, protocol.stride, len(streams), len(tokens), len(documents), len(machine),
    )  # fmt: skip
    body = head + machine + words.astype("<u4").tobytes()
    return body + _CHECKSUM.pack(zlib.crc32(body))


def decompress(artifact: Artifact, data: bytes) -> list[bytes]:
    """The documents again.

    Raises:
        UserError: not a compressed file, another artifact, another class of machine, or damaged data.
    """
    if not data.startswith(MAGIC):
        raise UserError("this is not a file that bytefit compress wrote (wrong magic number)")
    if len(data) < _HEAD.size + _CHECKSUM.size:
        raise UserError("the compressed file is cut short (no header)")
    fields = _HEAD.unpack_from(data)
    _, version, artifact_hash, checksum, threads, window, stride, num_streams, num_tokens, num_documents, length = fields
    if version != VERSION:
        raise UserError(f"the compressed file has format {version}; this program reads {VERSION}")
    if artifact_hash != bytes.fromhex(artifact.sha256)[:8]:
        raise UserError(f"the file was compressed with another artifact (its hash starts with {artifact_hash.hex()})")
    body = data[: -_CHECKSUM.size]
    if zlib.crc32(body) != _CHECKSUM.unpack(data[-_CHECKSUM.size :])[0]:
        raise UserError("the compressed file is damaged or cut short (checksum mismatch)")
    words_start = _HEAD.size + length
    machine = data[_HEAD.size : words_start].decode("utf-8", "replace")
    if machine != machine_class():
        raise UserError(f"the file was compressed on another class of machine ({machine}; this is {machine_class()}); restore it there")
    if (len(body) - words_start) % 4 or len(body) < words_start:
        raise UserError("the compressed file's header is damaged")
    if not (1 <= stride <= window <= artifact.model.config.context and threads and num_streams <= num_tokens):
        raise UserError("the compressed file's header is damaged")
    if num_tokens and not num_streams:
        raise UserError("the compressed file's header is damaged")
    if num_tokens > most_tokens(len(body) - words_start, artifact.tokenizer.vocab_size):
        raise UserError(f"the compressed file claims {num_tokens:,} tokens, which its bytes cannot hold")
    words = np.frombuffer(body[words_start:], dtype="<u4").astype(np.uint32)
    lengths = stream_lengths(num_tokens, num_streams)
    with _threads(threads):
        streams = decode_streams(artifact.model, words, lengths, Sliding(window=window, stride=stride))
    documents = _documents(artifact.tokenizer, np.concatenate(streams) if streams else np.zeros(0, np.int64), num_documents)
    if len(documents) != num_documents or _checksum(documents) != checksum:
        raise UserError("the restored text does not match the checksum: the compressed file is damaged")
    return documents


def _documents(tokenizer: Tokenizer, tokens: np.ndarray, num_documents: int) -> list[bytes]:
    if num_documents == 0:
        return []
    pieces = np.split(tokens, np.flatnonzero(tokens == BOS_ID))
    return [tokenizer.decode(piece.tolist()) for piece in pieces]  # BOS itself decodes to nothing


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run with the thread count of the encoder: how sums are split over threads decides their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
