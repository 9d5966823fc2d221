"""``data get`` against a server that plays the hub, whole and broken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bytefit.cli import main
from bytefit.data.dataset import open_dataset
from bytefit.data.documents import read_documents
from bytefit.errors import UserError
from bytefit.hub import download
from bytefit.hub.get import get_dataset
from bytefit.hub.published import PUBLISHED
from tests.hub.conftest import NAME

SHARD = "fineweb_train_000001.bin"
SHARD_PATH = f"{PUBLISHED[NAME].shards}/{SHARD}"


def get(hub, out: Path, shards: int = 2, documents: bool = False, name: str = NAME):
    return get_dataset(name, out, shards=shards, documents=documents, endpoint=hub.url)


def test_a_published_dataset_opens_as_it_is(contest_hub, dataset, documents, tmp_path, capsys) -> None:
    out = tmp_path / "sp"
    arguments = ["data", "get", NAME, "--out", str(out), "--shards", "2", "--documents", "--endpoint", contest_hub.url, "--json"]
    assert main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["complete"] is True
    assert (record["train_tokens"], record["val_tokens"]) == (40_000, len(dataset.val))
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["download.json", "fineweb_1024_bpe.model", "fineweb_train_000000.bin", SHARD, "fineweb_val_000000.bin",
         "docs_selected.jsonl", "docs_selected.source_manifest.json"]
    )  # fmt: skip
    opened = open_dataset(out)
    assert (opened.train.all() == dataset.train.all()[:40_000]).all()
    assert (opened.val.all() == dataset.val.all()).all()
    assert opened.tokenizer.sha256 == dataset.tokenizer.sha256
    assert list(read_documents([out / "docs_selected.jsonl"])) == documents


def test_a_second_call_fetches_what_is_missing_or_damaged(contest_hub, tmp_path) -> None:
    out = tmp_path / "sp"
    get(contest_hub, out)
    damaged = bytearray((out / SHARD).read_bytes())
    damaged[-1] ^= 1
    (out / SHARD).write_bytes(bytes(damaged))
    contest_hub.sent.clear()
    assert get(contest_hub, out, shards=3)["fetched"] == 2
    assert [path.rpartition("/")[2] for path, _ in contest_hub.sent] == [SHARD, "fineweb_train_000002.bin"]
    assert len(open_dataset(out).train) == 45_000


def test_a_broken_connection_is_taken_up_in_the_same_call(contest_hub, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(download, "BLOCK_BYTES", 16_384)
    contest_hub.truncate[SHARD_PATH] = 1
    get(contest_hub, tmp_path / "sp")
    assert contest_hub.ranges_of(SHARD) == ["bytes=0-16383", "bytes=0-16383", "bytes=16384-32767", "bytes=32768-41023"]


def test_a_line_that_falls_silent_is_taken_up(contest_hub, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    contest_hub.stall[SHARD_PATH] = 1
    get(contest_hub, tmp_path / "sp")
    assert contest_hub.ranges_of(SHARD) == ["bytes=0-41023"] * 2


def test_a_connection_that_stays_broken_keeps_what_came(contest_hub, tmp_path, monkeypatch) -> None:
    out = tmp_path / "sp"
    monkeypatch.setattr(download, "BLOCK_BYTES", 16_384)
    contest_hub.truncate_after[SHARD_PATH] = 16_384
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
        with pytest.raises(UserError, match="run the same command again"):
            get(contest_hub, out)
    assert not (out / SHARD).exists()
    with pytest.raises(UserError, match="not finished"):
        open_dataset(out)
    contest_hub.truncate_after.clear()
    contest_hub.sent.clear()
    get(contest_hub, out)
    assert contest_hub.ranges_of(SHARD) == ["bytes=16384-32767", "bytes=32768-41023"]
    assert not list(out.glob(".*.partial"))


def test_interrupted_and_run_again(contest_hub, tmp_path) -> None:
    """Ctrl-C in the middle of a file: exit code 130, nothing half-written passes for whole, and the second call ends it."""
    out, first_shard = tmp_path / "sp", "fineweb_train_000000.bin"
    contest_hub.stall[f"{PUBLISHED[NAME].shards}/{first_shard}"] = 1
    command = [sys.executable, "-m", "bytefit", "data", "get", NAME, "--out", str(out), "--shards", "1", "--endpoint", contest_hub.url]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it, and so would its children
    )
    deadline = time.monotonic() + 60
    while not contest_hub.ranges_of(first_shard):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "bytefit: interrupted"
    assert not (out / first_shard).exists()
    with pytest.raises(UserError, match="not finished"):
        open_dataset(out)
    assert get(contest_hub, out, shards=1)["fetched"] == 2  # the training shard and the tokenizer
    assert len(open_dataset(out).train) == 20_000


def test_a_server_that_knows_no_parts_is_refused(contest_hub, tmp_path, monkeypatch) -> None:
    """Its answers appended one after another would be a file of the wrong content, and perhaps of the right size."""
    monkeypatch.setattr(download, "BLOCK_BYTES", 4096)
    contest_hub.no_ranges = True
    with pytest.raises(UserError, match="asked for 4,096 bytes, got"):
        get(contest_hub, tmp_path / "sp")


@pytest.mark.parametrize("path", [SHARD_PATH, PUBLISHED[NAME].tokenizer, "datasets/docs_selected.source_manifest.json"])
def test_content_that_the_hub_did_not_state_is_refused(contest_hub, tmp_path, path) -> None:
    out = tmp_path / "sp"
    contest_hub.lies.add(path)
    with pytest.raises(UserError, match=f"{path.rpartition('/')[2]} of .* did not arrive whole: the hub states"):
        get(contest_hub, out, documents=True)
    assert not (out / path.rpartition("/")[2]).exists()
    assert not list(out.glob(".*.partial"))
    contest_hub.lies.clear()
    get(contest_hub, out, documents=True)


def test_a_shard_whose_header_is_wrong_is_refused(contest_hub, tmp_path) -> None:
    tree = contest_hub.files[PUBLISHED[NAME].repo]
    tree[SHARD_PATH] = tree[SHARD_PATH] + b"\0\0"  # stated and sent alike, but no shard
    with pytest.raises(UserError, match="its header promises"):
        get(contest_hub, tmp_path / "sp")
    with pytest.raises(UserError, match="not finished"):
        open_dataset(tmp_path / "sp")


def test_documents_that_are_too_few_are_refused(contest_hub, tmp_path) -> None:
    contest_hub.files[PUBLISHED[NAME].repo]["datasets/docs_selected.source_manifest.json"] = b'{"num_docs": 15368808}'
    with pytest.raises(UserError, match="holds 150 documents, its record says 15368808"):
        get(contest_hub, tmp_path / "sp", documents=True)


def test_a_full_disk_is_noticed_before_anything_is_fetched(contest_hub, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    names = ("train_000000.bin", "train_000001.bin", "val_000000.bin", ".model")
    needed = sum(len(data) for path, data in contest_hub.files[PUBLISHED[NAME].repo].items() if path.endswith(names))
    with pytest.raises(UserError, match=f"needs {needed:,} bytes more, its disk has 50,000 free"):
        get(contest_hub, tmp_path / "sp")
    assert not contest_hub.sent


def test_mistakes_take_one_line(contest_hub, tmp_path, capsys, monkeypatch) -> None:
    def line(*arguments: str, name: str = NAME, out: str = "sp", endpoint: str = contest_hub.url) -> str:
        assert main(["data", "get", name, "--out", str(tmp_path / out), "--endpoint", endpoint, *arguments]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        return error

    assert "no published dataset 'fineweb'; there are fineweb-sp1024, fineweb-sp4096, fineweb-sp8192" in line(name="fineweb")
    assert "--shards 0 must be at least 1" in line("--shards", "0")
    assert "has 3 training shards; --shards 80 asks for more" in line()
    assert "the hub has no repository kevclark/parameter-golf" in line(name="fineweb-sp4096")
    assert "the hub does not give willdepueoai/parameter-golf" in line(endpoint="http://127.0.0.1:9")
    contest_hub.gated = True
    assert "is open only to those whom its owner let in" in line("--shards", "1")
    contest_hub.gated = False
    contest_hub.gone.add(SHARD_PATH)
    assert "lacks a file that belongs to it" in line("--shards", "2", out="gone")
    contest_hub.gone.clear()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    assert "is not a download of bytefit data get" in line("--shards", "1", out="other")
    get(contest_hub, tmp_path / "sp", shards=3)
    capsys.readouterr()
    assert "holds fineweb_train_000001.bin too, which was not asked for" in line("--shards", "1")
    tree = contest_hub.files[PUBLISHED[NAME].repo]
    del tree[PUBLISHED[NAME].tokenizer]
    assert "has no file datasets/tokenizers/fineweb_1024_bpe.model" in line("--shards", "1")
    for path in [path for path in tree if path.endswith(".bin")]:
        del tree[path]
    assert "lacks a file that belongs to it" in line("--shards", "1")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "install it with: pip install 'bytefit[hub]'" in line("--shards", "1")
