from __future__ import annotations

import gzip
import json

import pytest
import zstandard

from bytefit.data.build import split_documents
from bytefit.data.documents import read_documents
from bytefit.errors import UserError


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)])
def test_jsonl_in_every_wrapping(write, suffix, pack) -> None:
    path = write(f"docs.jsonl{suffix}", pack(lines("one", "two\nlines", "ünï 🙂")))
    assert list(read_documents([path])) == ["one", "two\nlines", "ünï 🙂"]


def test_folder_is_walked_in_order(write, tmp_path) -> None:
    write("src/b.txt", "second")
    write("src/a/x.md", "first")
    write("src/ignored.bin", b"\0")
    assert list(read_documents([tmp_path / "src"])) == ["first", "second"]


def test_long_text_is_cut_at_line_ends_and_loses_nothing(write) -> None:
    text = "".join(f"line {i} of a long text\r\n" for i in range(5000))
    pieces = list(read_documents([write("long.txt", text)], piece_bytes=4096))
    assert "".join(pieces) == text
    assert len(pieces) > 10
    assert all(piece.endswith("\n") for piece in pieces)
    assert list(read_documents([write("long.txt", text)], piece_bytes=0)) == [text]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "is empty"),
        ("binary.txt", b"PK\x03\x04\0\0", "binary"),
        ("latin.txt", "caf\xe9 au lait".encode("latin-1"), "not UTF-8 at byte 3"),
        ("bad.jsonl", b'{"text": "a"}\n{oops\n', "line 2: not JSON"),
        ("deep.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("long.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1: not JSON"),
        ("bare.jsonl", b'"only a string"\n', 'no "text" field'),
        ("surrogate.jsonl", b'{"text": "\\ud800"}\n', "lone surrogate"),
        ("cut.jsonl.gz", gzip.compress(lines("x" * 10000), mtime=0)[:40], "damaged"),
        ("cut.jsonl.zst", b"not zstd at all", "damaged"),
        ("empty.jsonl", b"", "is empty"),
    ],
)
def test_bad_files_give_one_clear_line(write, name, content, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        list(read_documents([write(name, content)]))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_textless_sources(tmp_path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list(read_documents([tmp_path / "nowhere"]))
    with pytest.raises(UserError, match="holds no text"):
        list(read_documents([tmp_path]))


def test_a_folder_gives_its_texts_and_says_what_it_leaves_out(tmp_path, capsys) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "sub").mkdir()
    for name, text in {".git/a.txt": "hidden", ".b.txt": "hidden", "c.txt": "", "sub/d.md": "two", "e.txt": "one", "f.py": "code"}.items():
        (tmp_path / name).write_text(text)
    assert list(read_documents([tmp_path])) == ["one", "two"]
    assert "1 files of other kinds are left out (.py)" in capsys.readouterr().err


def test_equal_documents_fall_on_one_side(documents) -> None:
    split = split_documents(documents + documents[::3], 0.2, None)
    assert not set(split.train) & set(split.val)
    assert len(split.train) + len(split.val) == len(documents) + len(documents[::3])
    again = split_documents(list(reversed(documents)), 0.2, None)
    assert set(again.val) == set(split.val)  # the order of the sources does not matter


def test_given_validation_text_is_taken_out_of_training(documents) -> None:
    split = split_documents(documents, 0.2, documents[:5])
    assert split.val == documents[:5]
    assert split.dropped_from_train == 5
    assert not set(split.train) & set(split.val)


@pytest.mark.parametrize("pool", [["only one"], ["same", "same"]])
def test_one_document_cannot_be_split(pool) -> None:
    with pytest.raises(UserError, match="one document"):
        split_documents(pool, 0.1, None)
