"""Bigram hash embedding: a second table, looked up by a hash of the last two tokens (PR #162, #578, #693, #1171)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bytefit.data.tokenizer import BOS_ID
from bytefit.model.hashed import HashedTable, check_hashed

FACTORS = (36_313, 27_191)  # of this token and the one before it; with ids below 2^16 the products fit 32 bits unsigned


@dataclass(frozen=True, kw_only=True)
class BigramHashConfig:
    """Adds ``scale · P·h`` to the token's row before the first norm; h is row ``(36313·id_t xor 27191·id_{t-1}) mod (buckets − 1)``.

    Attributes:
        buckets: rows of the table; the last one serves positions without a token before them.
        dim: width of the table.
        scale_init: start of the learned factor.
        orthogonal_gain: factor on the orthogonal start of P (PR #578 and #693 multiply by 1/sqrt(2·layers)).
        mask_documents: the first token of a document does not see the document before it (the contest's scripts let it).
    """

    buckets: int = 2048
    dim: int = 128
    scale_init: float = 0.05
    orthogonal_gain: float = 1.0
    mask_documents: bool = False

    def __post_init__(self) -> None:
        check_hashed("bigram", self.buckets, self.dim)

    def build(self, dim: int) -> BigramHash:
        return BigramHash(self, dim)


class BigramHash(HashedTable):
    lookback = 1  # tokens before its own that a position's row depends on

    def __init__(self, config: BigramHashConfig, dim: int):
        super().__init__(config.buckets, config.dim, dim, scale_init=config.scale_init, orthogonal_gain=config.orthogonal_gain)
        self.mask_documents = config.mask_documents

    def rows(self, ids_BT: Tensor) -> Tensor:
        hashed = (FACTORS[0] * ids_BT[:, 1:]) ^ (FACTORS[1] * ids_BT[:, :-1])
        rows = F.pad(hashed % (self.buckets - 1), (1, 0), value=self.buckets - 1)
        return torch.where(ids_BT == BOS_ID, self.buckets - 1, rows) if self.mask_documents else rows
