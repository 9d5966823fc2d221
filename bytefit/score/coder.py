"""Compressing token streams with a model, and restoring them: the same incremental forward pass on both sides.

Several streams run side by side, one row of the batch each, so that every forward pass works on all of them. Encoder and
decoder go through identical calls (same shapes, same order, same cache, same learning), so they compute identical probabilities, bit
for bit, on the same class of machine with the same number of threads (``compressed.py`` records both).

Within a stream the context is that of the protocol's windows: when the next window begins, the cache is emptied and refilled with the
tokens that this window shares with the last one. Where a chunk ends there, the model first learns from the chunk.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import constriction
import numpy as np
import torch

from bytefit.data.tokenizer import BOS_ID
from bytefit.errors import UserError
from bytefit.model.language_model import Cache, LanguageModel
from bytefit.optim.muon import ONE_RANK
from bytefit.progress import progress_bar
from bytefit.score.adapt import Adapt, CodedProtocol, DocumentLora
from bytefit.score.document_lora import DocumentLearner, chunk_batch, going_on
from bytefit.score.learner import Learner
from bytefit.score.scorer import for_streams
from bytefit.score.tape import CodedTape, chunk_piece
from bytefit.score.temperature import tempered
from bytefit.score.windows import Sliding

MOST_STREAMS = 32
CODER_DTYPE = torch.float32  # one token a row is bound by reading the weights; fp32 is as fast as bf16 there


class _Predictor:
    """Feeds one token a stream at a time; hands out the next token's probabilities."""

    def __init__(self, model: LanguageModel, num_streams: int, window: int, temperature: float = 1.0):
        if window > model.config.context:
            raise UserError(f"window {window} is longer than the model's context of {model.config.context} tokens")
        self._model, self._temperature = model, temperature
        self._window = window
        self._cache = Cache(model.config, num_streams, window, CODER_DTYPE)
        self._history: list[torch.Tensor] = []

    def keep(self, rows: list[int]) -> None:
        """Go on with some of the streams alone; the next call must read its context again."""
        self._cache = Cache(self._model.config, len(rows), self._window, CODER_DTYPE)
        self._history = [ids[rows] for ids in self._history]

    def next(self, ids_B: np.ndarray, keep: int | None = None) -> np.ndarray:
        """Probabilities (B, V), float64, of what follows once every stream has read one more token.

        Args:
            keep: forget everything but so many tokens before this one, and read them again.
        """
        self._history.append(torch.from_numpy(ids_B))
        if keep is None:
            inputs = self._history[-1][:, None]
        else:
            self._cache.length = 0
            self._history = self._history[-keep - 1 :]
            inputs = torch.stack(self._history, dim=1)
        with torch.inference_mode():
            x = self._model.hidden(inputs, CODER_DTYPE, self._cache)[:, -1:]
            logits = tempered(self._model.head_logits(x)[:, 0].double(), self._temperature)
            return torch.softmax(logits, dim=-1).numpy()


def _symbol_model(probabilities_V: np.ndarray) -> Any:
    """A distribution with 24-bit integer frequencies; no symbol's frequency is zero."""
    return constriction.stream.model.Categorical(probabilities_V, perfect=False)


def coder_bits(nats: np.ndarray, vocab_size: int) -> float:
    """What targets of these costs take in such frequencies: a little more, since every id keeps a share, but never over 24 bits each."""
    share = 2.0**-24
    return float(-np.log2(share + np.exp(-nats) * (1 - vocab_size * share)).sum())


# Handles one token, given (stream, position, symbol model), and returns its id.
_Code = Callable[[int, int, Any], int]


class _Enough(Exception):
    """All that was asked for is decoded."""


def _run(model: LanguageModel, lengths: list[int], protocol: CodedProtocol, code: _Code, title: str, most: int | None = None) -> int:
    """The loop that both sides share. All streams go through one range coder, position by position.

    Streams start from BOS, which is not coded; those that have ended go on being fed BOS so that the batch keeps its shape.

    Args:
        most: tokens after which ``code`` will end it.

    Returns:
        How many optimizer steps were made on the way.
    """
    steps, total = 0, sum(lengths)
    with progress_bar(total=total if most is None else min(most, total), desc=title, unit=" tokens", unit_scale=True) as bar:
        if isinstance(protocol, DocumentLora):
            for first in range(0, len(lengths), protocol.batch_documents):
                group = lengths[first : first + protocol.batch_documents]
                steps += _run_documents(model, group, protocol, lambda row, *rest, first=first: code(first + row, *rest), bar.update)
        elif isinstance(protocol, Adapt):
            shared = for_streams(protocol, len(lengths))
            with Learner(model, shared, max(map(shared.num_chunks, (length + 1 for length in lengths)), default=0), ONE_RANK) as learner:
                _run_streams(model, lengths, shared, learner, code, bar.update)
                steps = learner.steps
        else:
            _run_streams(model, lengths, protocol, None, code, bar.update)
    return steps


