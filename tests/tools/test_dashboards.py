"""A run's metrics in TensorBoard and Trackio, read back with the packages themselves."""

from __future__ import annotations

import json
import sys
import threading

import pytest

from bytefit.cli import main
from bytefit.tools import dashboards
from bytefit.tools.dashboards import read_points
from bytefit.train.metrics import MetricsLog, read_metrics


def numbers_of(run) -> dict[str, list[tuple[int, float]]]:
    records = read_metrics(run.metrics)
    return {name: [(record["step"], record[name]) for record in records] for name in ("loss", "lr_scale", "tokens")}


def test_tensorboard(tiny_run, tmp_path, capsys) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # a second export replaces the first
        assert main(["metrics", str(tiny_run.path), "--to", "tensorboard", "--out", str(tmp_path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["steps"] == len(read_metrics(tiny_run.metrics))
    events = EventAccumulator(str(tmp_path / tiny_run.path.name), size_guidance={"scalars": 0}).Reload()
    for name, points in numbers_of(tiny_run).items():
        found = events.Scalars(name)
        assert [event.step for event in found] == [step for step, _ in points]
        assert [event.value for event in found] == pytest.approx([value for _, value in points], rel=1e-6)


def test_trackio(tiny_run, tmp_path, capsys, monkeypatch) -> None:
    trackio = pytest.importorskip("trackio", reason="the extra trackio is not installed")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    assert main(["metrics", str(tiny_run.path), "--to", "trackio", "--project", "test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == len(read_metrics(tiny_run.metrics))
    found = trackio.sqlite_storage.SQLiteStorage.get_logs("test", tiny_run.path.name)
    assert [(record["step"], record["loss"]) for record in found] == numbers_of(tiny_run)["loss"]


def test_a_growing_file_is_followed_to_its_end(tmp_path, monkeypatch) -> None:
    """Half lines wait, a file that a resumed run wrote anew is read on, and nothing comes twice."""
    monkeypatch.setattr(dashboards, "POLL_SECONDS", 0.01)
    path, finished, came = tmp_path / "metrics.jsonl", threading.Event(), threading.Semaphore(0)
    found: list[dashboards.Point] = []

    def follow() -> None:
        for point in read_points(path, finished.is_set):
            found.append(point)
            came.release()

    log = MetricsLog(path)
    log.write({"step": 1, "loss": 5.0})
    thread = threading.Thread(target=follow)
    thread.start()
    assert came.acquire(timeout=5)
    with open(path, "a") as file:
        file.write('{"step": 2, "lo')
    assert not came.acquire(timeout=0.1)
    resumed = MetricsLog(path, 1)  # drops the half line
    for step in (2, 3):
        resumed.write({"step": step, "loss": 5.0 - step, "kind": "words are left out"})
        assert came.acquire(timeout=5)
    finished.set()
    thread.join(5)
    assert found == [(1, {"loss": 5.0}), (2, {"loss": 3.0}), (3, {"loss": 2.0})]


def test_mistakes_take_one_line(tiny_run, tmp_path, capsys, monkeypatch) -> None:
    assert main(["metrics", str(tmp_path), "--to", "tensorboard"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    for package in ("tensorboard", "trackio"):
        monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
        monkeypatch.setitem(sys.modules, package, None)
        assert main(["metrics", str(tiny_run.path), "--to", package]) == 2
        assert f"pip install 'bytefit[{package}]'" in capsys.readouterr().err
