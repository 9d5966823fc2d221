"""Compressing token streams with a model, and restoring them: the same incremental forward pass on both sides.

Several streams run side by side, one row of the batch each, so that every forward pass works on all of them. Encoder and
decoder go through identical calls (same shapes, same order, same cache), so they compute identical probabilities, bit for
bit, on the same class of machine with the same number of threads (``compressed.py`` records both).

Within a stream the context is that of ``Sliding(window, stride)``: when the cache holds a full window, it is emptied and
refilled with the last ``window - stride`` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import constriction
import numpy as np
import torch

from bytefit.data.tokenizer import BOS_ID
from bytefit.errors import UserError
from bytefit.model.language_model import Cache, LanguageModel
from bytefit.progress import progress_bar
from bytefit.score.windows import Sliding

CODER_DTYPE = torch.float32  # one token a row is bound by reading the weights; fp32 is as fast as bf16 there


class _Predictor:
    """Feeds one token a stream at a time; hands out the next token's probabilities."""

    def __init__(self, model: LanguageModel, num_streams: int, protocol: Sliding):
        if protocol.window > model.config.context:
            raise UserError(f"window {protocol.window} is longer than the model's context of {model.config.context} tokens")
        self._model, self._protocol = model, protocol
        self._cache = Cache(model.config, num_streams, protocol.window, CODER_DTYPE)
        self._history: list[torch.Tensor] = []

    def next(self, ids_B: np.ndarray) -> np.ndarray:
        """Probabilities (B, V), float64, of what follows once every stream has read one more token."""
        self._history.append(torch.from_numpy(ids_B))
        if self._cache.length == self._protocol.window:
            self._cache.length = 0
            kept = self._protocol.window - self._protocol.stride
            self._history = self._history[-kept - 1 :]
            inputs = torch.stack(self._history, dim=1)
        else:
            inputs = self._history[-1][:, None]
        x = self._model.hidden(inputs, CODER_DTYPE, self._cache)[:, -1:]
        logits = self._model.head_logits(x)[:, 0].double()
        return torch.softmax(logits, dim=-1).numpy()


def _symbol_model(probabilities_V: np.ndarray) -> Any:
    """A distribution with 24-bit integer frequencies; no symbol's frequency is zero."""
    return constriction.stream.model.Categorical(probabilities_V, perfect=False)


def _run(model: LanguageModel, lengths: list[int], protocol: Sliding, code: Callable[[int, int, Any], int], title: str) -> None:
    """The loop that both sides share: ``code(stream, position, symbol_model)`` handles one token and returns its id.

    All streams go through one range coder, position by position. Streams start from BOS, which is not coded; those that have
    ended go on being fed BOS so that the batch keeps its shape.
    """
    predictor = _Predictor(model, len(lengths), protocol)
    ids = np.full(len(lengths), BOS_ID, dtype=np.int64)
    with torch.inference_mode(), progress_bar(total=sum(lengths), desc=title, unit=" tokens", unit_scale=True) as bar:
        for position in range(max(lengths, default=0)):
            probabilities = predictor.next(ids.copy())
            for stream, length in enumerate(lengths):
                ids[stream] = code(stream, position, _symbol_model(probabilities[stream])) if position < length else BOS_ID
            bar.update(sum(position < length for length in lengths))


def encode_streams(model: LanguageModel, streams: list[np.ndarray], protocol: Sliding, *, title: str = "compressing") -> np.ndarray:
    """Compressed words (uint32) of the token streams (int64)."""
    encoder = constriction.stream.queue.RangeEncoder()

    def code(stream: int, position: int, symbol_model: Any) -> int:
        token = int(streams[stream][position])
        encoder.encode(token, symbol_model)
        return token

    _run(model, [len(stream) for stream in streams], protocol, code, title)
    return encoder.get_compressed()


def decode_streams(
    model: LanguageModel, words: np.ndarray, lengths: list[int], protocol: Sliding, *, title: str = "restoring"
) -> list[np.ndarray]:
    """The token streams again (int64).

    Raises:
        UserError: the words do not decode with this model.
    """
    decoder = constriction.stream.queue.RangeDecoder(words)
    streams: list[list[int]] = [[] for _ in lengths]

    def code(stream: int, position: int, symbol_model: Any) -> int:
        try:
            token = int(decoder.decode(symbol_model))
        except AssertionError:
            raise UserError("the compressed data does not decode with this artifact; it is damaged or made by another one") from None
        streams[stream].append(token)
        return token

    _run(model, lengths, protocol, code, title)
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
    """More streams are faster, but each starts without context: at least two windows a stream, at most 32 streams."""
    return max(1, min(32, num_tokens // (2 * window)))
