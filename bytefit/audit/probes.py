"""Questions that any scorer must answer, ours or a stranger's: it is a black box that says what each target cost.

A scorer is a callable from tokens (N,) to nats (N - 1,): entry t is the cost of token t + 1. An honest one gives every target a
probability that depends on the tokens before it alone, and those of all alternatives sum to one. Each probe changes what an honest scorer
does not look at, and watches that nothing moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bytefit.data.tokenizer import BOS_ID

Scorer = Callable[[np.ndarray], np.ndarray]
TOLERANCE = 1e-4  # nats; a batch of another shape moves an honest fp32 score by less


@dataclass(frozen=True)
class Answer:
    """Whether a probe found nothing wrong, and what it saw."""

    holds: bool
    evidence: str


def future_change(scorer: Scorer, tokens: np.ndarray, vocab_size: int, *, cuts: Sequence[int] | None = None, seed: int = 0) -> Answer:
    """Replace everything after a position; no cost up to it may move.

    What moves used later tokens: it trained before scoring, scored again, or chose in hindsight.
    """
    rng = np.random.default_rng(seed)
    before = scorer(tokens)
    cuts = cuts if cuts is not None else [len(tokens) // 4, len(tokens) // 2, len(tokens) - 2]
    for cut in cuts:
        changed = tokens.copy()
        changed[cut + 1 :] = rng.integers(0, vocab_size, len(tokens) - cut - 1)
        moved = np.abs(scorer(changed)[:cut] - before[:cut]).max(initial=0.0)
        if not moved <= TOLERANCE:
            return Answer(False, f"changing the tokens after {cut} moves a cost before them by {moved:.3g} nats")
    return Answer(True, f"changing the tokens after {', '.join(map(str, cuts))} moves no cost before them by more than {TOLERANCE:g} nats")


def prefix_alone(scorer: Scorer, tokens: np.ndarray, cuts: Sequence[int] | None = None) -> Answer:
    """Score only the beginning; its costs must be those that the whole gives it."""
    whole = scorer(tokens)
    if len(whole) != len(tokens) - 1:
        return Answer(False, f"{len(tokens)} tokens gave {len(whole)} costs instead of {len(tokens) - 1}")
    for cut in cuts if cuts is not None else (len(tokens) // 3, 2 * len(tokens) // 3):
        part = scorer(tokens[: cut + 1])
        moved = np.abs(part - whole[:cut]).max(initial=0.0) if len(part) == cut else np.inf
        if not moved <= TOLERANCE:
            return Answer(False, f"the first {cut} targets cost something else (by {moved:.3g} nats) when the text ends there")
    return Answer(True, "the beginning costs the same when the text ends there")


def sums_to_one(scorer: Scorer, tokens: np.ndarray, vocab_size: int, positions: Sequence[int] | None = None) -> Answer:
    """Put every id of the vocabulary in a target's place; their probabilities must sum to one.

    What does not sum to one looked at the target: in a lookup key, a gate, a choice of experts or of mixing weights; or never was a
    distribution over the vocabulary.
    """
    for position in positions if positions is not None else (1, len(tokens) // 2, len(tokens) - 1):
        total = 0.0
        for token in range(vocab_size):
            changed = tokens[: position + 1].copy()
            changed[position] = token
            total += float(np.exp(-scorer(changed)[position - 1]))
        if not abs(total - 1) <= 1e-3:
            return Answer(False, f"the probabilities of all {vocab_size} ids at position {position} sum to {total:.5g}")
    return Answer(True, f"the probabilities of all {vocab_size} ids sum to one")


def rows_sum_to_one(probabilities: np.ndarray) -> Answer:
    """The same of distributions (…, V) that are at hand as a whole."""
    totals = probabilities.reshape(-1, probabilities.shape[-1]).sum(-1)
    worst = float(np.abs(totals - 1).max(initial=0.0))
    good = worst <= 1e-3 and bool((probabilities >= 0).all())
    return Answer(good, f"{len(totals)} distributions over {probabilities.shape[-1]} ids sum to one within {worst:.1g}")


def documents_apart(scorer: Scorer, tokens: np.ndarray, vocab_size: int, *, seed: int = 0) -> Answer:
    """Replace the content of a document; the documents after it must cost what they did."""
    rng = np.random.default_rng(seed)
    starts = np.flatnonzero(tokens == BOS_ID)
    if len(starts) < 2:
        return Answer(False, f"there are {len(starts)} documents; two are needed to see whether one leaks into the other")
    before = scorer(tokens)
    changed = tokens.copy()
    inside = np.arange(starts[0] + 1, starts[1])
    changed[inside] = rng.choice(np.setdiff1d(np.arange(vocab_size), [BOS_ID]), len(inside))
    moved = np.abs(scorer(changed)[starts[1] :] - before[starts[1] :]).max(initial=0.0)
    return Answer(moved <= TOLERANCE, f"another first document moves the costs in later ones by at most {moved:.3g} nats")


@dataclass
class Witness:
    """Stands between a harness and an adaptive predictor, and keeps a digest of every score before each update.

    Attributes:
        events: in order: ("score", first target, last target, digest of the costs) and ("learn", first, last, "").
    """

    tokens: np.ndarray
    events: list[tuple[str, int, int, str]] = field(default_factory=list)
    reported: list[np.ndarray] = field(default_factory=list)

    def saw_scores(self, first: int, nats: np.ndarray) -> None:
        """Costs of the targets from ``first`` on were reported."""
        digest = hashlib.sha256(np.ascontiguousarray(nats, dtype=np.float64).tobytes()).hexdigest()
        self.events.append(("score", first, first + len(nats) - 1, digest))
        self.reported.append(np.asarray(nats, dtype=np.float64))

    def saw_learning(self, first: int, last: int) -> None:
        """The targets ``first … last`` were handed to a learner."""
        self.events.append(("learn", first, last, ""))

    def answer(self, total_nats: float) -> Answer:
        """Every target once, every token scored before it is learned from, and the sum that was claimed."""
        times = np.zeros(len(self.tokens), dtype=np.int64)
        for kind, first, last, _ in self.events:
            if kind == "score":
                times[first : last + 1] += 1
                continue
            if not times[first : last + 1].all():
                return Answer(False, f"targets {first} to {last} were learned from before they were all scored")
        if (times[1:] != 1).any():
            wrong = int(np.flatnonzero(times[1:] != 1)[0]) + 1
            return Answer(False, f"target {wrong} was scored {times[wrong]} times")
        kept = float(sum(nats.sum() for nats in self.reported))
        if abs(kept - total_nats) > 1e-6 * max(1.0, abs(kept)):
            return Answer(False, f"{total_nats:.6g} nats are claimed; the scores before each update sum to {kept:.6g}")
        updates = sum(kind == "learn" for kind, *_ in self.events)
        return Answer(True, f"{int(times[1:].sum())} targets, each once, each before the first of {updates} updates that saw it")


def denominator(claimed_bytes: int, documents: Sequence[bytes]) -> Answer:
    """The bytes that a score is divided by, recounted from the documents themselves."""
    real = sum(map(len, documents))
    share = claimed_bytes / real - 1 if real else float("inf")
    return Answer(claimed_bytes == real, f"{claimed_bytes:,} bytes claimed, {real:,} in {len(documents):,} documents ({share:+.3%})")
