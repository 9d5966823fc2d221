"""Windows from many shards at once: strides coprime to a shard's number of blocks visit each of them once, and ever more shards mix.

Source: PR #1171. There every call of a rank drew its own small batch; here a step draws one global batch, however many
ranks and micro batches share it (Parameter Golf baseline).

Shapes: S shards, N rows of a global batch, T tokens a row plus the one that follows.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

from bytefit.data.shards import TokenStream, check_length
from bytefit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CoprimeConfig:
    """Which shards a batch mixes, annealed over the first steps.

    A shard is chosen with weight ``blocks left in it ** exponent``. The defaults are the source's on eight ranks.

    Attributes:
        anneal_steps: steps until the exponent and the number of shards reach their last values; give a share of the run's steps.
        exponent_start, exponent_end: in [0, 1]; 1 draws shards by what is left in them, 0 all alike.
        min_shards, max_shards: shards in one batch at the start and at the end (where the stream and the batch have so many).
        shard_tokens: cut the stream's shards into pieces of so many tokens, so that one file can be mixed too; None leaves them whole.
    """

    anneal_steps: int = 1800
    exponent_start: float = 0.9
    exponent_end: float = 0.5
    min_shards: int = 8
    max_shards: int = 64
    shard_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.anneal_steps < 1:
            raise ValueError(f"anneal_steps {self.anneal_steps} must be at least 1")
        for name in ("exponent_start", "exponent_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must lie in [0, 1]")
        if self.min_shards < 1:
            raise ValueError(f"min_shards {self.min_shards} must be at least 1")
        if self.max_shards < self.min_shards:
            raise ValueError(f"max_shards {self.max_shards} must be at least min_shards {self.min_shards}")
        if self.shard_tokens is not None and self.shard_tokens < 2:
            raise ValueError(f"shard_tokens {self.shard_tokens} must be at least 2 (and train.seq_len + 1), or null")

    def build(self, stream: TokenStream, seq_len: int, num_rows: int, seed: int) -> CoprimeLoader:
        return CoprimeLoader(stream, seq_len, num_rows, seed, self)


def cut_shards(sizes: np.ndarray, seq_len: int, shard_tokens: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of a stream that hold a window each: position of the first token and number of tokens, both int64 of shape (S,).

    What is left at the end of a shard and shorter than a window stays with the piece before it; shorter shards are left out.

    Args:
        sizes: tokens of each shard of the stream.
        shard_tokens: tokens of a piece, at least ``seq_len + 1``; None makes every shard one piece.
    """
    starts, counts = [], []
    for shard_start, size in zip((np.cumsum(sizes) - sizes).tolist(), sizes.tolist(), strict=True):
        bounds = [*range(0, size, shard_tokens or size), size]
        if size - bounds[-2] <= seq_len:
            del bounds[-2]  # in a shard too short for one window this is its only piece
        for start, end in itertools.pairwise(bounds):
            starts.append(shard_start + start)
            counts.append(end - start)
    return np.array(starts, dtype=np.int64), np.array(counts, dtype=np.int64)


