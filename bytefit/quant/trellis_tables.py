"""State machines of trellis-coded quantisation.

A trellis-coded column has two quantisers, and the parity of each code decides which one the next row uses: the state moves
from ``s`` to ``NEXT[s, code & 1]``. The machine with four states is that of H.266 (VVC, dependent quantisation).
"""

from __future__ import annotations

import numpy as np

# Number of states -> (NEXT (S, 2): the following state by parity; QUANTISER (S,): 0 or 1).
TRELLIS: dict[int, tuple[np.ndarray, np.ndarray]] = {
    4: (
        np.array([[0, 2], [2, 0], [1, 3], [3, 1]], dtype=np.uint8),
        np.array([0, 0, 1, 1], dtype=np.uint8),
    ),
    8: (
        np.array([[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]], dtype=np.uint8),
        np.array([0, 1, 0, 1, 0, 1, 0, 1], dtype=np.uint8),
    ),
}
