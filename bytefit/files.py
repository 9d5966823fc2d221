"""Writing files so that a killed run never leaves half a file behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from bytefit.errors import UserError


def write_bytes(path: Path, data: bytes) -> None:
    """Write the whole file or nothing: to a neighbour first, then renamed over ``path`` (or what it is a link to). What is no file, or an
    open stream such as ``/dev/stdout``, is written to as it is.

    Raises:
        UserError: no space left, no permission, or the folder is missing.
    """
    path = path.absolute()
    if is_stream(path):
        number = _number_of_stream(path)
        try:
            sys.stdout.flush()
            with path.open("wb") if number is None else os.fdopen(os.dup(number), "wb") as stream:
                stream.write(data)
        except OSError as error:
            raise cannot_write(path, error) from error
        return
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def is_stream(path: Path) -> bool:
    """Whether a path names no file of its own: a device, a pipe, or a stream that this process has open, which may be redirected into a
    file with other text in it and more to come."""
    return _number_of_stream(path) is not None or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path))


def _number_of_stream(path: Path) -> int | None:
    standard = {"/dev/stdout": 1, "/dev/stderr": 2}
    named = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", str(path))
    return int(named[1]) if named else standard.get(str(path))


def cannot_write(path: Path, error: OSError) -> UserError:
    """One clear line for an ``OSError`` met while writing ``path``."""
    if error.errno == errno.ENOSPC:
        return UserError(f"no space left on the disk while writing {path}; free some and run the same command again (a run: with --resume)")
    return UserError(f"cannot write {path}: {error.strerror or error}")


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_bytes(path: Path) -> bytes:
    """Raises UserError where the file is missing or unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


class Record(dict[str, Any]):
    """An object in a JSON file; a key that it lacks is the file's fault, and is said so."""

    file: Path | str = "a file"  # not an argument, so that copies are made as a dict's are

    def __missing__(self, key: str) -> NoReturn:
        raise UserError(f"{self.file} lacks {key}: it is cut short or of another version; delete it or make it again")


def read_json(path: Path) -> Any:
    """Raises UserError where the file is missing or is not JSON, and, of an object in it, where a key is asked for that it lacks."""

    def record(held: dict[str, Any]) -> Record:
        found = Record(held)
        found.file = path
        return found

    try:
        return json.loads(read_bytes(path).decode(), object_hook=record)
    except ValueError as error:  # covers JSON and UTF-8 errors
        raise UserError(f"{path} is not valid JSON ({error}); delete it or make it again") from None
