"""A score that is stopped goes on where it was, to the same bits; what is another score does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bytefit.run.steps import journal_of
from bytefit.score import harness
from bytefit.score import journal as journal_file
from bytefit.score.adapt import AdamW, Adapt, DocumentLora
from bytefit.score.harness import Watch
from bytefit.score.journal import Journal
from bytefit.score.scorer import score
from bytefit.score.windows import Sliding


class Stop(KeyboardInterrupt):
    pass


PROGRESS = {
    "adapt": Adapt(window=8, stride=3, chunk_tokens=16, optimizer=AdamW(lr=0.002), epochs=1, ema_decay=0.8),
    "sliding": Sliding(window=8, stride=3),
    "documents": DocumentLora(window=8, chunk_tokens=4, lr=0.02, batch_documents=1),
}


@pytest.mark.parametrize("name", PROGRESS)
@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_a_score_that_was_stopped_goes_on(tiny_model, tokens, dataset, tmp_path, name, how, monkeypatch, capsys) -> None:
    """To the same bits: whether it was stopped by Ctrl-C or killed after its last save."""
    monkeypatch.setattr(harness, "CHUNK_TARGETS", 16)
    monkeypatch.setattr(journal_file, "PATIENCE", 0)
    protocol, key = PROGRESS[name], {"artifact": "a"}
    whole = score(tiny_model, tokens, dataset.byte_table, protocol, torch.float32)
    seen = []

    def stop_at(count):
        def on_chunk(result):
            seen.append(result.chunk)
            if len(seen) == count:
                raise Stop

        return on_chunk

    journal = Journal(tmp_path / "p", key, every_seconds=0.0 if how == "killed" else 1e9)
    if how == "interrupted":  # in the middle of a chunk's windows
        from bytefit.score import document_lora

        place, function = (document_lora, "_costs") if name == "documents" else (harness, "_costs")
        real, calls = getattr(place, function), []

        def interrupted(*arguments, **options):
            calls.append(1)
            if len(calls) == 3:
                raise Stop
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(place, function, interrupted)
            with pytest.raises(Stop):
                score(tiny_model, tokens, dataset.byte_table, protocol, torch.float32, Watch(journal=journal, on_chunk=stop_at(99)))
    else:
        with pytest.raises(Stop):
            score(tiny_model, tokens, dataset.byte_table, protocol, torch.float32, Watch(journal=journal, on_chunk=stop_at(3)))
    assert journal.path.exists()
    seen.clear()
    again = score(
        tiny_model, tokens, dataset.byte_table, protocol, torch.float32, Watch(journal=Journal(tmp_path / "p", key), on_chunk=stop_at(99))
    )
    assert dataclasses.replace(again, seconds=0.0) == dataclasses.replace(whole, seconds=0.0)
    assert seen[0] == 2
    assert "going on with the score" in capsys.readouterr().err
    seen.clear()
    done = Journal(tmp_path / "p", key)  # a finished one has nothing left to do, and knows how long it took
    finished = score(tiny_model, tokens, dataset.byte_table, protocol, torch.float32, Watch(journal=done, on_chunk=stop_at(99)))
    assert finished.nats == whole.nats
    assert seen == []
    assert 0 < done.earlier_seconds <= finished.seconds


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "is damaged; the score starts again"),
        (lambda path: path.write_bytes(b"nothing"), "is damaged; the score starts again"),
        (lambda path: path.write_bytes(b""), "is damaged; the score starts again"),
        (lambda path: None, "holds the progress of another score"),
    ],
)
def test_a_progress_file_that_does_not_fit_is_said_so(tiny_model, tokens, dataset, tmp_path, damage, message, monkeypatch, capsys) -> None:
    monkeypatch.setattr(harness, "CHUNK_TARGETS", 16)
    monkeypatch.setattr(journal_file, "PATIENCE", 0)
    path, protocol = tmp_path / "p", Sliding(window=8, stride=3)

    def stop(result):
        if result.chunk == 2:
            raise Stop

    watch = Watch(journal=Journal(path, {"artifact": "a"}, every_seconds=0.0), on_chunk=stop)
    with pytest.raises(Stop):
        score(tiny_model, tokens, dataset.byte_table, protocol, torch.float32, watch)
    damage(path)
    capsys.readouterr()
    key = {"artifact": "b" if "another" in message else "a"}
    result = score(tiny_model, tokens, dataset.byte_table, protocol, torch.float32, Watch(journal=Journal(path, key)))
    assert result.nats == score(tiny_model, tokens, dataset.byte_table, protocol, torch.float32).nats
    assert message in capsys.readouterr().err


def test_a_score_goes_on_where_no_progress_can_be_kept(tiny_model, tokens, dataset, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(harness, "CHUNK_TARGETS", 16)
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "p", {}, every_seconds=0.0)
    result = score(tiny_model, tokens, dataset.byte_table, Sliding(window=8, stride=3), torch.float32, Watch(journal=journal))
    assert result.targets == len(tokens) - 1
    assert capsys.readouterr().err.count("the progress of this score is not kept: cannot write") == 1


def test_scores_do_not_share_their_progress(tmp_path) -> None:
    one, other = (Journal.of(tmp_path, "m.score", {"artifact": "a", "window": window}) for window in (8, 16))
    assert one.path != other.path
    assert one.path == Journal.of(tmp_path, "m.score", {"window": 8, "artifact": "a"}).path
    for journal in (one, other, Journal.of(tmp_path, "other.score", {})):
        journal.path.write_text("")
    Journal.clear(tmp_path, "m.score")
    assert [path.name.split(".")[1] for path in tmp_path.iterdir()] == ["other"]


def test_what_computes_another_score_has_a_file_of_its_own() -> None:
    """Half a score in one dtype and half in another would be neither; so with every other thing that a score follows from."""
    same = {"artifact": "a", "dataset": "d", "targets": 9, "protocol": Sliding(window=8, stride=3), "dtype": torch.float32}
    others = {"artifact": "b", "dataset": "e", "targets": 10, "protocol": Sliding(window=8, stride=4), "dtype": torch.bfloat16}

    def path(what: dict) -> Path:
        artifact, dataset = SimpleNamespace(sha256=what["artifact"]), SimpleNamespace(sha256=what["dataset"])
        return journal_of(Path("run/score_full"), artifact, dataset, what["targets"], what["protocol"], what["dtype"]).path

    assert path(same).parent == Path("run")
    assert path(same).name.startswith(".score_full.")
    paths = [path(same), *(path(same | {name: other}) for name, other in others.items())]
    assert len(set(paths)) == len(paths) == 6
