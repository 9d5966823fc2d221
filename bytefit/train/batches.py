"""Batches along a run: how long their windows are, how many there are of them, and which of them are this rank's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bytefit.data.loaders import Loader
from bytefit.data.shards import TokenStream
from bytefit.errors import UserError
from bytefit.ranks import Ranks
from bytefit.train.config import TrainConfig


@dataclass(frozen=True)
class Shape:
    """Of a global batch: ``rows`` windows of ``seq_len`` tokens."""

    seq_len: int
    rows: int

    @property
    def tokens(self) -> int:
        return self.seq_len * self.rows


class Batches:
    """Every batch of a run, a pure function of its number and shape.

    Raises:
        UserError: the split is too short for a window, the batch does not divide over the ranks, or it cannot grow.
    """

    def __init__(self, config: TrainConfig, stream: TokenStream, seed: int, ranks: Ranks):
        self.config, self.ranks = config, ranks
        lengths = dict.fromkeys([stage.seq_len for stage in config.lengths or ()] + [config.seq_len])
        self._loaders: dict[int, Loader] = {}
        for seq_len in lengths:
            loader = config.loader.build(stream, seq_len, config.batch_tokens // seq_len, seed)
            if loader.num_rows % ranks.world:
                raise UserError(f"{loader.num_rows} windows a step do not divide over {ranks.world} ranks; change train.batch_tokens")
            self._loaders[seq_len] = loader
        if config.batch_warmup is not None and self._micro_rows(config.seq_len) >= self.full(config.seq_len).rows // ranks.world:
            raise UserError(
                f"train.batch_warmup has nothing to grow by: batch_tokens {config.batch_tokens} is one forward pass on each rank "
                f"({ranks.world}); lower train.micro_batch_tokens"
            )

    def full(self, seq_len: int) -> Shape:
        """A whole batch of windows of this length."""
        return Shape(seq_len, self._loaders[seq_len].num_rows)

    def shape(self, *, step: int, fraction: float) -> Shape:
        """Of the batch at optimizer step ``step``, with this share of the budget used.

        It grows by whole forward passes of all ranks, so it is the same for any number of them that share out the same tokens a pass.
        """
        seq_len = next((stage.seq_len for stage in self.config.lengths or () if fraction < stage.until), self.config.seq_len)
        full, warmup = self.full(seq_len), self.config.batch_warmup
        if warmup is None or step >= warmup.steps:
            return full
        tokens = warmup.tokens + (self.config.batch_tokens - warmup.tokens) * step / warmup.steps
        unit = self._micro_rows(seq_len) * self.ranks.world
        return Shape(seq_len, min(full.rows, max(1, int(tokens / (seq_len * unit))) * unit))

    def shapes(self) -> list[Shape]:
        """One of each kind that a run goes through, the first one last."""
        return [self.full(seq_len) for seq_len in reversed(self._loaders)]

    def micro_batches(self, shape: Shape) -> list[tuple[int, int]]:
        """Row ranges of this rank's share of the global batch, a forward pass each."""
        share, rows = shape.rows // self.ranks.world, self._micro_rows(shape.seq_len)
        first = self.ranks.rank * share
        return [(start, min(start + rows, first + share)) for start in range(first, first + share, rows)]

    def tokens(self, batch: int, shape: Shape, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Ids and targets (rows, seq_len) of some rows of batch number ``batch``."""
        tokens = torch.from_numpy(self._loaders[shape.seq_len].rows(batch, start, end))
        if self.ranks.device != "cpu":
            tokens = tokens.pin_memory().to(self.ranks.device, non_blocking=True)  # the GPU works on while they travel
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _micro_rows(self, seq_len: int) -> int:
        return max(1, self.config.micro_batch_tokens // seq_len)
