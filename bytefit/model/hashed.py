"""What the hash tables of the last tokens have in common (``bigram.py``, ``trigram.py``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bytefit.model.linear import Linear, Table
from bytefit.model.roles import Role, parameter


def check_hashed(name: str, buckets: int, dim: int) -> None:
    """Raises ValueError for a table that nothing can be looked up in; ``name`` is what it is called."""
    if not 2 <= buckets <= 1 << 24:
        raise ValueError(f"{name} buckets {buckets} must lie in 2..{1 << 24}")
    if not 1 <= dim <= 65_536:
        raise ValueError(f"{name} dim {dim} must lie in 1..65536")


class HashedTable(nn.Module):
    """``scale · P·h``, with h the row of a narrow table that a hash of the last tokens names; the table starts at zero.

    Args:
        buckets: rows of the table.
        width: their length.
        dim: of the residual stream.
    """

    def __init__(self, buckets: int, width: int, dim: int, *, scale_init: float, orthogonal_gain: float):
        super().__init__()
        self.buckets = buckets
        self.table = Table(torch.zeros(buckets, width))
        self.projection = Linear(width, dim, Role.PROJECTION, orthogonal_gain=orthogonal_gain)
        self.scale = parameter(torch.tensor(scale_init), Role.GAIN)

    def rows(self, ids_BT: Tensor) -> Tensor:
        """The table's row of every position, int64 (B, T)."""
        raise NotImplementedError

    def forward(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """What is added to the token rows: (B, T, D)."""
        return self.scale.to(dtype) * self.projection(self.table(self.rows(ids_BT), dtype))
