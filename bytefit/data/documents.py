"""Reading documents: text files, folders, ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``.

A document is a non-empty ``str``. A ``.jsonl`` line is one document (its ``text`` field). A text file is one document,
or, when it is long, several: it is cut at line ends into pieces of about ``piece_bytes``, because documents are the unit
of the split into training and validation.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import zstandard

from bytefit.errors import UserError
from bytefit.progress import say

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".tex", ".html", ".csv", ".log", ".text"}
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PIECE_BYTES = 16_384


def read_documents(sources: list[Path], piece_bytes: int = PIECE_BYTES) -> Iterator[str]:
    """Documents of every source, in order; folders are walked in sorted order.

    Args:
        sources: text files, ``.jsonl[.gz|.zst]`` files or folders of them.
        piece_bytes: long text files are cut into documents of about this many bytes (0: never cut).

    Raises:
        UserError: a missing, empty, binary or undecodable file; names the file and the place.
    """
    for source in sources:
        files = _files_below(source)
        for file in files:
            if file.name.endswith(JSONL_SUFFIXES):
                yield from _read_jsonl(file)
            else:
                yield from _read_text(file, piece_bytes, may_be_empty=file != source)


def _files_below(source: Path) -> list[Path]:
    if not source.exists():
        raise UserError(f"{source} does not exist; give text files, folders or .jsonl[.gz|.zst] files")
    if source.is_file():
        return [source]
    shown = (file for file in sorted(source.rglob("*")) if not any(part.startswith(".") for part in file.relative_to(source).parts))
    inside = [file for file in shown if file.is_file()]
    files = [file for file in inside if file.suffix.lower() in TEXT_SUFFIXES or file.name.endswith(JSONL_SUFFIXES)]
    if not files:
        raise UserError(f"{source} holds no text: looked for {', '.join(sorted(TEXT_SUFFIXES))} and {', '.join(JSONL_SUFFIXES)}")
    others = sorted({file.suffix or file.name for file in inside} - {file.suffix or file.name for file in files})
    if others:
        say(f"{source}: {len(inside) - len(files)} files of other kinds are left out ({', '.join(others[:8])}); name a file to take it")
    return files


def _read_text(file: Path, piece_bytes: int, *, may_be_empty: bool) -> Iterator[str]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    if not data:
        if may_be_empty:  # as files in folders are, now and then
            return
        raise UserError(f"{file} is empty")
    if b"\0" in data[:4096]:
        raise UserError(f"{file} looks like a binary file (it holds NUL bytes); bytefit trains on UTF-8 text")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 at byte {error.start}; convert it first, for example with iconv -t utf-8") from None
    if piece_bytes <= 0 or len(data) <= 2 * piece_bytes:
        yield text
        return
    piece: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line.encode())
        if size >= piece_bytes:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def _open_jsonl(file: Path) -> IO[bytes]:
    if file.name.endswith(".gz"):
        return cast(IO[bytes], gzip.open(file, "rb"))
    if file.name.endswith(".zst"):
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(open(file, "rb"), closefd=True))
    return open(file, "rb")


def _read_jsonl(file: Path) -> Iterator[str]:
    number = 0
    try:
        with _open_jsonl(file) as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                    raise UserError(f'{file}, line {number}: no "text" field with a string; each line must be {{"text": ...}}')
                if record["text"]:
                    yield _well_formed(record["text"], file, number)
    except UnicodeDecodeError:
        raise UserError(f"{file}, line {number}: not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}, line {number}: not JSON ({getattr(error, 'msg', error)})") from None
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError, EOFError) as error:
        raise UserError(f"{file} is damaged after line {number} ({error})") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    if number == 0:
        raise UserError(f"{file} is empty")


def _well_formed(text: str, file: Path, number: int) -> str:
    """JSON may carry lone surrogates, which no UTF-8 file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{file}, line {number}: lone surrogate at character {error.start}; repair the text") from None
    return text
