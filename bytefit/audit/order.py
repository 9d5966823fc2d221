"""Classes 1, 3 to 10 and 14: what a score may depend on. The artifact itself is probed, under the protocols that the run used, with shorter
chunks and longer strides where a few windows would otherwise not show them or take minutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from bytefit.audit.evidence import Evidence
from bytefit.audit.findings import Finding, failed, judged, passed, skipped
from bytefit.audit.probes import Answer, Scorer, documents_apart, future_change, prefix_alone
from bytefit.data.tokenizer import BOS_ID
from bytefit.model.language_model import LanguageModel
from bytefit.score.adapt import Adapt, DocumentLora
from bytefit.score.predictor import ModelPredictor
from bytefit.score.scorer import ScoreProtocol, score_tapes, target_nats
from bytefit.score.tape import Tape
from bytefit.score.windows import Sliding

PROBE_WINDOWS = 5  # windows of text that a probe scores
PROBE_TOKENS = 2560  # but of long windows only as many as this holds, and at least two
PROBE_ROWS = 256  # targets in a window whose distributions are made one by one
RowMaker = Callable[[int, float], np.ndarray]  # (target, temperature) → probabilities (V,), from the tokens before the target alone


def check_order(run: Evidence) -> list[Finding]:
    small = {name: short(run.protocol(name)) for name in run.scored}
    longest = max((protocol.window for protocol in small.values()), default=1)
    tokens = run.tokens[: max(2 * longest, min(PROBE_WINDOWS * longest, PROBE_TOKENS)) + 1]
    vocab_size = run.dataset.tokenizer.vocab_size
    scorers: dict[str, Scorer] = {name: _scorer(run, protocol) for name, protocol in small.items()}
    future = {name: future_change(scorer, tokens, vocab_size) for name, scorer in scorers.items()}
    prefix = {name: prefix_alone(scorer, tokens) for name, scorer in scorers.items() if not isinstance(small[name], Adapt)}
    row = row_maker(run.artifact.model, tokens)
    rows = {name: read_from_rows(row, scorers[name], protocol, tokens) for name, protocol in small.items()}
    learns = any(isinstance(protocol, Adapt | DocumentLora) for protocol in small.values())
    no_learning = "no protocol of this run learns while it scores"
    return [
        _all(1, future),
        _all(3, future) if learns else skipped(3, no_learning),
        _all(4, {f"{name}, its beginning alone": answer for name, answer in prefix.items()} | future),
        *(_all(number, rows) for number in (5, 6, 7, 8, 9)),
        skipped(10, "nothing is compiled or warmed up on validation text")
        if not learns
        else judged(10, _untouched(run, small), "the artifact's weights are the same before and after scoring"),
        _documents(run, small, tokens),
    ]


def short(protocol: ScoreProtocol) -> ScoreProtocol:
    """The same protocol with chunks so short that two windows hold several, and, where windows are long, with fewer of them."""
    if isinstance(protocol, Adapt | Sliding):
        protocol = replace(protocol, stride=max(protocol.stride, protocol.window // 16))
    if isinstance(protocol, Adapt):
        protocol = replace(protocol, chunk_tokens=min(protocol.chunk_tokens, max(protocol.window // 2, 1)), epochs=1)
    return protocol


def _scorer(run: Evidence, protocol: ScoreProtocol) -> Scorer:
    """Probes ask for some texts again and again; each is scored once."""

    @cache
    def score_text(text: bytes) -> np.ndarray:
        return target_nats(run.artifact.model, np.frombuffer(text, dtype=np.int64).copy(), protocol, torch.float32)

    return lambda tokens: score_text(tokens.astype(np.int64).tobytes())


def _all(number: int, answers: dict[str, Answer]) -> Finding:
    for name, answer in answers.items():
        if not answer.holds:
            return failed(number, f"{name}: {answer.evidence}")
    if not answers:
        return failed(number, "score.json holds no score of the artifact")
    name, answer = next(iter(answers.items()))
    return passed(number, f"{', '.join(answers)}: {answer.evidence}")


def row_maker(model: LanguageModel, tokens: np.ndarray) -> RowMaker:
    @cache
    @torch.inference_mode()
    def row(target: int, temperature: float) -> np.ndarray:
        predictor = ModelPredictor(model, torch.float32, temperature)
        return torch.softmax(predictor.logits(torch.from_numpy(tokens[None, :target]), target - 1)[0, 0].double(), -1).numpy()

    return row


def read_from_rows(row: RowMaker, scorer: Scorer, protocol: ScoreProtocol, tokens: np.ndarray) -> Answer:
    """Whether what targets cost is what distributions say that are made from the tokens before each target alone, and sum to one.

    As far as nothing was learned yet; from there on the same code goes on with other weights.
    """
    last, temperature = min(protocol.window, len(tokens) - 1), 1.0
    if isinstance(protocol, Adapt | DocumentLora):
        last, temperature = min(protocol.chunk_tokens, last), protocol.temperature
    if isinstance(protocol, DocumentLora):  # the next document starts afresh; the BOS before it belongs to this one
        last = min([last, *np.flatnonzero(tokens[1:] == BOS_ID) + 1])
    targets = sorted({*range(1, last + 1, -(-protocol.window // PROBE_ROWS)), last})
    costs, worst, sums, vocab_size = scorer(tokens), 0.0, 0.0, 0
    for target in targets:
        probabilities = row(target, temperature)
        vocab_size = len(probabilities)
        worst = max(worst, abs(float(costs[target - 1]) + float(np.log(probabilities[tokens[target]]))))
        sums = max(sums, abs(float(probabilities.sum()) - 1))
    evidence = f"{len(targets)} costs are those of distributions over {vocab_size} ids made without the target, within {worst:.1g} nats"
    return Answer(worst <= 1e-3 and sums <= 1e-3, evidence)


def _untouched(run: Evidence, protocols: dict[str, ScoreProtocol]) -> bool:
    before = [p.detach().clone() for p in run.artifact.model.parameters()]
    for protocol in protocols.values():
        score_tapes(run.artifact.model, [Tape(run.tokens[: 2 * protocol.window])], protocol, torch.float32)
    return all(torch.equal(a, b) for a, b in zip(before, run.artifact.model.parameters(), strict=True))


def _documents(run: Evidence, protocols: dict[str, ScoreProtocol], tokens: np.ndarray) -> Finding:
    apart = {name: protocol for name, protocol in protocols.items() if isinstance(protocol, DocumentLora)}
    if not apart:
        return skipped(14, "windows run on across documents, as the contest's do, and say so; nothing is claimed to be apart")
    starts = np.flatnonzero(run.tokens == BOS_ID)
    if len(starts) < 2:
        return skipped(14, "the text is one document; there is no other that could leak into it")
    head = run.tokens[: starts[2] + 1] if len(starts) > 2 else run.tokens
    vocab_size = run.dataset.tokenizer.vocab_size
    return _all(14, {name: documents_apart(_scorer(run, protocol), head, vocab_size) for name, protocol in apart.items()})
