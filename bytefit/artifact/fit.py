"""The byte solver: one dial, the real encoder, and a file that ends within a thousandth under its budget.

At high rate doubling the dial costs one bit a weight, so bytes against the logarithm of the dial are all but a straight line, and the
line through the nearest sizes on both sides finds the budget in a handful of attempts. Rounding makes the last few bytes jump about: two
neighbouring positions may come in the wrong order. The search then simply goes on until one lands close enough. Where sizes jump over the
budget (small files, general-purpose compressors), what is left is spent on single matrices.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from bytefit.errors import UserError
from bytefit.progress import progress_bar, say

MIN_LOG, MAX_LOG = -24.0, 24.0  # octaves of the dial about the recipe's own steps: from nothing but zeros to codes of 20 bits
CLOSE = 0.0004  # of the budget: near enough to stop
ENOUGH = 0.999  # what a file has to use of its budget
PATIENT, ATTEMPTS = 6, 40  # after so many anything that is enough will do; and after so many it is over
STUCK = 8  # attempts after which the last part of the way is tried matrix by matrix
NARROW = 1e-4  # octaves between a position that fits and one that does not: what is left there is chance
GOLDEN = 0.6180339887  # its multiples fill an interval evenly, however many there are


class Sized(Protocol):
    """Anything with bytes."""

    @property
    def data(self) -> bytes: ...


S = TypeVar("S", bound=Sized)


class Dialled(Protocol[S]):
    """What can be packed at any position of a dial; ``artifact.pack.Packer`` is one."""

    @property
    def num_codes(self) -> int: ...

    def at(self, dial: float) -> S: ...

    def eased(self, packed: S, budget: int) -> S: ...

    def refined(self, packed: S, budget: int) -> S: ...


def solve(packer: Dialled[S], budget: int) -> tuple[S, float, int]:
    """The finest packing found that fits the budget, its position on the dial, and how many were tried.

    Raises:
        UserError: even the coarsest is too large; the message gives its size.
    """
    slope = max(1.0, packer.num_codes / 8)  # bytes an octave, at high rate
    tried: list[tuple[float, int]] = []
    best: tuple[float, S] | None = None
    low: tuple[float, int] | None = None  # the finest position that fits, and its size
    high: tuple[float, int] | None = None  # the coarsest that does not
    log_dial = 0.0
    with progress_bar(total=ATTEMPTS, desc="fitting the bytes", unit=" attempts") as bar:
        while len(tried) < ATTEMPTS:
            packed = packer.at(2.0**log_dial)
            size = len(packed.data)
            tried.append((log_dial, size))
            bar.set_postfix_str(f"{size:,} of {budget:,} bytes", refresh=False)
            bar.update()
            if size <= budget:
                if best is None or size > len(best[1].data):
                    best = (log_dial, packed)
                low = (log_dial, size) if low is None or log_dial > low[0] else low
                if size >= budget * (1 - CLOSE) or log_dial >= MAX_LOG:
                    break
            elif log_dial <= MIN_LOG:
                raise UserError(
                    f"a budget of {budget:,} bytes is impossible for this model: the least it packs into is {size:,} bytes; "
                    "raise --bytes or make the model smaller (--set model.dim=...)"
                )
            else:
                high = (log_dial, size) if high is None or log_dial < high[0] else high
            if best is not None and high is not None and len(tried) == STUCK:
                best = (best[0], packer.refined(best[1], budget))
            if best is not None and len(tried) >= PATIENT and len(best[1].data) >= budget * ENOUGH:
                break
            log_dial = _next(low, high, budget, slope, len(tried))
    assert best is not None
    log_dial, packed = best
    packed = packer.eased(packed, budget)
    at_the_end = low is not None and low[0] >= MAX_LOG
    if not at_the_end and len(packed.data) < ENOUGH * budget:
        packed = packer.refined(packed, budget)
    if at_the_end:
        say(f"the budget of {budget:,} bytes is more than the finest codes need; the file takes {len(packed.data):,}")
    elif len(packed.data) < ENOUGH * budget:
        say(f"nothing that was tried comes closer to the budget than {budget - len(packed.data):,} bytes")
    return packed, log_dial, len(tried)


def _next(low: tuple[float, int] | None, high: tuple[float, int] | None, budget: int, slope: float, tries: int) -> float:
    """Where to look next: outward while one side is open, else along the line between the two, every fourth time in the middle."""
    aim = budget * (1 - CLOSE / 2)
    if low is None or high is None:
        known = low or high
        assert known is not None
        step = (aim - known[1]) / slope
        # A little further than the line says, so that the next size lies on the other side and closes the bracket.
        reach = max(0.02, abs(step) * 1.1) if tries < 3 else max(1.0, abs(step) * 2)
        return min(MAX_LOG, max(MIN_LOG, known[0] + (reach if low is not None else -reach)))
    if high[0] - low[0] < NARROW:  # look all about, never twice in one place, ever further away
        width = (abs(high[0] - low[0]) + 4 * CLOSE * budget / slope) * (1 + tries / 8)
        return (low[0] + high[0]) / 2 + width * (tries * GOLDEN % 1.0 - 0.5)
    share = (aim - low[1]) / max(1, high[1] - low[1])
    if tries % 4 == 3:
        share = 0.5
    return low[0] + (high[0] - low[0]) * min(0.97, max(0.03, share))
