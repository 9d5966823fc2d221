"""Rounding written again, slowly and in float64: loops over columns, inverses taken whole, nothing shared with the package.

Legend: W weights (rows, cols), H second moment of the inputs (cols, cols).
"""

from __future__ import annotations

import numpy as np


def to_stored(steps: np.ndarray, smallest: float = 2.0**-14) -> np.ndarray:
    """Steps as a file holds them: fp16, or fp32 where one would lie below the normal fp16 numbers."""
    return steps.astype(np.float16 if steps.min() >= smallest else np.float32).astype(np.float64)


def reach(rule: tuple, W: np.ndarray) -> np.ndarray:
    """How far each row's grid goes from zero."""
    kind, *value = rule
    sizes = np.abs(W.astype(np.float64))
    if kind == "maximum":
        return sizes.max(1)
    if kind == "percentile":
        return np.array([np.quantile(row, value[0], method="linear") for row in sizes])
    if kind == "sigmas":
        return value[0] * np.sqrt(np.array([np.mean(row**2) for row in sizes]))
    assert kind == "shrunk"
    return value[0] * sizes.max(1)


def row_steps(rule: tuple, W: np.ndarray, levels: float, floor: float | None = None) -> np.ndarray:
    steps = reach(rule, W) / levels
    if floor is not None:
        steps = np.maximum(steps, floor)
    steps[reach(rule, W) == 0] = 1.0
    return to_stored(steps)


def nearest(W: np.ndarray, steps: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """Codes by trying every one of them."""
    candidates = np.arange(lowest, highest + 1)
    errors = np.abs(W[:, :, None].astype(np.float64) - steps[:, None, None] * candidates)
    return candidates[errors.argmin(2)]


def nearest_code(w: np.ndarray, steps: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """Codes of one column (rows,) where there are too many to try."""
    return np.clip(np.rint(w / steps), lowest, highest)


def order_of(H: np.ndarray, order: str) -> list[int]:
    diagonal = np.diag(H)
    columns = sorted(range(len(H)), key=lambda j: diagonal[j])
    return {"given": list(range(len(H))), "ascending": columns, "descending": columns[::-1]}[order]


def damped(H: np.ndarray, damp: float, times: int = 1) -> np.ndarray:
    return H.astype(np.float64) + times * damp * np.mean(np.diag(H)) * np.eye(len(H))


def brain_surgeon(
    W: np.ndarray, steps: np.ndarray, lowest: int, highest: int, H: np.ndarray, order: list[int], keep: np.ndarray | None = None
) -> np.ndarray:
    """Codes by Optimal Brain Quantisation in a fixed order: each column's error goes to the columns that are left, by the inverse of
    *their* second moment, which is taken anew for every column. H is damped already; steps are (rows,) or (rows, cols)."""
    W = W.astype(np.float64).copy()
    steps = np.broadcast_to(steps[:, None] if steps.ndim == 1 else steps, W.shape)
    codes = np.zeros(W.shape, dtype=np.int64)
    left = list(order)
    while left:
        j = left[0]
        inverse = np.linalg.inv(H[np.ix_(left, left)])
        codes[:, j] = nearest_code(W[:, j], steps[:, j], lowest, highest)
        if keep is not None:
            codes[~keep[:, j], j] = 0
        error = (W[:, j] - codes[:, j] * steps[:, j]) / inverse[0, 0]
        for position, k in enumerate(left[1:], start=1):
            W[:, k] -= error * inverse[0, position]
        left = left[1:]
    return codes


def whole_inverse(W: np.ndarray, steps: np.ndarray, lowest: int, highest: int, H: np.ndarray, order: list[int]) -> np.ndarray:
    """The same with one inverse for all columns, never taken anew (PR #578)."""
    W = W.astype(np.float64).copy()
    G = np.linalg.inv(H)
    codes = np.zeros(W.shape, dtype=np.int64)
    for position, j in enumerate(order):
        codes[:, j] = nearest_code(W[:, j], steps, lowest, highest)
        error = (W[:, j] - codes[:, j] * steps) / G[j, j]
        for k in order[position + 1 :]:
            W[:, k] -= error * G[j, k]
    return codes


def output_error(W: np.ndarray, W_hat: np.ndarray, X: np.ndarray) -> float:
    """Mean square of what a map's outputs change by."""
    return float(np.mean((X @ (W.astype(np.float64) - W_hat.astype(np.float64)).T) ** 2))


def conditional_diagonal(H: np.ndarray, order: list[int]) -> np.ndarray:
    """L_jj² of every column: what is left of its second moment once the columns after it in ``order`` have explained what they can.

    By a Cholesky factorisation of the reversed matrix.
    """
    backwards = order[::-1]
    lower = np.linalg.cholesky(H[np.ix_(backwards, backwards)])
    out = np.empty(len(H))
    out[backwards] = np.diag(lower) ** 2
    return out


# Trellis-coded quantisation, as ISO/IEC 15938-17 draws it: (state, parity) -> state, and which states have the odd quantiser.
FOLLOWING = {
    4: {0: (0, 2), 1: (2, 0), 2: (1, 3), 3: (3, 1)},
    8: {0: (0, 2), 1: (5, 7), 2: (1, 3), 3: (6, 4), 4: (2, 0), 5: (4, 6), 6: (3, 1), 7: (7, 5)},
}
ODD_STATES = {4: (2, 3), 8: (1, 3, 5, 7)}


def walk(codes: list[int], states: int) -> tuple[list[int], list[int]]:
    """Points (in half steps) and states of one column of codes."""
    if states == 1:
        return list(codes), [0] * len(codes)
    points, visited, state = [], [], 0
    for code in codes:
        visited.append(state)
        point = 2 * code
        if state in ODD_STATES[states]:
            if code > 0:
                point -= 1
            elif code < 0:
                point += 1
        points.append(point)
        state = FOLLOWING[states][state][code % 2]
    return points, visited


def entropy_bits(symbols: np.ndarray) -> float:
    """Empirical entropy of a list of symbols, in bits each."""
    counts = np.unique(symbols, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
