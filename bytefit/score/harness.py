"""The walk along a text: targets, counting and the order of updates are in its hands, and nobody else's.

A predictor is given tokens and answers with logits for what follows each of them; it never sees the last target of a window. A chunk's
costs are booked before a learner gets the chunk's tokens, and the tape (``tape.py``) refuses any other order. Sums are float64.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bytefit.errors import UserError
from bytefit.optim.muon import ONE_RANK
from bytefit.progress import progress_bar
from bytefit.ranks import Ranks
from bytefit.score.adapt import Adapt
from bytefit.score.journal import Journal
from bytefit.score.tape import Scored, Tape, chunk_piece
from bytefit.score.windows import Full, Sliding, Window

BATCH_TOKENS = {"cpu": 8192, "cuda": 32_768}  # positions in one forward pass; only those that are scored reach the head
CHUNK_TARGETS = 32_768  # reported and saved at a time, where the protocol has no chunks of its own


class Predictor(Protocol):
    """Maps strict prefixes to what may follow."""

    def logits(self, ids_BT: Tensor, skip: int) -> Tensor:
        """(B, T - skip, V) fp32: entry t from the ids 0 … skip + t of its row, and from nothing else."""


class Learns(Protocol):
    """What may change a predictor between two chunks."""

    def learn(self, pieces: list[Scored], chunk: int) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, tensors: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class ChunkResult:
    """One chunk, as it is reported while a score runs.

    Attributes:
        targets, nats, bytes: of this chunk (bytes are 0 where they are not known).
        bits_per_byte: of everything up to here; None where no bytes are known.
    """

    chunk: int
    num_chunks: int
    targets: int
    nats: float
    bytes: int
    bits_per_byte: float | None


@dataclass(frozen=True)
class Watch:
    """How a walk is followed.

    Attributes:
        counts: int64 (N - 1,), bytes of text by target of the (only) tape.
        journal: where progress is kept, so that a walk that was stopped goes on.
        on_chunk: called after each chunk, on every rank.
    """

    title: str = "scoring"
    ranks: Ranks = ONE_RANK
    counts: np.ndarray | None = None
    journal: Journal | None = None
    on_chunk: Callable[[ChunkResult], None] | None = None


def walk(predictor: Predictor, learner: Learns | None, tapes: list[Tape], protocol: Full | Sliding | Adapt, watch: Watch) -> None:
    """Chunk after chunk: score its windows, book them, then let the learner have its tokens."""
    size, chunks = _chunks(tapes, protocol)
    num_chunks = 1 + max(((len(tape.tokens) - 2) // size for tape in tapes), default=-1)
    journal = watch.journal
    done = journal.restore(tapes, learner) if journal is not None else 0
    so_far = Running(tapes, watch.counts)
    with progress_bar(total=sum(map(len, chunks.values())), desc=watch.title, unit=" windows") as bar:
        bar.update(sum(len(chunks.get(chunk, ())) for chunk in range(done)))
        for chunk in range(done, num_chunks):
            work = chunks.get(chunk, [])
            try:
                costs = _costs(predictor, work, watch.ranks, bar.update)
            except KeyboardInterrupt:
                if journal is not None:
                    journal.save(tapes, learner, chunk, watch.ranks, now=True)
                raise
            for (tape, window), nats in zip(work, costs, strict=True):
                tape.book(window, nats)
            result = so_far.add(chunk, num_chunks, [window for _, window in work], costs)
            if result.bits_per_byte is not None:
                bar.set_postfix_str(f"{result.bits_per_byte:.4f} bits/byte", refresh=False)
            if watch.on_chunk is not None:
                watch.on_chunk(result)
            if learner is not None:
                pieces = [chunk_piece(tape, len(tape.tokens), chunk, size) for tape in tapes]
                learner.learn([piece for piece in pieces if piece is not None], chunk)
            if journal is not None:
                journal.save(tapes, learner, chunk + 1, watch.ranks, now=chunk + 1 == num_chunks)


def batch_shapes(tapes: list[Tape], protocol: Full | Sliding | Adapt, ranks: Ranks) -> Counter[tuple[int, int, int]]:
    """How many batches of each shape this rank will give the predictor in ``walk``: (windows, inputs, inputs to skip)."""
    shapes: Counter[tuple[int, int, int]] = Counter()
    for work in _chunks(tapes, protocol)[1].values():
        for batch in _batches(work, ranks):
            window = work[batch[0]][1]
            shapes[len(batch), window.end - window.start, _skip(window)] += 1
    return shapes


def _chunks(tapes: list[Tape], protocol: Full | Sliding | Adapt) -> tuple[int, dict[int, list[tuple[Tape, Window]]]]:
    """Targets a chunk, and the windows of every chunk that has some."""
    size = protocol.chunk_tokens if isinstance(protocol, Adapt) else CHUNK_TARGETS
    chunks: dict[int, list[tuple[Tape, Window]]] = {}
    for tape in tapes:
        for window in protocol.windows(len(tape.tokens)):
            chunks.setdefault((window.first - 1) // size, []).append((tape, window))
    return size, chunks


class Running:
    """Totals of a walk, for its reports."""

    def __init__(self, tapes: list[Tape], counts: np.ndarray | None):
        self._counts = counts
        self._nats = float(sum(tape.nats.sum() for tape in tapes))
        self._bytes = 0 if counts is None else int((counts * tapes[0].times).sum())

    def add(self, chunk: int, num_chunks: int, windows: list[Window], costs: list[np.ndarray]) -> ChunkResult:
        """What is reported of a chunk whose costs are booked."""
        targets, nats, size = sum(map(len, costs)), float(sum(part.sum() for part in costs)), 0
        if self._counts is not None:
            size = int(sum(self._counts[window.first - 1 : window.end].sum() for window in windows))
        self._nats += nats
        self._bytes += size
        return ChunkResult(chunk, num_chunks, targets, nats, size, self._nats / math.log(2) / self._bytes if self._bytes else None)


def _costs(predictor: Predictor, work: list[tuple[Tape, Window]], ranks: Ranks, tell: Callable[[int], object]) -> list[np.ndarray]:
    """Nats of every target of every window; each rank computes its share, all get the whole."""
    costs = [np.zeros(window.end + 1 - window.first) for _, window in work]
    with torch.inference_mode():
        for batch in _batches(work, ranks):
            # Windows of one batch have one shape, so one forward pass serves them all.
            ids_BT = torch.stack([work[i][0].inputs(work[i][1]) for i in batch])
            logits = predictor.logits(ids_BT, _skip(work[batch[0]][1]))
            targets = torch.stack([work[i][0].targets(work[i][1]) for i in batch]).to(logits.device)
            nats_BT = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
            for i, nats in zip(batch, nats_BT.double().cpu().numpy(), strict=True):
                costs[i] = nats
            tell(len(batch) * ranks.world)
    if ranks.world > 1 and work:
        whole = ranks.sum(torch.from_numpy(np.concatenate(costs)).to(ranks.device)).cpu().numpy()
        costs = np.split(whole, np.cumsum([len(part) for part in costs])[:-1])
    if any(np.isnan(part).any() for part in costs):
        raise UserError("the model gave NaN probabilities; its weights are damaged or it diverged in training")
    return costs


def _skip(window: Window) -> int:
    """Inputs whose next tokens are not scored."""
    return window.first - 1 - window.start


def _batches(work: list[tuple[Tape, Window]], ranks: Ranks) -> list[list[int]]:
    """This rank's share of the windows: runs of one shape, so many positions each as a forward pass may have."""
    most = BATCH_TOKENS[torch.device(ranks.device).type]

    def shape(i: int) -> tuple[int, int]:
        window = work[i][1]
        return window.end - window.start, _skip(window)

    batches: list[list[int]] = []
    for i in range(ranks.rank * len(work) // ranks.world, (ranks.rank + 1) * len(work) // ranks.world):
        last = batches[-1] if batches else []
        if last and shape(last[0]) == shape(i) and (len(last) + 1) * shape(i)[0] <= most:
            last.append(i)
        else:
            batches.append([i])
    return batches
