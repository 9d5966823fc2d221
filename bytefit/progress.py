"""Progress on stderr: a live line on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


class _Lines:
    """What a bar is drawn on in a log: each drawing is a line of its own, and nothing is wiped."""

    def write(self, drawn: str) -> None:
        drawn = drawn.strip()  # the return to the line's start, and blanks over what stood there before
        if drawn:
            sys.stderr.write(drawn + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(iterable: Any = None, **options: Any) -> tqdm[Any]:
    """A tqdm bar with the project's habits: on stderr, removed when done; in log files a line now and then."""
    live = sys.stderr.isatty()
    settings: dict[str, Any] = {
        "file": sys.stderr if live else _Lines(),
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
