"""The probes of a run's own scorer, with scorers that cheat."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from bytefit.audit import order
from bytefit.audit.evidence import Evidence
from bytefit.audit.order import check_order
from bytefit.config import to_json
from bytefit.data.tokenizer import BOS_ID
from bytefit.run.folder import RunFolder
from bytefit.score.adapt import Adapt, DocumentLora
from bytefit.score.learner import Learner
from bytefit.score.windows import Full, Sliding
from tests.audit.planting import edit, stream, verdicts


@pytest.mark.parametrize(
    ("numbers", "cheat"),
    [
        ((1, 3, 4), lambda real, tokens: real(tokens) - 0.01 * np.arange(len(tokens) - 1)[::-1] * (tokens[-1] % 2)),  # looks ahead
        ((4,), lambda real, tokens: real(tokens) * (1 - 0.001 * len(tokens))),  # depends on how long the text is
        ((5, 6, 7, 8, 9), lambda real, tokens: real(tokens) - np.log(2)),  # twice the probability
        ((5, 6, 7, 8, 9), lambda real, tokens: np.where(tokens[1:] % 3 == 0, 0.5, 1.0) * real(tokens)),  # a gate on the target
    ],
)
def test_a_dishonest_scorer_is_named(finished, dataset, monkeypatch, numbers, cheat) -> None:
    """Classes 1 to 9 with the run's own scorer replaced."""
    real = order.target_nats
    monkeypatch.setattr(order, "target_nats", lambda model, tokens, *rest: cheat(lambda t: real(model, t, *rest), tokens))
    found = verdicts(check_order(Evidence(finished, finished.read_recipe(), dataset)))
    assert all(found[number] == "fail" for number in numbers), found


def test_long_windows_are_probed_with_fewer_of_them(finished, dataset) -> None:
    """Strides and chunks are such that two windows hold several; a changed last target of a window is still seen."""
    sliding, adapt = (
        order.short(protocol) for protocol in (Sliding(window=2048, stride=64), Adapt(window=2048, stride=64, chunk_tokens=9999))
    )
    assert (sliding.stride, adapt.stride, adapt.chunk_tokens, adapt.epochs) == (128, 128, 1024, 1)
    assert order.short(Sliding(window=512, stride=64)) == Sliding(window=512, stride=64)
    run = Evidence(finished, finished.read_recipe(), dataset)
    window = run.artifact.model.config.context
    tokens = run.tokens[: window + 1]
    row, protocol = order.row_maker(run.artifact.model, tokens), Full(window=window)
    real = order.target_nats(run.artifact.model, tokens, protocol, torch.float32)
    few = 0
    for wrong in (None, 0, window - 1):
        costs = real.copy()
        if wrong is not None:
            costs[wrong] -= 0.1
        for rows in (order.PROBE_ROWS, 7):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(order, "PROBE_ROWS", rows)
                answer = order.read_from_rows(row, lambda _, costs=costs: costs, protocol, tokens)
            assert answer.holds == (wrong is None)
            few += answer.evidence.startswith("8 costs")
    assert few == 3


def test_weights_that_scoring_leaves_changed_are_named(finished, dataset, monkeypatch) -> None:
    """Class 10: as a warm-up on validation tokens would leave them."""
    assert verdicts(check_order(Evidence(finished, finished.read_recipe(), dataset)))[10] == "pass"
    monkeypatch.setattr(Learner, "__exit__", lambda self, *error: None)
    assert verdicts(check_order(Evidence(finished, finished.read_recipe(), dataset)))[10] == "fail"


def test_documents_that_are_not_apart_are_named(finished, dataset, tmp_path, monkeypatch) -> None:
    """Class 14, where a protocol says that they are."""
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    folder = RunFolder(copy)
    protocol = DocumentLora(window=64, chunk_tokens=32, lr=0.002)
    edit(folder.score, lambda record: record["adapt"].update(protocol=to_json(protocol)))
    assert verdicts(check_order(Evidence(folder, folder.read_recipe(), dataset)))[14] == "pass"
    real = order.target_nats
    monkeypatch.setattr(order, "target_nats", lambda model, tokens, _, dtype: real(model, tokens, Sliding(window=64, stride=8), dtype))
    assert verdicts(check_order(Evidence(folder, folder.read_recipe(), dataset)))[14] == "fail"


@pytest.mark.parametrize("length", [20, 4000])
def test_short_documents_are_no_fault(finished, dataset, tmp_path, length) -> None:
    """The first document may end before a window, or be all there is; what the next one costs comes from a fresh start, and says so."""
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    folder = RunFolder(copy)
    edit(folder.score, lambda record: record["adapt"].update(protocol=to_json(DocumentLora(window=64, chunk_tokens=32, lr=0.002))))
    tokens = dataset.val.all()
    inside = tokens[tokens != BOS_ID]
    cut = np.insert(inside[:4000], np.arange(0, 4000, length), BOS_ID)
    data = dataclasses.replace(dataset, val=stream(cut))
    booked = {"targets": len(cut) - 1, "blocks": [[len(cut) - 1, 1.0, 1]]}
    edit(folder.score, lambda record: [record[name].update(booked) for name in ("full", "sliding", "adapt")])
    recipe = folder.read_recipe()
    recipe = dataclasses.replace(recipe, score=dataclasses.replace(recipe.score, max_bytes=None))
    found = verdicts(check_order(Evidence(folder, recipe, data)))
    assert "fail" not in found.values(), found
    assert found[14] == ("pass" if length == 20 else "not applicable")


def test_rows_that_do_not_sum_to_one_are_named(finished, dataset) -> None:
    """Though every target has the probability that it was charged."""
    run = Evidence(finished, finished.read_recipe(), dataset)
    tokens = run.tokens[:9]
    row, protocol = order.row_maker(run.artifact.model, tokens), Full(window=8)
    costs = order.target_nats(run.artifact.model, tokens, protocol, torch.float32)

    def more(target: int, temperature: float) -> np.ndarray:
        probabilities = row(target, temperature).copy()
        probabilities[(tokens[target] + 1) % len(probabilities)] += 0.01
        return probabilities

    assert order.read_from_rows(row, lambda _: costs, protocol, tokens).holds
    assert not order.read_from_rows(more, lambda _: costs, protocol, tokens).holds