class Planner:
    """Where the windows of one step after another lie. It reads no tokens, so that passing over steps is cheap.

    Args:
        config: the loader's.
        starts, tokens: the shards as :func:`cut_shards` gives them, each with at least ``seq_len + 1`` tokens.
        num_rows: windows a step.
        entropy: non-negative integers that seed the generator.
    """

    def __init__(self, config: CoprimeConfig, starts: np.ndarray, tokens: np.ndarray, seq_len: int, num_rows: int, entropy: list[int]):
        self._config, self._starts, self._tokens, self._seq_len, self._num_rows = config, starts, tokens, seq_len, num_rows
        self._generator = np.random.Generator(np.random.PCG64(entropy))
        self.step = 0
        # A walk's k-th block is (first + k * stride) mod blocks; a shard with 0 blocks has no walk yet.
        self._walks = np.zeros((5, len(tokens)), dtype=np.int64)
        self._phase, self._blocks, self._first, self._stride, self._used = self._walks

    def plan(self) -> np.ndarray:
        """Positions in the stream of the first tokens of the windows of step ``self.step``, which it counts on: int64 of shape (N,)."""
        config, generator = self._config, self._generator
        progress = min(self.step / config.anneal_steps, 1.0)
        self.step += 1
        left = np.where(self._blocks > 0, np.maximum(self._blocks - self._used, 1), (self._tokens - 1) // self._seq_len)
        weights = left ** (config.exponent_start + (config.exponent_end - config.exponent_start) * progress)
        low, high = (min(limit, len(left), self._num_rows) for limit in (config.min_shards, config.max_shards))
        mixed = round(low + progress * (high - low))
        shards = generator.choice(len(left), mixed, replace=False, p=weights / weights.sum())
        counts = 1 + generator.multinomial(self._num_rows - mixed, weights[shards] / weights[shards].sum())
        return self._interleave(*self._take(shards, counts))

    def _take(self, shards: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The next ``counts`` windows of each of ``shards``: their shards and their positions in the stream, int64 of shape (N,)."""
        owners, positions = [], []
        while len(shards):
            for shard in shards[self._used[shards] == self._blocks[shards]].tolist():
                self._start_walk(shard)
            taken = np.minimum(counts, self._blocks[shards] - self._used[shards])
            owner = np.repeat(shards, taken)
            k = self._used[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(taken) - taken, taken)
            block = (self._first[owner] + k * self._stride[owner]) % self._blocks[owner]
            owners.append(owner)
            positions.append(self._starts[owner] + self._phase[owner] + block * self._seq_len)
            self._used[shards] += taken
            unfinished = counts > taken  # at the end of their walks
            shards, counts = shards[unfinished], (counts - taken)[unfinished]
        return np.concatenate(owners), np.concatenate(positions)

    def _start_walk(self, shard: int) -> None:
        """Draw phase, first block and stride; coprime to the number of blocks, the stride visits each of them once."""
        tokens, integers = int(self._tokens[shard]), self._generator.integers
        phase = int(integers(min(self._seq_len, tokens - self._seq_len)))  # a shorter shard leaves room for one block
        blocks = (tokens - 1 - phase) // self._seq_len
        first = int(integers(blocks))
        stride = 1 if blocks == 1 else int(integers(1, blocks))
        while math.gcd(stride, blocks) > 1:
            stride = int(integers(1, blocks))
        self._walks[:, shard] = phase, blocks, first, stride, 0

    def _interleave(self, owners: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Shuffle each shard's windows, then pass over the shards that have some left, in a new order each time, taking one of each.

        Sorting by random keys does so for all shards at once, and makes a shuffle of the shards beforehand needless.
        """
        order = np.lexsort((self._generator.random(len(owners)), owners))
        owners = owners[order]
        turn = np.arange(len(owners)) - np.searchsorted(owners, owners)
        return positions[order[np.lexsort((self._generator.random(len(owners)), turn))]]


class CoprimeLoader:
    """Rows as a :class:`Planner` places them. An earlier step than the last thousand is planned again from step 0 on.

    Everything random comes from the seed and what the shards hold, not from how or where their files are named.

    Raises:
        UserError: no shard is as long as a window, or ``shard_tokens`` is shorter than one.
    """

    def __init__(self, stream: TokenStream, seq_len: int, num_rows: int, seed: int, config: CoprimeConfig):
        sizes = stream.shard_sizes()
        check_length(int(sizes.max(initial=0)), seq_len, "the training split's longest shard")
        if config.shard_tokens is not None and config.shard_tokens <= seq_len:
            raise UserError(f"loader.shard_tokens {config.shard_tokens} is less than one window; make it at least {seq_len + 1}, or null")
        self.num_rows = num_rows
        self._stream, self._seq_len = stream, seq_len
        pieces = cut_shards(sizes, seq_len, config.shard_tokens)
        self._new_planner = functools.partial(Planner, config, *pieces, seq_len, num_rows, [seed, stream.fingerprint()])
        self._planner = self._new_planner()
        # Micro batches ask for a step several times, a replay for the last ones.
        self._plan = functools.lru_cache(maxsize=1024)(self._make_plan)

    def _make_plan(self, step: int) -> np.ndarray:
        if step < self._planner.step:
            self._planner = self._new_planner()
        while self._planner.step < step:
            self._planner.plan()
        return self._planner.plan()

    def rows(self, step: int, first: int, last: int) -> np.ndarray:
        """Rows ``first <= row < last`` of the batch of ``step``: int64 of shape (last - first, T + 1)."""
        plan = self._plan(step)
        out = np.empty((last - first, self._seq_len + 1), dtype=np.int64)
        for row in range(first, last):
            out[row - first] = self._stream.read(int(plan[row]), self._seq_len + 1)
        return out