def _run_streams(
    model: LanguageModel, lengths: list[int], protocol: Sliding | Adapt, learner: Learner | None, code: _Code, tell: Callable[[int], Any]
) -> None:
    window, stride = protocol.window, protocol.stride
    predictor = _Predictor(model, len(lengths), window, protocol.temperature if isinstance(protocol, Adapt) else 1.0)
    tapes = [CodedTape(BOS_ID) for _ in lengths]
    ids = np.full(len(lengths), BOS_ID, dtype=np.int64)
    learned = 0
    for position in range(max(lengths, default=0)):
        begins = position >= window and (position - window) % stride == 0
        if begins and learner is not None and isinstance(protocol, Adapt):
            while learned < protocol.chunk_of(position + 1):
                pieces = [
                    chunk_piece(tape, length + 1, learned, protocol.chunk_tokens) for tape, length in zip(tapes, lengths, strict=True)
                ]
                learner.learn([piece for piece in pieces if piece is not None], learned)
                learned += 1
        probabilities = predictor.next(ids.copy(), window - stride if begins else None)
        for stream, length in enumerate(lengths):
            ids[stream] = BOS_ID
            if position < length:
                ids[stream] = code(stream, position, _symbol_model(probabilities[stream]))
                tapes[stream].append(int(ids[stream]))
        tell(sum(position < length for length in lengths))


def _run_documents(model: LanguageModel, lengths: list[int], protocol: DocumentLora, code: _Code, tell: Callable[[int], Any]) -> int:
    """Documents side by side, each with adapters of its own; those that have ended leave the batch at the next chunk. Returns the steps."""
    size, live = protocol.chunk_tokens, list(range(len(lengths)))
    known = [[BOS_ID] for _ in lengths]
    ids = np.full(len(lengths), BOS_ID, dtype=np.int64)
    with DocumentLearner(model, protocol, len(lengths)) as learner:
        predictor = _Predictor(model, len(lengths), protocol.window, protocol.temperature)
        for position in range(max(lengths, default=0)):
            begins = position > 0 and position % size == 0
            if begins:
                inputs, skip, targets = chunk_batch([torch.tensor(known[row]) for row in live], position // size - 1, protocol)
                learner.learn(learner.costs(inputs, skip, targets, CODER_DTYPE), targets)
                rows = going_on([lengths[row] for row in live], position)
                if len(rows) < len(live):
                    learner.keep(rows)
                    predictor.keep(rows)
                    live, ids = [live[row] for row in rows], ids[rows]
            keep = position - max(0, position + size - protocol.window) if begins else None
            probabilities = predictor.next(ids.copy(), keep)
            for row, document in enumerate(live):
                ids[row] = BOS_ID
                if position < lengths[document]:
                    ids[row] = code(document, position, _symbol_model(probabilities[row]))
                    known[document].append(int(ids[row]))
            tell(len(going_on(lengths, position)))
        return learner.steps


def encode_streams(
    model: LanguageModel, streams: list[np.ndarray], protocol: CodedProtocol, *, title: str = "compressing"
) -> tuple[np.ndarray, int]:
    """Compressed words (uint32) of the token streams (int64), and the optimizer steps that were made on the way."""
    encoder = constriction.stream.queue.RangeEncoder()

    def code(stream: int, position: int, symbol_model: Any) -> int:
        token = int(streams[stream][position])
        encoder.encode(token, symbol_model)
        return token

    steps = _run(model, [len(stream) for stream in streams], protocol, code, title)
    return encoder.get_compressed(), steps


def decode_streams(
    model: LanguageModel,
    words: np.ndarray,
    lengths: list[int],
    protocol: CodedProtocol,
    *,
    most: int | None = None,
    title: str = "restoring",
) -> list[np.ndarray]:
    """The token streams again (int64).

    Args:
        most: end after so many tokens in all; the streams are beginnings then.

    Raises:
        UserError: the words do not decode with this model.
    """
    decoder = constriction.stream.queue.RangeDecoder(words)
    streams: list[list[int]] = [[] for _ in lengths]
    left = sum(lengths) if most is None else most

    def code(stream: int, position: int, symbol_model: Any) -> int:
        nonlocal left
        if not left:
            raise _Enough
        left -= 1
        try:
            token = int(decoder.decode(symbol_model))
        except AssertionError:
            raise UserError("the compressed data does not decode with this artifact; it is damaged or made by another one") from None
        streams[stream].append(token)
        return token

    with contextlib.suppress(_Enough):
        _run(model, lengths, protocol, code, title, most)
    return [np.array(stream, dtype=np.int64) for stream in streams]


def most_tokens(num_bytes: int, vocab_size: int) -> int:
    """The most tokens that so many bytes can hold: frequencies have 24 bits and every other id keeps at least one of them."""
    least_bits = -math.log2(1 - (vocab_size - 1) / 2**24)
    return math.ceil(8 * (num_bytes + 8) / least_bits)


def stream_lengths(num_tokens: int, num_streams: int) -> list[int]:
    """Nearly equal lengths, the longer ones first."""
    if not num_streams:
        return []
    length, longer = divmod(num_tokens, num_streams)
    return [length + 1] * longer + [length] * (num_streams - longer)


def cut_into_streams(tokens: np.ndarray, num_streams: int) -> list[np.ndarray]:
    """Consecutive pieces of ``stream_lengths``; never more pieces than tokens."""
    lengths = stream_lengths(len(tokens), min(num_streams, len(tokens)))
    return np.split(tokens, np.cumsum(lengths)[:-1]) if lengths else []


def good_stream_count(num_tokens: int, window: int) -> int:
    """More streams are faster, but each starts without context: at least two windows a stream, at most ``MOST_STREAMS``."""
    return max(1, min(MOST_STREAMS, num_tokens // (2 * window)))
