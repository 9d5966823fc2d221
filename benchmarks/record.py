"""What every result says about where it came from."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from bytefit.train.machine import describe_machine


def provenance() -> dict[str, Any]:
    """Command, commit and machine. Folders of the command's arguments are left out: they are this machine's own."""
    words = [Path(word).name if Path(word).is_absolute() or word.startswith("..") else word for word in sys.argv[1:]]
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # no git here
        commit = ""
    return {"command": shlex.join(["python", sys.argv[0], *words]), "commit": commit or "unknown", "machine": describe_machine()}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A file of one JSON document a line, to which lines may then be added: where everything stopped while a line was being written, its
    beginning is taken out of the file."""
    if not path.exists():
        return []
    whole, newline, rest = path.read_text().rpartition("\n")
    rows = [json.loads(line) for line in whole.splitlines()]
    if rest:
        try:
            rows.append(json.loads(rest))
            path.write_text(f"{whole}{newline}{rest}\n")
        except ValueError:
            path.write_text(whole + newline)
    return rows


def write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
