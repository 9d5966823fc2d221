"""Shared value embedding: a table of the token's own values, added in some blocks' attention (PR #578, #606, #693, #1171)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bytefit.model.linear import Linear, Table
from bytefit.model.roles import Role, parameter


@dataclass(frozen=True, kw_only=True)
class ValueEmbeddingConfig:
    """``v ← v + block_scale · scale · P·e[id]`` in the given blocks, before v is cut into heads.

    Attributes:
        blocks: which blocks take it.
        dim: width of the table.
        init_std: of the table's start.
        scale_init: start of the shared factor; each block's own starts at 1.
        orthogonal_gain: factor on the orthogonal start of P (PR #578 and #693 multiply by 1/sqrt(2·layers)).
    """

    blocks: tuple[int, ...]
    dim: int = 128
    init_std: float = 0.01
    scale_init: float = 0.1
    orthogonal_gain: float = 1.0

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("value_embedding.blocks is empty; name at least one block, or set value_embedding to null")
        if not 1 <= self.dim <= 65_536:
            raise ValueError(f"value_embedding dim {self.dim} must lie in 1..65536")
        if self.init_std < 0:
            raise ValueError(f"value_embedding init_std {self.init_std} must not be negative")

    def build(self, vocab_size: int, kv_dim: int) -> ValueEmbedding:
        return ValueEmbedding(self, vocab_size, kv_dim)


class ValueEmbedding(nn.Module):
    def __init__(self, config: ValueEmbeddingConfig, vocab_size: int, kv_dim: int):
        super().__init__()
        self.table = Table(torch.randn(vocab_size, config.dim) * config.init_std)
        self.projection = Linear(config.dim, kv_dim, Role.PROJECTION, orthogonal_gain=config.orthogonal_gain)
        self.scale = parameter(torch.tensor(config.scale_init), Role.GAIN)

    def forward(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """What the blocks share, before their own scale: (B, T, G*K)."""
        return self.scale.to(dtype) * self.projection(self.table(ids_BT, dtype))
