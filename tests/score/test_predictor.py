"""Which windows are compiled, that they really are, and that costs stay what they are."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from bytefit.ranks import Ranks
from bytefit.score import predictor
from bytefit.score.adapt import Adapt, Sgd
from bytefit.score.harness import batch_shapes
from bytefit.score.predictor import worth_compiling
from bytefit.score.scorer import target_nats
from bytefit.score.tape import Tape
from bytefit.score.windows import Full, Sliding

PROTOCOLS = {
    "full": Full(window=8),
    "sliding": Sliding(window=8, stride=3),
    "adapt": Adapt(
        window=8, stride=3, chunk_tokens=30, optimizer=Sgd(lr=0.05), epochs=2, batch_sequences=2, ema_decay=0.5, temperature=0.9
    ),
}


@pytest.fixture
def few_tokens_a_batch(monkeypatch):
    from bytefit.score import harness

    monkeypatch.setitem(harness.BATCH_TOKENS, "cpu", 32)


def test_shapes_are_those_of_the_walk(tiny_model, tokens, few_tokens_a_batch, monkeypatch) -> None:
    """For every protocol, and for each of two ranks."""
    for protocol in PROTOCOLS.values():
        seen: Counter = Counter()

        def logits(self, ids_BT, skip, seen=seen):
            seen[(*ids_BT.shape, skip)] += 1
            return self._logits(ids_BT, skip)

        with monkeypatch.context() as patch:
            patch.setattr(predictor.ModelPredictor, "logits", logits)
            target_nats(tiny_model, tokens, protocol, torch.float32)
        assert seen == batch_shapes([Tape(tokens)], protocol, Ranks(0, 1, "cpu"))
    halves = [batch_shapes([Tape(tokens)], PROTOCOLS["sliding"], Ranks(rank, 2, "cpu")) for rank in range(2)]
    windows = sum(batch * count for half in halves for (batch, _, _), count in half.items())
    assert windows == len(PROTOCOLS["sliding"].windows(len(tokens)))


def test_what_pays(tiny_model, monkeypatch) -> None:
    """The shape with most positions, from so many multiplications; blocks that run twice count twice."""
    shapes = Counter({(4, 8, 5): 10, (1, 8, 0): 3, (2, 8, 5): 12})
    assert worth_compiling(tiny_model, shapes) is None
    assert worth_compiling(tiny_model, Counter()) is None
    work = 4 * 8 * 10 * sum(p.numel() for p in tiny_model.blocks.parameters())
    monkeypatch.setitem(predictor.COMPILE_FROM, "cpu", work)
    assert worth_compiling(tiny_model, shapes) == (4, 8, 5)
    monkeypatch.setitem(predictor.COMPILE_FROM, "cpu", work + 1)
    assert worth_compiling(tiny_model, shapes) is None
    monkeypatch.setattr(tiny_model, "plan", (*tiny_model.plan, dataclasses.replace(tiny_model.plan[0], push=False)))
    assert worth_compiling(tiny_model, shapes) == (4, 8, 5)


@pytest.mark.parametrize("name", ["sliding", "adapt"])
def test_compiled_costs_are_the_eager_ones(tiny_model, tokens, name, few_tokens_a_batch, monkeypatch) -> None:
    """Of one graph, which sees what is learned between chunks."""
    eager = target_nats(tiny_model, tokens, PROTOCOLS[name], torch.float32)
    monkeypatch.setitem(predictor.COMPILE_FROM, "cpu", 1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = target_nats(tiny_model, tokens, PROTOCOLS[name], torch.float32)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert np.abs(compiled - eager).max() < 1e-4
    if name == "adapt":
        still = dataclasses.replace(PROTOCOLS[name], epochs=1, train_chunks=0)
        assert np.abs(target_nats(tiny_model, tokens, still, torch.float32) - compiled).max() > 1e-2


def test_graphs_of_several_shapes(tiny_model, tokens, few_tokens_a_batch, monkeypatch) -> None:
    """Also beyond the number at which the compiler would leave a function at eager ones (eight, unless it is told otherwise)."""
    monkeypatch.setitem(predictor.COMPILE_FROM, "cpu", 1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(recompile_limit=1):
        for window in (4, 5):
            target_nats(tiny_model, tokens, Full(window=window), torch.float32)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_without_a_compiler_scoring_goes_on(tiny_model, tokens, few_tokens_a_batch, no_compiler, monkeypatch, capsys) -> None:
    eager = target_nats(tiny_model, tokens, PROTOCOLS["sliding"], torch.float32)
    monkeypatch.setitem(predictor.COMPILE_FROM, "cpu", 1)
    with no_compiler():
        assert np.array_equal(target_nats(tiny_model, tokens, PROTOCOLS["sliding"], torch.float32), eager)
    said = [line for line in capsys.readouterr().err.splitlines() if "torch.compile" in line]
    assert len(said) == 1
    assert "scoring eagerly" in said[0]
    assert "C++ compiler" in said[0]
