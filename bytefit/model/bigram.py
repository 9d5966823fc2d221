"""Bigram hash embedding: a second table, looked up by a hash of the last two tokens (PR #162, #578, #693, #1171)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.data.tokenizer import BOS_ID
from bytefit.model.linear import Linear, Table
from bytefit.model.roles import Role, parameter

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
        if not 2 <= self.buckets <= 1 << 24:
            raise ValueError(f"bigram buckets {self.buckets} must lie in 2..{1 << 24}")
        if not 1 <= self.dim <= 65_536:
            raise ValueError(f"bigram dim {self.dim} must lie in 1..65536")

    def build(self, dim: int) -> BigramHash:
        return BigramHash(self, dim)


class BigramHash(nn.Module):
    def __init__(self, config: BigramHashConfig, dim: int):
        super().__init__()
        self.buckets, self.mask_documents = config.buckets, config.mask_documents
        self.table = Table(torch.zeros(config.buckets, config.dim))
        self.projection = Linear(config.dim, dim, Role.PROJECTION, orthogonal_gain=config.orthogonal_gain)
        self.scale = parameter(torch.tensor(config.scale_init), Role.GAIN)

    def rows(self, ids_BT: Tensor) -> Tensor:
        """The table's row of every position, int64 (B, T)."""
        hashed = (FACTORS[0] * ids_BT[:, 1:]) ^ (FACTORS[1] * ids_BT[:, :-1])
        rows = F.pad(hashed % (self.buckets - 1), (1, 0), value=self.buckets - 1)
        return torch.where(ids_BT == BOS_ID, self.buckets - 1, rows) if self.mask_documents else rows

    def forward(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """What is added to the token rows: (B, T, D)."""
        return self.scale.to(dtype) * self.projection(self.table(self.rows(ids_BT), dtype))
