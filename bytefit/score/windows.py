"""Protocols as data: which window scores which targets.

Position numbers are those of the token sequence; the target at position t is token t. A window reads the inputs
``start … end-1`` and scores the targets ``first … end``; every target 1 … N-1 is scored exactly once, the tail included.

With ``contest`` a protocol leaves out, or scores again, what the Parameter Golf scripts left out or scored again at the tail, so that
numbers published there can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Inputs ``[start, end)``; targets ``[first, end]`` are scored, each from the inputs before it in the window."""

    start: int
    first: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Full:
    """Windows that do not overlap (Parameter Golf baseline).

    Attributes:
        contest: drop the last, shorter window.
    """

    window: int
    contest: bool = False

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window {self.window} must be at least 1")

    def windows(self, num_tokens: int) -> list[Window]:
        last = num_tokens - 1
        if self.contest:
            last -= last % self.window
        return [Window(start, start + 1, min(start + self.window, last)) for start in range(0, last, self.window)]


@dataclass(frozen=True, kw_only=True)
class Sliding:
    """Overlapping windows (Parameter Golf baseline): after the first window, each scores its last ``stride`` targets.

    Every target beyond the first window has at least ``window - stride`` tokens of context.

    Attributes:
        contest: a window starts at every multiple of the stride. Those that reach beyond the end are cut there and score the last
            ``stride`` targets again, from less and less context: ``window / stride`` times in all.
    """

    window: int
    stride: int
    contest: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"stride {self.stride} must lie in 1..{self.window} (the window)")

    def windows(self, num_tokens: int) -> list[Window]:
        last = num_tokens - 1
        if last < 1:
            return []
        if self.contest:
            ends = [(start, min(start + self.window, last)) for start in range(0, last, self.stride)]
            return [Window(start, max(start, end - self.stride) + 1 if start else 1, end) for start, end in ends]
        windows = [Window(0, 1, min(self.window, last))]
        while windows[-1].end < last:
            end = min(windows[-1].end + self.stride, last)
            start = len(windows) * self.stride
            windows.append(Window(start, windows[-1].end + 1, end))
        return windows
