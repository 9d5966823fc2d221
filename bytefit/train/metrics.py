"""``metrics.jsonl``: one JSON object a logged step, appended as the run goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bytefit.files import cannot_write, write_bytes


class MetricsLog:
    """Appends records; after a resume, records of steps that will run again are dropped first."""

    def __init__(self, path: Path, resume_step: int = 0):
        self._path = path
        kept = [record for record in read_metrics(path) if record["step"] <= resume_step] if resume_step else []
        write_bytes(path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def write(self, record: dict[str, Any]) -> None:
        try:
            with open(self._path, "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole record; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
