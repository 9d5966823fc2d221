"""The clock: every second that is measured stands in exactly one entry.

Two totals are reported. *Strict* counts every second that touches data or weights. *Customary* counts what the
Parameter Golf contest counted against its 600 s: the timed training loop alone (warm-up, compilation, packing and
scoring stood outside its clock).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Entry = Literal[
    "data", "warmup", "compile", "train", "average", "calibrate", "quantise", "fit", "encode", "score", "adapt", "prove", "report"
]  # fmt: skip
ENTRIES: tuple[str, ...] = get_args(Entry)
NOT_ON_WEIGHTS = {"data", "report"}  # neither makes nor measures what is claimed: building a dataset; what only the report shows
CUSTOMARY = {"train"}


class Ledger:
    """Seconds by entry. Measurements may nest: the inner one takes its seconds out of the outer one."""

    def __init__(self, seconds: dict[str, float] | None = None):
        self.seconds: dict[str, float] = dict.fromkeys(ENTRIES, 0.0)
        self.add(seconds or {})
        self._open: list[str] = []
        self._since = 0.0

    def add(self, seconds: dict[str, float]) -> None:
        """Add the seconds of another part of the same run (an earlier process, a resumed checkpoint)."""
        for entry, value in seconds.items():
            self.seconds[entry] += value

    def settle(self) -> None:
        """Book the seconds of the open measurement up to now."""
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def measure(self, entry: Entry) -> Iterator[None]:
        self.settle()
        self._open.append(entry)
        try:
            yield
        finally:
            self.settle()
            self._open.pop()

    def read(self, entry: Entry) -> float:
        """Seconds in ``entry`` up to now, an open measurement included."""
        self.settle()
        return self.seconds[entry]

    @property
    def strict(self) -> float:
        return sum(value for entry, value in self.seconds.items() if entry not in NOT_ON_WEIGHTS)

    @property
    def customary(self) -> float:
        return sum(value for entry, value in self.seconds.items() if entry in CUSTOMARY)

    def to_json(self) -> dict[str, float]:
        self.settle()
        spent = {entry: round(value, 3) for entry, value in self.seconds.items() if value > 0}
        return spent | {"strict": round(self.strict, 3), "customary": round(self.customary, 3)}
