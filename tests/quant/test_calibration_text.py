"""Where calibration text comes from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bytefit.data.shards import TokenStream
from bytefit.data.tokenizer import BOS_ID
from bytefit.errors import UserError
from bytefit.quant.calibrate import (
    CalibrationConfig,
    ModelText,
    OwnText,
    RandomIds,
    TrainingText,
    calibration_batches,
    collect,
)
from tests.quant.tools import TOKENIZER, VOCAB, tiny_model


def text_stream(tokens: int = 4000) -> TokenStream:
    return TokenStream([np.arange(tokens, dtype=np.uint16) % (VOCAB - 4) + 4])


def read(source, *, windows: int = 7, batch_windows: int = 3, seed: int = 0, seq_len: int = 16, train: TokenStream | None = None, **others):
    config = CalibrationConfig(source=source, windows=windows, batch_windows=batch_windows)
    stream = train if train is not None else text_stream()
    return list(calibration_batches(config, tiny_model(), train=stream, tokenizer=TOKENIZER, seq_len=seq_len, seed=seed, **others))


@pytest.mark.parametrize("source", ["training", "model", "random", "own"])
def test_every_source_gives_the_windows_that_were_asked_for(source, write) -> None:
    own = write("own.txt", "Every good boy deserves fruit. " * 20)
    made = {"training": TrainingText(), "model": ModelText(), "random": RandomIds(), "own": OwnText(path=str(own))}[source]
    got = read(made)
    assert [batch.shape for batch in got] == [(3, 16), (3, 16), (1, 16)]
    assert all(batch.dtype == torch.int64 and int(batch.min()) >= 0 and int(batch.max()) < VOCAB for batch in got)
    together = torch.cat(got)
    assert len({tuple(row) for row in together.tolist()}) == 7
    assert torch.equal(together, torch.cat(read(made)))
    other = torch.cat(read(made, seed=1))
    assert torch.equal(together, other) == (source in ("training", "own"))


def test_training_text_is_spread_evenly() -> None:
    stream = TokenStream([np.arange(1000, dtype=np.uint16)])
    got = torch.cat(read(TrainingText(), windows=5, train=stream))
    assert sorted(got[:, 0].tolist()) == [0, 246, 492, 738, 984]
    assert all(row.tolist() == list(range(int(row[0]), int(row[0]) + 16)) for row in got)


@pytest.mark.parametrize("first", [9, 33, 60])
def test_what_the_clock_leaves_of_it_is_spread_as_well(first) -> None:
    """Any number of first windows lies all over the text: no gap between them is much wider than if they were laid evenly."""
    stream = TokenStream([np.arange(20_016, dtype=np.uint16)])
    starts = torch.cat(read(TrainingText(), windows=101, train=stream))[:first, 0].tolist()
    gaps = np.diff([0, *sorted(starts), 20_000])
    assert len(set(starts)) == first
    assert gaps.max() <= 2.7 * 20_000 / first


def test_random_ids_are_even() -> None:
    ids = torch.cat(read(RandomIds(), windows=500, batch_windows=100))
    counts = torch.bincount(ids.flatten(), minlength=VOCAB)
    assert int(counts.min()) > 5
    assert int(counts.max()) < 70  # 31 each


def test_the_models_own_text_follows_its_predictions() -> None:
    """From an empty prompt; at a low temperature it is the likeliest text, token by token."""
    model = tiny_model()
    config = CalibrationConfig(source=ModelText(temperature=0.01), windows=2, batch_windows=2)
    (ids,) = calibration_batches(config, model, train=text_stream(), tokenizer=TOKENIZER, seq_len=12, seed=0)
    assert (ids[:, 0] == BOS_ID).all()
    with torch.no_grad():
        for t in range(1, 12):
            assert torch.equal(ids[:, t], model.logits(ids[:, :t])[:, -1].argmax(-1))
    warm, cold = (torch.cat(read(ModelText(temperature=t), windows=12, batch_windows=12)) for t in (50.0, 0.01))
    assert len(set(warm.flatten().tolist())) > 3 * len(set(cold.flatten().tolist()))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("source", [TrainingText(), ModelText(), RandomIds()], ids=str)
def test_what_a_source_gives_can_be_measured(source, gradients) -> None:
    model = tiny_model()
    config = CalibrationConfig(source=source, windows=3, batch_windows=2)
    text = calibration_batches(config, model, train=text_stream(), tokenizer=TOKENIZER, seq_len=8, seed=0)
    statistics = collect(model, text, gradients=gradients)
    assert all(torch.isfinite(metric.columns).all() and torch.isfinite(metric.rows).all() for metric in statistics.values())


@pytest.mark.parametrize("gradients", [False, True])
def test_nobody_listens_while_the_model_writes(gradients) -> None:
    """Text that is written as it is measured counts as often as text that was there before."""
    model, config = tiny_model(), CalibrationConfig(source=ModelText(), windows=3, batch_windows=2)

    def text():
        return calibration_batches(config, model, train=text_stream(), tokenizer=TOKENIZER, seq_len=8, seed=0)

    while_written, afterwards = collect(model, text(), gradients=gradients), collect(model, list(text()), gradients=gradients)
    for name, metric in while_written.items():
        assert torch.equal(metric.columns, afterwards[name].columns), name
        assert torch.equal(metric.rows, afterwards[name].rows), name


def test_the_clock_ends_the_text_after_a_batch() -> None:
    asked = []

    def stop_at() -> bool:
        asked.append(1)
        return len(asked) == 2

    assert [len(batch) for batch in read(TrainingText(), stop_at=stop_at)] == [3, 3]
    assert [len(batch) for batch in read(TrainingText(), stop_at=lambda: True)] == [3]


def test_own_text_begins_like_a_document(write) -> None:
    path = write("own.txt", "ab" * 40)
    got = read(OwnText(path=str(path)), windows=1, seq_len=8)[0]
    assert got[0].tolist() == [BOS_ID, *TOKENIZER.encode(["ab" * 40])[0][:7]]


def test_text_that_is_missing_or_too_short_is_one_clear_line(write, tmp_path) -> None:
    for source, train, message in (
        (OwnText(path=str(tmp_path / "nothing.txt")), None, r"cannot read .*nothing.txt"),
        (OwnText(path=str(write("short.txt", "too short"))), None, r"short.txt holds 10 tokens, fewer than one window of 16"),
        (OwnText(path=str(write("empty.txt", ""))), None, r"empty.txt holds 1 tokens, fewer than one window of 16"),
        (TrainingText(), text_stream(15), r"the training split holds 15 tokens, fewer than one window of 16"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read(source, train=train)
        assert "\n" not in str(caught.value)
    assert len(read(TrainingText(), train=text_stream(16))) == 3


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"windows": 0}, {"batch_windows": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            CalibrationConfig(source=RandomIds(), **wrong)
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature"):
            ModelText(temperature=temperature)
