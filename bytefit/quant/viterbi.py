"""The codes of one column, chosen together: the path through a trellis that costs least, errors and bytes counted.

Each state has a quantiser of its own: zero and the even half steps, or zero and the odd ones; the parity of a code decides the next
state. Two coarse quantisers that take turns cost the bytes of a coarse one and leave the error of a finer one (trellis-coded
quantisation: Marcellin and Fischer 1990; dependent quantisation: ISO/IEC 15938-17). With a single state and plain integers the same
search is rounding with an eye on the price.
"""

from __future__ import annotations

import math

import numpy as np

from bytefit.compiled import compiled

# Prices of codes, in bits: by spread of what is rounded (in steps of the quantiser, quarter octaves), by quantiser, by magnitude.
LOWEST_SPREAD, HIGHEST_SPREAD = -16, 40
MAX_PRICED = 255
SCALAR, EVEN, ODD = 0, 1, 2


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x.ravel()]).reshape(x.shape)


def make_prices() -> np.ndarray:
    """float32 (spreads, 3, MAX_PRICED + 1): bits of a code of this magnitude, its sign included.

    What is rounded is taken as normal with a small share of three times the spread, because weights have tails.
    """
    spreads = 2.0 ** (np.arange(LOWEST_SPREAD, HIGHEST_SPREAD + 1) / 4)
    k = np.arange(MAX_PRICED + 1)
    # In quantiser steps: where the cell of magnitude k begins and ends. Points of the odd quantiser lie half a step nearer to zero.
    edges = {SCALAR: (k - 0.5, k + 0.5), EVEN: (k - 0.5, k + 0.5), ODD: (np.maximum(k - 1.0, 0.25), np.where(k == 0, 0.25, k))}
    prices = np.empty((len(spreads), 3, MAX_PRICED + 1), dtype=np.float32)
    for quantiser, (low, high) in edges.items():
        for i, spread in enumerate(spreads):
            mass = np.zeros(len(k))
            for share, factor in ((0.97, 1.0), (0.03, 3.0)):
                inside = _normal_cdf(-low / (spread * factor)) - _normal_cdf(-high / (spread * factor))
                inside[0] = 1 - 2 * _normal_cdf(np.array([-high[0] / (spread * factor)]))[0]
                mass += share * inside
            prices[i, quantiser] = -np.log2(np.maximum(mass, 1e-30))
    # Far out the mass vanishes in the last digits; there the price goes on rising as it did before.
    worst = prices[:, :, :1] * 0 + 60
    return np.minimum(prices, worst).astype(np.float32)


PRICES = make_prices()


@compiled(fastmath=True, nogil=True)
def _best_of_parity(y: float, quantiser: int, parity: int, prices: np.ndarray, weight: float) -> tuple[float, int]:
    """The code of this parity that costs least for a target of ``y`` half steps (steps, for plain integers): (cost, code)."""
    a = abs(y)
    if quantiser == ODD and parity == 0:
        lower = 2 * math.floor((a + 1) / 4)
    elif quantiser == ODD:
        lower = 2 * max(0, math.floor((a - 1) / 4)) + 1
    elif quantiser == EVEN:
        lower = 2 * math.floor((a / 2 - parity) / 2) + parity
    else:
        lower = 2 * math.floor((a - parity) / 2) + parity
    best_cost, best = 1e30, 0
    for code in (lower, lower + 2):
        magnitude = abs(code)
        if quantiser == SCALAR:
            point = float(code)
        elif quantiser == EVEN:
            point = 2.0 * code
        else:
            point = 2.0 * code - (1.0 if code > 0 else 0.0)
        price = prices[min(magnitude, MAX_PRICED)]
        cost = (a - point) ** 2 + weight * price
        if cost < best_cost:
            best_cost, best = cost, code
    return best_cost, -best if y < 0 else best


@compiled(fastmath=True, nogil=True)
def choose_column(
    targets: np.ndarray,
    spreads: np.ndarray,
    following: np.ndarray,
    quantisers: np.ndarray,
    prices: np.ndarray,
    weight: float,
    keep: np.ndarray,
    back: np.ndarray,
    chosen: np.ndarray,
    codes: np.ndarray,
) -> None:
    """The path of least cost down one column.

    Args:
        targets: float32 (rows,), in half steps (in steps, for plain integers).
        spreads: int (rows,), index into ``prices``.
        following: (states, 2), the next state by parity.
        quantisers: (states,), index into ``prices``.
        weight: what a bit counts against squared error.
        keep: bool (rows,), False where the code has to be 0; or empty.
        back, chosen: (rows, states) scratch.
        codes: int32 (rows,), filled.
    """
    states = len(quantisers)
    cost = np.full(states, 1e30)
    cost[0] = 0.0
    for i in range(len(targets)):
        best_cost, best_code = np.empty((3, 2)), np.empty((3, 2), dtype=np.int32)
        first, last = (SCALAR, SCALAR) if states == 1 else (EVEN, ODD)
        for quantiser in range(first, last + 1):
            for parity in range(2):
                best_cost[quantiser, parity], best_code[quantiser, parity] = _best_of_parity(
                    targets[i], quantiser, parity, prices[spreads[i], quantiser], weight
                )
        if keep.size and not keep[i]:
            best_cost[:, 0], best_cost[:, 1], best_code[:, 0] = 0.0, 1e29, 0
        reached = np.full(states, 1e30)
        for state in range(states):
            if cost[state] >= 1e30:
                continue
            for parity in range(2):
                total = cost[state] + best_cost[quantisers[state], parity]
                after = following[state, parity]
                if total < reached[after]:
                    reached[after] = total
                    back[i, after] = state
                    chosen[i, after] = best_code[quantisers[state], parity]
        cost = reached
    state = int(np.argmin(cost))
    for i in range(len(targets) - 1, -1, -1):
        codes[i] = chosen[i, state]
        state = back[i, state]
