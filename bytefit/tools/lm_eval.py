"""An artifact as a model of the lm-evaluation-harness (``lm_eval``).

Use it from Python, where importing this module registers it as ``"bytefit"``::

    from bytefit.tools.lm_eval import ArtifactLM
    lm_eval.simple_evaluate(model=ArtifactLM("model.bytefit"), tasks=["wikitext"])
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from bytefit.artifact.load import load_artifact
from bytefit.data.tokenizer import BOS_ID
from bytefit.errors import UserError
from bytefit.score.generate import generate
from bytefit.score.scorer import new_tape, score_tapes
from bytefit.score.windows import Full, Sliding

DTYPE = torch.float32
MAX_NEW_TOKENS = 256  # where a task gives no limit: the harness's own habit


@register_model("bytefit")
class ArtifactLM(LM):
    """Answers the harness's three kinds of request. Log-likelihoods are in nats.

    Args:
        artifact: the file.
        stride: every token has at least ``context - stride`` tokens before it, once there are so many; None takes windows that do not
            overlap, as ``bytefit score --protocol full`` does. (The harness's own models move the last window back, so that its tokens see
            a full context. Here the last window of a text is shorter, so that the number is bytefit's.)

    Raises:
        UserError: the file is no artifact; later, a continuation that is longer than the context.
        ValueError: a stride beyond the context.
    """

    def __init__(self, artifact: str | os.PathLike[str], stride: int | None = None, **_settings_of_the_harness: Any):
        super().__init__()
        self.artifact = load_artifact(Path(artifact))
        context = self.artifact.model.config.context
        self.protocol = Full(window=context) if stride is None else Sliding(window=context, stride=stride)

    def _tokens(self, text: str) -> list[int]:
        return self.artifact.tokenizer.encode_exact(text.encode())

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """The log-likelihood of each whole text, every token once, from BOS on; the end of the text is not scored."""
        tapes = [new_tape(np.array([BOS_ID, *self._tokens(request.args[0])]), self.protocol) for request in requests]
        score_tapes(self.artifact.model, tapes, self.protocol, DTYPE)
        return [-float(tape.nats.sum()) for tape in tapes]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log-likelihood, and whether greedy decoding would write it."""
        return [self._continuation(*request.args) for request in requests]

    def _continuation(self, context: str, continuation: str) -> tuple[float, bool]:
        # Spaces at the context's end belong to the continuation's first piece, as in the harness's own models.
        stripped = context.rstrip()
        context, continuation = stripped, context[len(stripped) :] + continuation
        before = len(self._tokens(context)) + 1
        ids = [BOS_ID, *self._tokens(context + continuation)]
        targets = torch.tensor(ids[before:], dtype=torch.int64)
        window = self.artifact.model.config.context
        if len(targets) > window:
            raise UserError(f"a continuation of {len(targets)} tokens does not fit the model's context of {window}")
        inputs = ids[:-1][-window:]
        with torch.inference_mode():
            logits = self.artifact.model.logits(torch.tensor([inputs]), DTYPE)[0, len(inputs) - len(targets) :]
        log_p = torch.log_softmax(logits.double(), -1).gather(1, targets[:, None])
        return float(log_p.sum()), bool((logits.argmax(-1) == targets).all())

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Each context continued up to the first of its stop texts, which is left out."""
        return [self._continue(*request.args) for request in requests]

    def _continue(self, context: str, settings: dict[str, Any]) -> str:
        until = settings.get("until", [])
        stops = [until] if isinstance(until, str) else until
        temperature = float(settings.get("temperature", 0.0)) if settings.get("do_sample", True) else 0.0
        written = b""
        for piece in generate(
            self.artifact, context.encode(), temperature=temperature, top_p=float(settings.get("top_p", 1.0)),
            num_tokens=int(settings.get("max_gen_toks", MAX_NEW_TOKENS)),
        ):  # fmt: skip
            written += piece
            text = written.decode("utf-8", "replace")
            ends = [text.find(stop) for stop in stops if stop and stop in text]
            if ends:
                return text[: min(ends)]
        return written.decode("utf-8", "replace")
