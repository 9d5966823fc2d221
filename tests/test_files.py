"""Files are written whole or not at all; what is no file, or a link to one, stays what it is."""

from __future__ import annotations

import copy
import os
import stat

import pytest

from bytefit.errors import UserError
from bytefit.files import read_json, write_bytes


def test_a_pipe_is_written_to_and_not_replaced(tmp_path) -> None:
    """So are devices: a rename over /dev/null would take it from every process."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_bytes(pipe, b"text")
        assert os.read(reader, 99) == b"text"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_link_stays_a_link(tmp_path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "file", tmp_path / "link"
    link.symlink_to(target)
    for data in (b"first", b"second"):
        write_bytes(link, data)
        assert target.read_bytes() == data
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "link", "there"]


def test_a_folder_is_one_clear_line(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path, b"text")


def test_a_key_that_a_file_lacks_names_the_file(tmp_path) -> None:
    path = tmp_path / "score.json"
    path.write_text('{"bytes": 3, "full": {"nats": 2.0}}')
    held = read_json(path)
    assert held == {"bytes": 3, "full": {"nats": 2.0}}
    assert copy.deepcopy(held)["full"]["nats"] == 2.0
    with pytest.raises(UserError, match=r"score\.json lacks blocks"):
        held["full"]["blocks"]
    with pytest.raises(UserError, match=r"score\.json lacks bits"):
        held["bits"]
