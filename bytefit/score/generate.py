"""Continuing a text with the model, token by token through its key/value cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bytefit.artifact.load import Artifact
from bytefit.data.tokenizer import BOS_ID
from bytefit.errors import UserError
from bytefit.model.language_model import Cache

DTYPE = torch.float32
LEAST_TEMPERATURE = 1e-3  # below it logits overflow; at 0 nothing is divided


def generate(
    artifact: Artifact, prompt: bytes, *, num_tokens: int, temperature: float = 0.8, top_p: float = 0.95, seed: int = 0
) -> Iterator[bytes]:
    """Yield the bytes of each new token; stops where the model ends the document.

    Args:
        temperature: 0 always takes the likeliest token.
        top_p: sample from the likeliest tokens that hold this much probability together.

    Raises:
        UserError: an option out of range.
    """
    if not (temperature == 0 or LEAST_TEMPERATURE <= temperature <= 1 / LEAST_TEMPERATURE):
        raise UserError(f"temperature {temperature} must be 0 or lie in {LEAST_TEMPERATURE:g}..{1 / LEAST_TEMPERATURE:g}")
    if not 0 < top_p <= 1 or num_tokens < 0:
        raise UserError(f"top_p {top_p} must lie in (0, 1] and tokens {num_tokens} be at least 0")
    if not 0 <= seed < 1 << 63:
        raise UserError(f"seed {seed} must lie in 0..2^63 - 1")
    model, context = artifact.model, artifact.model.config.context
    generator = torch.Generator().manual_seed(seed)
    ids = [BOS_ID, *artifact.tokenizer.encode_exact(prompt)]
    cache = Cache(model.config, 1, context, DTYPE)
    unread = ids[-(context - context // 4) :]
    with torch.inference_mode():
        for _ in range(num_tokens):
            if cache.length + len(unread) > context:  # forget the older half and read the newer half again
                cache.length = 0
                unread = ids[-(context // 2) :]
            logits_V = model.logits(torch.tensor([unread]), DTYPE, cache)[0, -1]
            token = _sample(logits_V, artifact, temperature, top_p, generator)
            if token == BOS_ID:
                return
            ids.append(token)
            unread = [token]
            yield artifact.tokenizer.token_bytes[token]


def _sample(logits_V: Tensor, artifact: Artifact, temperature: float, top_p: float, generator: torch.Generator) -> int:
    silent = torch.from_numpy(artifact.tokenizer.is_control).clone()
    silent[BOS_ID] = False  # BOS ends the document; the other control ids say nothing
    logits_V = logits_V.masked_fill(silent, -torch.inf)
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities, order = torch.softmax(logits_V / temperature, -1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= top_p] = 0.0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])
