"""Scoring a token sequence with a model under a protocol."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from bytefit.config import to_json
from bytefit.data.byte_table import ByteTable
from bytefit.dtypes import dtype_name
from bytefit.errors import UserError
from bytefit.model.language_model import LanguageModel
from bytefit.score.adapt import Adapt, DocumentLora
from bytefit.score.document_lora import score_documents
from bytefit.score.harness import Watch, batch_shapes, walk
from bytefit.score.learner import Learner
from bytefit.score.predictor import ModelPredictor, worth_compiling
from bytefit.score.tape import Tape
from bytefit.score.windows import Full, Sliding

ScoreProtocol = Full | Sliding | Adapt | DocumentLora
BLOCK_TARGETS = 16_384


@dataclass(frozen=True)
class Score:
    """A scored sequence.

    Attributes:
        nats: summed cross-entropy of all targets, BOS targets (document ends) included.
        targets: how many were scored; equals the sequence's length minus one, but under a contest's tail rule.
        bytes: bytes of text that the targets stand for.
        learned_steps: optimizer steps between chunks.
        blocks: (targets, nats, bytes) of every ``BLOCK_TARGETS`` targets, or of every chunk where that is less, so that a part can be
            checked alone.
    """

    nats: float
    targets: int
    bytes: int
    protocol: ScoreProtocol
    dtype: str
    seconds: float
    learned_steps: int = 0
    blocks: list[tuple[int, float, int]] = field(default_factory=list)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"protocol": to_json(self.protocol), "bits_per_byte": self.bits_per_byte}


def score(
    model: LanguageModel, tokens: np.ndarray, table: ByteTable, protocol: ScoreProtocol, dtype: torch.dtype, watch: Watch | None = None
) -> Score:
    """Score a sequence: bits per byte under ``protocol``. The model is left as it was.

    Args:
        tokens: int64 (N,); the first is context only.

    Raises:
        UserError: fewer than two tokens, tokens that stand for no text, NaN probabilities, or a window beyond the model's context.
    """
    if len(tokens) < 2:
        raise UserError(f"cannot score {len(tokens)} tokens; at least 2 are needed")
    start = time.perf_counter()
    counts = table.count(tokens[1:], tokens[:-1])
    tape = new_tape(tokens, protocol)
    watch = replace(watch or Watch(), counts=counts)
    steps = score_tapes(model, [tape], protocol, dtype, watch)
    num_bytes = int((counts * tape.times).sum())
    if num_bytes == 0:
        raise UserError("the tokens to score stand for no text at all (only control ids), or are fewer than a window")
    nats, targets = float(tape.nats.sum()), int(tape.times.sum())
    earlier = watch.journal.earlier_seconds if watch.journal is not None else 0.0
    seconds = earlier + time.perf_counter() - start
    return Score(nats, targets, num_bytes, protocol, dtype_name(dtype), seconds, steps, blocks_of(tape, counts, protocol))


def blocks_of(tape: Tape, counts: np.ndarray, protocol: ScoreProtocol) -> list[tuple[int, float, int]]:
    """See ``Score.blocks``."""
    size = min(BLOCK_TARGETS, protocol.chunk_tokens) if isinstance(protocol, Adapt) else BLOCK_TARGETS
    parts = [slice(start, start + size) for start in range(0, len(tape.nats), size)]
    return [(int(tape.times[p].sum()), float(tape.nats[p].sum()), int((counts[p] * tape.times[p]).sum())) for p in parts]


def new_tape(tokens: np.ndarray, protocol: ScoreProtocol) -> Tape:
    return Tape(tokens, again=isinstance(protocol, Full | Sliding) and protocol.contest)


def target_nats(model: LanguageModel, tokens: np.ndarray, protocol: ScoreProtocol, dtype: torch.dtype) -> np.ndarray:
    """Cross-entropy in nats of every target: float64 (N - 1,), entry t is the cost of token t + 1."""
    tape = new_tape(tokens, protocol)
    score_tapes(model, [tape], protocol, dtype)
    return tape.nats


def score_tapes(model: LanguageModel, tapes: list[Tape], protocol: ScoreProtocol, dtype: torch.dtype, watch: Watch | None = None) -> int:
    """Score sequences side by side. With ``Adapt`` one model learns from all of them, each having its share of a chunk.

    Returns:
        How many optimizer steps were made in between.
    """
    watch = watch or Watch()
    if protocol.window > model.config.context:
        raise UserError(f"window {protocol.window} is longer than the model's context of {model.config.context} tokens")
    if isinstance(protocol, DocumentLora):
        return score_documents(model, tapes, protocol, dtype, watch)
    shared = for_streams(protocol, len(tapes)) if isinstance(protocol, Adapt) else protocol
    compiled_for = worth_compiling(model, batch_shapes(tapes, shared, watch.ranks))
    if isinstance(shared, Full | Sliding):
        walk(ModelPredictor(model, dtype, compiled_for=compiled_for), None, tapes, shared, watch)
        return 0
    num_chunks = max((shared.num_chunks(len(tape.tokens)) for tape in tapes), default=0)
    with Learner(model, shared, num_chunks, watch.ranks) as learner:
        walk(ModelPredictor(model, dtype, shared.temperature, compiled_for), learner, tapes, shared, watch)
        return learner.steps


def for_streams(protocol: Adapt, num_streams: int) -> Adapt:
    """The protocol of one of several sequences that are scored side by side: its share of a chunk."""
    return replace(protocol, chunk_tokens=max(1, protocol.chunk_tokens // max(1, num_streams)))
