"""What the peer programs share: timing, and the one line of JSON each prints. Needs numpy only."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np


def missing(error: ImportError, program: str) -> NoReturn:
    """End with one line when the peer's package is not in this environment."""
    sys.exit(f"{Path(program).name}: cannot import {error.name or 'a package'} here; its first lines say how to make its environment")


def seconds_of(work: Callable[[Any], Any], prepare: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    """The last result of ``work(prepare())`` and its median time over ``repeats``, after one call that is not counted."""
    result = work(prepare())
    times = []
    for _ in range(repeats):
        argument = prepare()
        start = time.perf_counter()
        result = work(argument)
        times.append(time.perf_counter() - start)
    return result, statistics.median(times)


def bits_of(given: Any) -> int:
    """The bit width asked for; these peers have ``2**bits`` levels, so another ``levels`` cannot be had from them."""
    bits = int(given["bits"])
    if "levels" in given and int(given["levels"]) != 2**bits:
        sys.exit(f"this peer's grid of {bits} bits has {2**bits} levels, not {int(given['levels'])}")
    return bits


def finish(out: Path, arrays: dict[str, Any], peer: str, **facts: object) -> None:
    """Write the arrays, and say on stdout which peer in which version made them."""
    np.savez(out, **arrays)
    print(json.dumps({"peer": peer, "version": version(peer), **facts}))
