"""Trigram hash embedding: one more table, looked up by a hash of the last three tokens (tried in PR #578, "leapfrog v5")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bytefit.data.tokenizer import BOS_ID
from bytefit.model.hashed import HashedTable, check_hashed

FACTORS = (17_911, 36_313, 27_191)  # of the oldest token, the one after it, and this one; with ids below 2^16 the sum fits 33 bits


@dataclass(frozen=True, kw_only=True)
class TrigramHashConfig:
    """Adds ``scale · P·h`` to the token's row before the first norm; h is row
    ``(17911·id_{t-2} + 36313·id_{t-1} + 27191·id_t) mod (buckets − 1)``.

    Attributes:
        buckets: rows of the table; the last one serves positions without two tokens before them.
        dim: width of the table.
        scale_init: start of the learned factor.
        orthogonal_gain: factor on the orthogonal start of P.
        mask_documents: no token of a document sees the document before it.
    """

    buckets: int = 2048
    dim: int = 48
    scale_init: float = 0.02
    orthogonal_gain: float = 1.0
    mask_documents: bool = False

    def __post_init__(self) -> None:
        check_hashed("trigram", self.buckets, self.dim)

    def build(self, dim: int) -> TrigramHash:
        return TrigramHash(self, dim)


class TrigramHash(HashedTable):
    lookback = 2  # tokens before its own that a position's row depends on

    def __init__(self, config: TrigramHashConfig, dim: int):
        super().__init__(config.buckets, config.dim, dim, scale_init=config.scale_init, orthogonal_gain=config.orthogonal_gain)
        self.mask_documents = config.mask_documents

    def rows(self, ids_BT: Tensor) -> Tensor:
        hashed = FACTORS[0] * ids_BT[:, :-2] + FACTORS[1] * ids_BT[:, 1:-1] + FACTORS[2] * ids_BT[:, 2:]
        rows = F.pad(hashed % (self.buckets - 1), (2, 0), value=self.buckets - 1)[:, : ids_BT.size(1)]
        if not self.mask_documents:
            return rows
        starts = ids_BT == BOS_ID
        crosses = starts | F.pad(starts[:, :-1], (1, 0), value=False)
        return torch.where(crosses, self.buckets - 1, rows)
