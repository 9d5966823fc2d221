"""Progress on stderr: a live line on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Any = None, **options: Any) -> tqdm[Any]:
    """A tqdm bar with the project's habits: on stderr, removed when done, quiet in log files."""
    live = sys.stderr.isatty()
    settings: dict[str, Any] = {
        "file": sys.stderr,
        "dynamic_ncols": live,
        "leave": False,
        "mininterval": 0.2 if live else 15.0,
        "maxinterval": 1.0 if live else 30.0,
        "delay": 1.0,
    }
    return tqdm(iterable, **(settings | options))


def say(message: str) -> None:
    """One line for the reader, on stderr, without tearing a live bar."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()
