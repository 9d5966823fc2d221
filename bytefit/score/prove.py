"""The proof: text really compressed with the artifact, really restored, and the bits compared with the score.

A score that used anything but the text before each token could not be decoded from; bytes miscounted would not come back.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bytefit.artifact.load import load_artifact
from bytefit.config import to_json
from bytefit.data.tokenizer import BOS_ID
from bytefit.errors import UserError
from bytefit.files import write_bytes
from bytefit.progress import say
from bytefit.score.adapt import Adapt, CodedProtocol
from bytefit.score.coder import coder_bits
from bytefit.score.compressed import compress_counting, decompress, default_protocol, document_ids, overhead_bytes, token_streams
from bytefit.score.harness import Watch
from bytefit.score.scorer import score_tapes
from bytefit.score.tape import Tape

AGREEMENT = 0.001  # coded bits may differ from scored bits by this share,
SLACK_BITS = 64  # plus what the range coder needs to end its last word


@dataclass(frozen=True)
class Proof:
    """What the proof found.

    Attributes:
        bytes_in: bytes of text.
        bytes_out: bytes of the compressed file, its header included.
        restored: whether the text came back byte for byte.
        coded_bits: of the text itself, without the file's header and checksum.
        scored_bits: what the scorer says for the same tokens under the same protocol.
        expected_bits: the same at the resolution of the coder, 24 bits.
        learned_steps: optimizer steps that the coder made before its last token.
        protocol: as JSON.
        artifact_sha256: which artifact was proven.
    """

    bytes_in: int
    bytes_out: int
    documents: int
    restored: bool
    coded_bits: int
    scored_bits: float
    expected_bits: float
    learned_steps: int
    seconds: float
    protocol: dict[str, Any]
    artifact_sha256: str

    @property
    def agreement(self) -> float:
        """Coded bits over those that were to be expected, minus 1."""
        return self.coded_bits / self.expected_bits - 1

    @property
    def holds(self) -> bool:
        return self.restored and abs(self.coded_bits - self.expected_bits) <= AGREEMENT * self.expected_bits + SLACK_BITS

    def to_json(self) -> dict[str, Any]:
        bits_per_byte = 8 * self.bytes_out / self.bytes_in
        return asdict(self) | {"agreement": self.agreement, "holds": self.holds, "bits_per_byte": bits_per_byte}


def with_chunks_in(protocol: CodedProtocol, num_tokens: int) -> CodedProtocol:
    """The protocol, its chunks no longer than a third of a text."""
    if isinstance(protocol, Adapt):
        return replace(protocol, chunk_tokens=min(protocol.chunk_tokens, max(1, num_tokens // 3)))
    return protocol


def cut_documents(documents: list[bytes], num_bytes: int) -> list[bytes]:
    """The first ``num_bytes`` bytes of the documents; the last one may be cut in the middle."""
    taken: list[bytes] = []
    left = num_bytes
    for document in documents:
        if left <= 0:
            break
        taken.append(document[:left])
        left -= len(taken[-1])
    return taken


def prove(
    artifact_path: Path, documents: list[bytes], compressed_path: Path, dtype: torch.dtype, protocol: CodedProtocol | None = None
) -> Proof:
    """Compress ``documents`` to ``compressed_path``; restore them from the two files alone; compare with the score.

    Where a chunk that is learned from would be longer than the text, it is shortened, so that learning is proven too.

    Args:
        dtype: what scores are computed in. The coder computes in fp32, token by token, through the key/value cache; the scorer
            in ``dtype``, whole windows at once: their agreement says that the fast score is the true one.
        protocol: another one than the artifact's own.

    Raises:
        UserError: no text, or an artifact that cannot be read.
    """
    if not sum(map(len, documents)):
        raise UserError("there is no text to prove with; give at least one byte (--bytes)")
    start = time.perf_counter()
    artifact = load_artifact(artifact_path)
    ids = document_ids(artifact.tokenizer, documents)
    protocol = with_chunks_in(protocol or default_protocol(artifact), sum(map(len, ids)))
    data, learned_steps = compress_counting(artifact, documents, protocol)
    write_bytes(compressed_path, data)
    try:
        # The decoder gets what a stranger would have: the artifact's file and the compressed file.
        restored = decompress(load_artifact(artifact_path), compressed_path.read_bytes()) == documents
    except UserError as error:
        say(f"the proof failed while decoding: {error}")
        restored = False
    tapes = [Tape(np.concatenate([[BOS_ID], stream])) for stream in token_streams(ids, protocol)]
    score_tapes(artifact.model, tapes, protocol, dtype, Watch(title="scoring the proof's text"))
    nats = np.concatenate([tape.nats for tape in tapes])
    return Proof(
        bytes_in=sum(map(len, documents)),
        bytes_out=len(data),
        documents=len(documents),
        restored=restored,
        coded_bits=8 * (len(data) - overhead_bytes(data)),
        scored_bits=float(nats.sum()) / math.log(2),
        expected_bits=coder_bits(nats, artifact.model.config.vocab_size),
        learned_steps=learned_steps,
        seconds=time.perf_counter() - start,
        protocol=to_json(protocol),
        artifact_sha256=artifact.sha256,
    )
