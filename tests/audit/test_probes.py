"""Every kind of dishonest scorer that a probe can catch, planted; and honest ones, which must pass."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from bytefit.audit.probes import Witness, denominator, documents_apart, future_change, prefix_alone, rows_sum_to_one, sums_to_one
from bytefit.data.tokenizer import BOS_ID
from bytefit.score.adapt import Adapt, DocumentLora, Sgd
from bytefit.score.learner import Learner
from bytefit.score.scorer import score_tapes, target_nats
from bytefit.score.tape import Tape
from bytefit.score.windows import Full, Sliding
from tests.score.conftest import make_model

V = 12
RNG = np.random.default_rng(5)
TEXT = np.concatenate([[BOS_ID], RNG.integers(2, V, 30), [BOS_ID], RNG.integers(2, V, 25), [BOS_ID], RNG.integers(2, V, 20)])


def counts_of(tokens, upto: int) -> np.ndarray:
    """Smoothed counts of the tokens before position ``upto``."""
    return np.bincount(tokens[:upto], minlength=V) + 1.0


def unigram(tokens, upto: int) -> np.ndarray:
    counts = counts_of(tokens, upto)
    return counts / counts.sum()


def bigram(tokens, upto: int) -> np.ndarray:
    counts = np.ones(V)
    for a, b in pairwise(tokens[:upto]):
        counts[b] += a == tokens[upto - 1]
    return counts / counts.sum()


def per_target(probability):
    """A scorer from a function (tokens, position) to the probability of the token there."""
    return lambda tokens: np.array([-np.log(probability(tokens, t)) for t in range(1, len(tokens))])


honest = per_target(lambda tokens, t: unigram(tokens, t)[tokens[t]])
mixed = per_target(lambda tokens, t: (0.5 * unigram(tokens, t) + 0.5 * bigram(tokens, t))[tokens[t]])


def start_of_document(tokens, t: int) -> int:
    return int(np.flatnonzero(tokens[:t] == BOS_ID)[-1])


apart = per_target(lambda tokens, t: unigram(tokens[start_of_document(tokens, t) :], t - start_of_document(tokens, t))[tokens[t]])


def trained_first(tokens):
    """Class 1: the whole text is learned from, then scored."""
    counts = counts_of(tokens, len(tokens))
    return -np.log(counts / counts.sum())[tokens[1:]]


def best_of_epochs(tokens):
    """Class 2: a second pass over what the first has learned; the better of the two for each target is reported."""
    return np.minimum(honest(tokens), trained_first(tokens))


def slot(tokens, size: int = 8):
    """Class 3: a bias is fitted to the very tokens of the block that it then scores."""
    out = []
    for start in range(1, len(tokens), size):
        block = tokens[start : start + size]
        counts = counts_of(tokens, start) + 3.0 * np.bincount(block, minlength=V)
        out.append(-np.log(counts / counts.sum())[block])
    return np.concatenate(out)


def second_pass(tokens):
    """Class 4: everything is scored once, and once more by what that has taught."""
    return honest(np.concatenate([tokens, tokens]))[len(tokens) :]


def target_in_key(tokens):
    """Class 5: a table whose key holds the target gives the probability of the target alone."""
    table = {}
    costs = []
    for t in range(1, len(tokens)):
        hits, seen = table.get((tokens[t - 1], tokens[t]), 0), t
        costs.append(-np.log((hits + 1.0) / (hits + 1.0 + 0.2 * seen)))
        table[tokens[t - 1], tokens[t]] = hits + 1
    return np.array(costs)


unnormalised = per_target(lambda tokens, t: unigram(tokens, t)[tokens[t]] + bigram(tokens, t)[tokens[t]])  # class 6
LENGTHS = 1 + np.arange(V) % 4


def byte_mixture(tokens):
    """Class 7: a token's probability is spread over its bytes as p ** (1 / n) and mixed with a byte model's."""
    out = []
    for t in range(1, len(tokens)):
        n = LENGTHS[tokens[t]]
        out.append(-n * np.log(0.5 * unigram(tokens, t)[tokens[t]] ** (1 / n) + 0.5 / 8))
    return np.array(out)


gate = per_target(lambda tokens, t: (bigram if tokens[t] % 3 == 0 else unigram)(tokens, t)[tokens[t]])  # class 8
oracle = per_target(lambda tokens, t: max(bigram(tokens, t)[tokens[t]], unigram(tokens, t)[tokens[t]]))  # class 9


def test_honest_scorers_pass() -> None:
    for scorer in (honest, mixed, apart):
        for answer in (future_change(scorer, TEXT, V), prefix_alone(scorer, TEXT), sums_to_one(scorer, TEXT, V)):
            assert answer.holds, answer.evidence
    assert documents_apart(apart, TEXT, V).holds


@pytest.mark.parametrize(
    ("scorer", "probe", "names"),
    [
        (trained_first, future_change, "changing the tokens after"),
        (best_of_epochs, future_change, "changing the tokens after"),
        (slot, sums_to_one, "sum to"),
        (second_pass, prefix_alone, "cost something else"),
        (target_in_key, sums_to_one, "sum to"),
        (unnormalised, sums_to_one, "sum to 2"),
        (byte_mixture, sums_to_one, "sum to"),
        (gate, sums_to_one, "sum to"),
        (oracle, sums_to_one, "sum to 1."),
        (honest, documents_apart, "moves the costs in later ones"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_planted_faults_are_caught(scorer, probe, names) -> None:
    """Classes 1 to 9 and 14: each by the probe that is made for it."""
    answer = probe(scorer, TEXT) if probe is prefix_alone else probe(scorer, TEXT, V)
    assert not answer.holds
    assert names in answer.evidence


def test_a_dropped_target_is_noticed() -> None:
    assert not prefix_alone(lambda tokens: honest(tokens)[:-1], TEXT).holds


def test_distributions_at_hand() -> None:
    good = np.full((3, 5, 4), 0.25)
    assert rows_sum_to_one(good).holds
    bad = good.copy()
    bad[1, 2, 3] += 0.01
    assert not rows_sum_to_one(bad).holds
    negative = good.copy()
    negative[0, 0] = [1.5, -0.5, 0, 0]
    assert not rows_sum_to_one(negative).holds


# A witness of the order


def events(witness: Witness, order) -> None:
    for kind, first, last in order:
        if kind == "score":
            witness.saw_scores(first, np.ones(last - first + 1))
        else:
            witness.saw_learning(first, last)


@pytest.mark.parametrize(
    ("order", "total", "names"),
    [
        ([("score", 1, 5), ("learn", 1, 5), ("score", 6, 9)], 9.0, ""),
        ([("learn", 1, 5), ("score", 1, 9)], 9.0, "learned from before"),  # class 10: a warm-up on validation tokens
        ([("score", 1, 5), ("learn", 1, 6), ("score", 6, 9)], 9.0, "learned from before"),
        ([("score", 1, 9), ("score", 9, 9)], 10.0, "target 9 was scored 2 times"),  # class 22
        ([("score", 1, 8)], 8.0, "target 9 was scored 0 times"),  # class 21
        ([("score", 1, 9)], 8.0, "8 nats are claimed"),  # another number than was scored before the updates
    ],
)
def test_the_witness(order, total, names) -> None:
    witness = Witness(np.arange(10))
    events(witness, order)
    answer = witness.answer(total)
    assert answer.holds == (not names), answer.evidence
    assert names in answer.evidence


def test_the_witness_of_our_own_harness(monkeypatch) -> None:
    """The real harness and the real learner, watched from outside."""
    model, tokens = make_model(), np.concatenate([[1], np.random.default_rng(0).integers(2, 37, 120)])
    witness, tape = Witness(tokens), Tape(tokens)
    real_book, real_learn, size = Tape.book, Learner.learn, 20

    def book(self, window, nats):
        real_book(self, window, nats)
        witness.saw_scores(window.first, nats)

    def learn(self, pieces, chunk):
        witness.saw_learning(chunk * size + 1, min((chunk + 1) * size, len(tokens) - 1))
        real_learn(self, pieces, chunk)

    monkeypatch.setattr(Tape, "book", book)
    monkeypatch.setattr(Learner, "learn", learn)
    steps = score_tapes(model, [tape], Adapt(window=8, stride=3, chunk_tokens=size, optimizer=Sgd(lr=0.05)), torch.float32)
    assert steps > 0
    assert witness.answer(float(tape.nats.sum())).holds
    assert len({digest for kind, *_, digest in witness.events if kind == "score"}) > 30


def test_denominators() -> None:
    documents = ["naïve".encode(), b"two"]
    assert denominator(9, documents).holds
    answer = denominator(10, documents)
    assert not answer.holds
    assert "+11.111%" in answer.evidence


# Ours


@pytest.mark.parametrize(
    "protocol",
    [
        Full(window=8),
        Sliding(window=8, stride=3),
        Adapt(window=8, stride=3, chunk_tokens=16, optimizer=Sgd(lr=0.05), temperature=0.95),
        DocumentLora(window=8, chunk_tokens=4, lr=0.02),
    ],
    ids=lambda protocol: type(protocol).__name__,
)
def test_our_own_protocols_pass(protocol) -> None:
    model = make_model()
    tokens = np.concatenate([[1], RNG.integers(2, 37, 20), [1], RNG.integers(2, 37, 25), [1], RNG.integers(2, 37, 11)])

    def scorer(text):
        return target_nats(model, text, protocol, torch.float32)

    assert future_change(scorer, tokens, 37).holds
    # 13: after a chunk was learned from; for documents, in the second chunk of the second one
    assert sums_to_one(scorer, tokens, 37, positions=(1, 20, 29)).holds
    if not isinstance(protocol, Adapt):  # its rate goes by how many chunks there are
        assert prefix_alone(scorer, tokens).holds
    if isinstance(protocol, DocumentLora):
        assert documents_apart(scorer, tokens, 37).holds
    else:
        assert not documents_apart(scorer, tokens, 37).holds


def test_a_leak_of_a_thousandth_of_a_nat_is_seen() -> None:
    tokens = np.arange(40) % 7 + 3
    leaks = lambda text: np.full(len(text) - 1, 1.0) - 1e-3 * (text[-1] % 2)  # noqa: E731
    assert not future_change(leaks, tokens, 37).holds
    assert future_change(lambda text: np.full(len(text) - 1, 1.0), tokens, 37).holds
