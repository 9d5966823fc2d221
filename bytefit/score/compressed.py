"""Compressed files: documents to bytes and back with an artifact. ``docs/format.md`` describes the layout.

The file names the artifact (its hash), the protocol and the machine class it was written on. Restoring checks all of them
first and the content's checksum last.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bytefit.artifact.load import Artifact
from bytefit.config import from_json, to_json
from bytefit.data.tokenizer import BOS_ID, Tokenizer
from bytefit.errors import UserError
from bytefit.score.adapt import CodedProtocol, DocumentLora
from bytefit.score.coder import (
    MOST_STREAMS,
    cut_into_streams,
    decode_streams,
    encode_streams,
    good_stream_count,
    most_tokens,
    stream_lengths,
)
from bytefit.score.document_lora import piece_lengths
from bytefit.score.windows import Sliding

MAGIC = b"bytefitz"
VERSION = 3  # of the layout, and of arithmetic that a decoder repeats: 3 learns in fp32 through SDPA
# magic, version, artifact hash (8 bytes), CRC-32 of the content, threads, streams, tokens, documents, how many streams state their length
# (all or none), and the lengths of the machine's description and of the protocol's (as JSON; none where it is the artifact's own)
_HEAD = struct.Struct("<8sB8sIHIQIIBH")
MOST_THREADS = 1024  # more are no machine's
DAMAGED_HEADER = "the compressed file's header is damaged"
_CHECKSUM = struct.Struct("<I")  # CRC-32 of everything before it


def machine_class() -> str:
    """What, with the thread count, must be equal for probabilities to be equal to the last bit."""
    return f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"


def default_protocol(artifact: Artifact) -> CodedProtocol:
    """The protocol that the artifact was packed with; else windows of the model's context, of which the newer half is coded."""
    context = artifact.model.config.context
    try:
        protocol: CodedProtocol = from_json(CodedProtocol, artifact.notes["protocol"])
        if protocol.window <= context:
            return protocol
    except (KeyError, UserError):
        pass
    return Sliding(window=context, stride=context - context // 2)


def document_ids(tokenizer: Tokenizer, documents: list[bytes]) -> list[np.ndarray]:
    """int64 ids of each document, without BOS."""
    return [np.array(tokenizer.encode_exact(document), dtype=np.int64) for document in documents]


def token_streams(documents: list[np.ndarray], protocol: CodedProtocol) -> list[np.ndarray]:
    """The int64 sequences that are coded side by side, each after a BOS of its own that is not coded.

    Documents with adapters of their own are a stream each, or one for each of their pieces. Else all the text is one sequence, with a BOS
    between two documents (none before the first), cut into nearly equal pieces.
    """
    if isinstance(protocol, DocumentLora):
        cuts = [np.cumsum(piece_lengths(len(ids), protocol.piece_tokens))[:-1] for ids in documents]
        return [piece for ids, cut in zip(documents, cuts, strict=True) for piece in np.split(ids, cut)]
    bos = np.array([BOS_ID], dtype=np.int64)
    tokens = np.concatenate([part for ids in documents for part in (bos, ids)][1:]) if documents else bos[:0]
    return cut_into_streams(tokens, good_stream_count(len(tokens), protocol.window))


def overhead_bytes(data: bytes) -> int:
    """Bytes of a compressed file beside the coded text."""
    *_, num_lengths, machine, protocol = _HEAD.unpack_from(data)
    return int(_HEAD.size + machine + protocol + 4 * num_lengths + _CHECKSUM.size)


def _checksum(documents: list[bytes]) -> int:
    checksum = 0
    for document in documents:
        checksum = zlib.crc32(struct.pack("<Q", len(document)) + document, checksum)
    return checksum


def compress(artifact: Artifact, documents: list[bytes], protocol: CodedProtocol | None = None) -> bytes:
    """Any bytes, one or several documents, to one compressed file.

    Args:
        protocol: another one than the artifact's own.
    """
    return compress_counting(artifact, documents, protocol)[0]


def compress_counting(artifact: Artifact, documents: list[bytes], protocol: CodedProtocol | None = None) -> tuple[bytes, int]:
    """The same, and how many optimizer steps were made on the way."""
    own = default_protocol(artifact)
    protocol = protocol or own
    if not _codable(artifact, protocol):
        raise UserError(
            f"nothing can be coded by {type(protocol).__name__} with window {protocol.window} and the contest's tail or a longer context"
        )
    ids = document_ids(artifact.tokenizer, documents)
    streams = token_streams(ids, protocol)
    words, steps = encode_streams(artifact.model, streams, protocol)
    machine = machine_class().encode()
    stated = b"" if protocol == own else json.dumps(to_json(protocol), separators=(",", ":")).encode()
    lengths = [len(document) for document in ids] if isinstance(protocol, DocumentLora) else []
    head = _HEAD.pack(
        MAGIC, VERSION, bytes.fromhex(artifact.sha256)[:8], _checksum(documents), torch.get_num_threads(),
        len(streams), sum(map(len, streams)), len(documents), len(lengths), len(machine), len(stated),
    )  # fmt: skip
    body = head + machine + stated + np.array(lengths, dtype="<u4").tobytes() + words.astype("<u4").tobytes()
    return body + _CHECKSUM.pack(zlib.crc32(body)), steps


def is_of(data: bytes, artifact_sha256: str, documents: list[bytes]) -> bool:
    """Whether a whole compressed file names this artifact and the checksum of exactly this text; nothing is decoded."""
    if len(data) < _HEAD.size + _CHECKSUM.size or zlib.crc32(data[: -_CHECKSUM.size]) != _CHECKSUM.unpack(data[-_CHECKSUM.size :])[0]:
        return False
    magic, _, artifact_hash, checksum, *_ = _HEAD.unpack_from(data)
    return bool(magic == MAGIC and artifact_hash == bytes.fromhex(artifact_sha256)[:8] and checksum == _checksum(documents))


def count_documents(data: bytes) -> int:
    """How many documents a compressed file says that it holds; nothing is decoded. Raises UserError for another file, or a damaged one."""
    fields = _fields(data)
    _check_sum(data)
    return int(fields[7])


def _fields(data: bytes) -> tuple[Any, ...]:
    """The fields of the header. Raises UserError where this is no compressed file of this format."""
    if not data.startswith(MAGIC):
        raise UserError("this is not a file that bytefit compress wrote (wrong magic number)")
    if len(data) < _HEAD.size + _CHECKSUM.size:
        raise UserError("the compressed file is cut short (no header)")
    fields = _HEAD.unpack_from(data)
    if fields[1] != VERSION:
        raise UserError(f"the compressed file has format {fields[1]}; this program reads {VERSION}")
    return fields


def _check_sum(data: bytes) -> None:
    if zlib.crc32(data[: -_CHECKSUM.size]) != _CHECKSUM.unpack(data[-_CHECKSUM.size :])[0]:
        raise UserError("the compressed file is damaged or cut short (checksum mismatch)")


@dataclass(frozen=True)
class _Opened:
    """A compressed file whose header holds together.

    Attributes:
        lengths: tokens of every stream.
        document_lengths: tokens of every document, where documents are streams.
        checksum: of the documents.
    """

    protocol: CodedProtocol
    threads: int
    words: np.ndarray
    lengths: list[int]
    document_lengths: list[int]
    num_documents: int
    checksum: int


def decompress(artifact: Artifact, data: bytes) -> list[bytes]:
    """The documents again.

    Raises:
        UserError: not a compressed file, another artifact, another class of machine, or damaged data.
    """
    opened = _open(artifact, data)
    with _threads(opened.threads):
        streams = decode_streams(artifact.model, opened.words, opened.lengths, opened.protocol)
    tokens = np.concatenate(streams) if streams else np.zeros(0, np.int64)
    if isinstance(opened.protocol, DocumentLora):
        whole = np.split(tokens, np.cumsum(opened.document_lengths)[:-1]) if opened.document_lengths else []
        documents = [artifact.tokenizer.decode(ids.tolist()) for ids in whole]
    else:
        documents = _documents(artifact.tokenizer, tokens, opened.num_documents)
    if len(documents) != opened.num_documents or _checksum(documents) != opened.checksum:
        raise UserError("the restored text does not match the checksum: the compressed file is damaged")
    return documents


def begins_as(artifact: Artifact, data: bytes, documents: list[bytes], most: int) -> int | None:
    """How many tokens of a compressed file came back, at most ``most``, decoded from it and the artifact alone; None where they are not
    those of ``documents``.

    Raises:
        UserError: what ``decompress`` raises before the text is complete.
    """
    opened = _open(artifact, data)
    wanted = token_streams(document_ids(artifact.tokenizer, documents), opened.protocol)
    with _threads(opened.threads):
        streams = decode_streams(artifact.model, opened.words, opened.lengths, opened.protocol, most=most)
    same = opened.lengths == list(map(len, wanted)) and all(
        np.array_equal(found, whole[: len(found)]) for found, whole in zip(streams, wanted, strict=True)
    )
    return sum(map(len, streams)) if same else None


def made_here(data: bytes) -> bool:
    """Whether a whole compressed file was written by this version and on this class of machine, so that it can be restored here."""
    _, version, *_, machine_size, _ = _HEAD.unpack_from(data)
    return bool(version == VERSION and data[_HEAD.size : _HEAD.size + machine_size] == machine_class().encode())


def coded_bytes(data: bytes) -> int | None:
    """Bytes of the coded text; None where this is no compressed file of this version."""
    try:
        _fields(data)
    except UserError:
        return None
    return len(data) - overhead_bytes(data)


def _open(artifact: Artifact, data: bytes) -> _Opened:
    fields = _fields(data)
    _, _, artifact_hash, checksum, threads, num_streams, num_tokens, num_documents, num_lengths, machine_size, protocol_size = fields
    if artifact_hash != bytes.fromhex(artifact.sha256)[:8]:
        raise UserError(f"the file was compressed with another artifact (its hash starts with {artifact_hash.hex()})")
    _check_sum(data)
    body = data[: -_CHECKSUM.size]
    protocol_start = _HEAD.size + machine_size
    lengths_start = protocol_start + protocol_size
    words_start = lengths_start + 4 * num_lengths
    machine = data[_HEAD.size : protocol_start].decode("utf-8", "replace")
    if machine != machine_class():
        raise UserError(f"the file was compressed on another class of machine ({machine}; this is {machine_class()}); restore it there")
    protocol = _read_protocol(artifact, data[protocol_start:lengths_start])
    if (len(body) - words_start) % 4 or len(body) < words_start or not 1 <= threads <= MOST_THREADS or bool(num_tokens) > bool(num_streams):
        raise UserError(DAMAGED_HEADER)
    if num_tokens > most_tokens(len(body) - words_start, artifact.tokenizer.vocab_size):
        raise UserError(f"the compressed file claims {num_tokens:,} tokens, which its bytes cannot hold")
    of_documents = np.frombuffer(body[lengths_start:words_start], dtype="<u4").tolist()
    if isinstance(protocol, DocumentLora):
        known = len(of_documents) == num_documents and sum(of_documents) == num_tokens
        lengths = [piece for length in of_documents for piece in piece_lengths(length, protocol.piece_tokens)] if known else []
        consistent = known and len(lengths) == num_streams
    else:
        consistent = not of_documents and num_streams <= min(num_tokens, MOST_STREAMS)
        lengths = stream_lengths(num_tokens, num_streams) if consistent else []
    if not consistent:
        raise UserError(DAMAGED_HEADER)
    words = np.frombuffer(body[words_start:], dtype="<u4").astype(np.uint32)
    return _Opened(protocol, threads, words, lengths, of_documents, num_documents, checksum)


def _read_protocol(artifact: Artifact, stated: bytes) -> CodedProtocol:
    if not stated:
        return default_protocol(artifact)
    try:
        protocol: CodedProtocol = from_json(CodedProtocol, json.loads(stated))
    except (ValueError, UserError):
        raise UserError(DAMAGED_HEADER) from None
    if not _codable(artifact, protocol):
        raise UserError(DAMAGED_HEADER)
    return protocol


def _codable(artifact: Artifact, protocol: CodedProtocol) -> bool:
    """Whether every target comes once, from a window that the model can hold."""
    return protocol.window <= artifact.model.config.context and not (isinstance(protocol, Sliding) and protocol.contest)


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
