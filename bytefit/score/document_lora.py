"""Every document with low-rank adapters of its own, learned while it is scored (``DocumentLora``; PR #77, #1530).

Documents lie side by side, one row of the batch each, and every row has its own adapters, so that one forward and one backward pass serve
all of them without anything passing from one to another. The pass that scores a chunk is the one that is learned from: costs are fixed
before the backward pass begins.
Legend: B documents, T positions, I inputs and O outputs of a map, R rank, V vocabulary.
"""

from __future__ import annotations

from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from bytefit.data.tokenizer import BOS_ID
from bytefit.errors import UserError
from bytefit.model.language_model import LanguageModel
from bytefit.model.linear import Linear, Table
from bytefit.model.roles import role_of
from bytefit.progress import progress_bar
from bytefit.ranks import Ranks
from bytefit.score.adapt import DocumentLora
from bytefit.score.harness import Running, Watch
from bytefit.score.tape import Tape
from bytefit.score.temperature import tempered
from bytefit.score.windows import Window


class RowAdapter(nn.Module):
    """``scale · B A x`` with matrices of its own for every row of the batch."""

    def __init__(self, num_rows: int, in_features: int, out_features: int, config: DocumentLora, generator: torch.Generator):
        super().__init__()
        start_RI = torch.randn(config.rank, in_features, generator=generator) * in_features**-0.5
        self.down_BRI = nn.Parameter(start_RI.repeat(num_rows, 1, 1))
        self.up_BOR = nn.Parameter(torch.zeros(num_rows, out_features, config.rank))
        self.scale = config.alpha / config.rank

    def forward(self, x_BTI: Tensor) -> Tensor:
        down, up = self.down_BRI.to(x_BTI.dtype), self.up_BOR.to(x_BTI.dtype)
        return self.scale * torch.bmm(torch.bmm(x_BTI, down.mT), up.mT)


class DocumentLearner:
    """A model with fresh adapters for some documents; as a context it gives the model back as it was."""

    def __init__(self, model: LanguageModel, config: DocumentLora, num_documents: int):
        self.model, self.config, self.steps = model, config, 0
        generator = torch.Generator().manual_seed(config.seed)
        self._places: list[Linear | Table] = []
        for module in model.modules():
            if isinstance(module, Linear) and role_of(module.weight).value in config.roles:
                self._places.append(module)
        if model.head.matrix is None and "head" in config.roles:
            self._places.append(model.embedding)
        self._adapters = []
        for place in self._places:
            outputs, inputs = place.weight.shape
            self._adapters.append(RowAdapter(num_documents, inputs, outputs, config, generator).to(place.weight.device))
        parameters = [p for adapter in self._adapters for p in adapter.parameters()]
        self._optimizer = torch.optim.AdamW(
            parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, foreach=False
        ) if parameters else None  # fmt: skip

    def __enter__(self) -> DocumentLearner:
        self._frozen = [p for p in self.model.parameters() if p.requires_grad]
        for p in self._frozen:
            p.requires_grad_(False)
        for place, adapter in zip(self._places, self._adapters, strict=True):
            place.adapter = adapter
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for place in self._places:
            place.adapter = None
        for p in self._frozen:
            p.requires_grad_(True)

    @torch.no_grad()
    def keep(self, rows: list[int]) -> None:
        """Go on with some of the documents alone, numbered from 0 again. The others have ended."""
        kept = []
        for adapter in self._adapters:
            for name, old in list(adapter.named_parameters()):
                new = nn.Parameter(old[rows])
                setattr(adapter, name, new)
                kept.append(new)
                if self._optimizer is not None:
                    state = self._optimizer.state.pop(old, {})
                    # Its step count has no rows.
                    self._optimizer.state[new] = {key: held[rows] if held.dim() else held for key, held in state.items()}
        if self._optimizer is not None:
            self._optimizer.param_groups[0]["params"] = kept

    def costs(self, ids_BT: Tensor, skip: int, targets_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Nats (B, T - skip) of the targets, with a graph to learn through; targets of -1 cost nothing."""
        logits = self.model.head_logits(self.model.hidden(ids_BT, dtype)[:, skip:])
        logits = tempered(logits, self.config.temperature)
        nats = nn.functional.cross_entropy(logits.flatten(0, 1), targets_BT.flatten(), reduction="none", ignore_index=-1)
        return nats.view_as(targets_BT)

    def learn(self, nats_BT: Tensor, targets_BT: Tensor) -> None:
        """One step, for each document on the mean cost of its own targets."""
        if self._optimizer is None:
            return
        self._optimizer.zero_grad(set_to_none=True)
        loss: Tensor = (nats_BT.sum(1) / (targets_BT >= 0).sum(1).clamp_min(1)).sum()
        torch.autograd.backward(loss)
        self._optimizer.step()
        self.steps += 1


def chunk_batch(sequences: list[Tensor], chunk: int, config: DocumentLora) -> tuple[Tensor, int, Tensor]:
    """A chunk of every document: inputs (B, T), how many of them are context alone, and targets (B, T - skip).

    Rows that are shorter, or have ended, are filled up: with BOS where it is an input (nothing before it sees it), with -1 where it is a
    target.
    """
    size = config.chunk_tokens
    first, start = chunk * size + 1, max(0, (chunk + 1) * size - config.window)
    last = min(first - 1 + size, max(len(sequence) for sequence in sequences) - 1)
    ids = torch.full((len(sequences), last - start), BOS_ID)
    targets = torch.full((len(sequences), last + 1 - first), -1)
    for row, sequence in enumerate(sequences):
        inputs, wanted = sequence[start:-1][: last - start], sequence[first : last + 1]
        ids[row, : len(inputs)] = inputs
        targets[row, : len(wanted)] = wanted
    return ids, first - 1 - start, targets


def going_on(lengths: list[int], done: int) -> list[int]:
    """Which documents have more than so many targets."""
    return [row for row, length in enumerate(lengths) if length > done]


def document_bounds(tokens: np.ndarray, piece_tokens: int | None = None) -> list[tuple[int, int]]:
    """(start, end) of every document, from its BOS to the BOS after it, both included; the latter is its last target.

    With ``piece_tokens`` those of its pieces: each starts where the last target of the one before it lies, which BOS stands for.
    """
    starts = [0, *(np.flatnonzero(tokens[1:] == BOS_ID) + 1).tolist()]
    ends = [start + 1 for start in starts[1:]] + [len(tokens)]
    found = []
    for start, end in zip(starts, ends, strict=True):
        size = piece_tokens or max(end - start, 1)
        found += [(first, min(first + size + 1, end)) for first in range(start, end - 1, size)]
    return found


def piece_lengths(length: int, piece_tokens: int | None) -> list[int]:
    """Targets of every piece of a document with so many; an empty document is an empty piece."""
    size = piece_tokens or max(length, 1)
    return [min(size, length - first) for first in range(0, length, size)] or [0]


def score_documents(model: LanguageModel, tapes: list[Tape], config: DocumentLora, dtype: torch.dtype, watch: Watch) -> int:
    """Score every document of the tapes from its own tokens alone, the BOS that ends it included. Returns the optimizer steps.

    Documents of about one length go together, so that little of a batch is empty.
    """
    documents = [(tape, start, end) for tape in tapes for start, end in document_bounds(tape.tokens.numpy(), config.piece_tokens)]
    documents.sort(key=lambda document: document[2] - document[1])
    batches = [documents[first : first + config.batch_documents] for first in range(0, len(documents), config.batch_documents)]
    ranks, journal = watch.ranks, watch.journal
    steps, done = 0, 0
    if journal is not None:
        done = journal.restore(tapes, None)
        steps = journal.steps
    so_far = Running(tapes, watch.counts)
    with progress_bar(total=sum(end - start - 1 for _, start, end in documents), desc=watch.title, unit=" tokens", unit_scale=True) as bar:
        bar.update(sum(int(tape.times.sum()) for tape in tapes))
        for first in range(done, len(batches), ranks.world):
            round_of = batches[first : first + ranks.world]  # one batch a rank
            try:
                costs, new_steps = _costs(model, round_of, config, dtype, ranks)
            except KeyboardInterrupt:
                if journal is not None:
                    journal.save(tapes, None, first, ranks, now=True)
                raise
            steps += new_steps
            for number, (batch, batch_costs) in enumerate(zip(round_of, costs, strict=True), start=first):
                windows = [(tape, Window(start, start + 1, end - 1)) for tape, start, end in batch]
                for (tape, window), nats in zip(windows, batch_costs, strict=True):
                    if np.isnan(nats).any():
                        raise UserError("the model gave NaN probabilities; its weights are damaged or adaptation made it diverge")
                    tape.book(window, nats)
                result = so_far.add(number, len(batches), [window for _, window in windows], batch_costs)
                if result.bits_per_byte is not None:
                    bar.set_postfix_str(f"{result.bits_per_byte:.4f} bits/byte", refresh=False)
                bar.update(result.targets)
                if watch.on_chunk is not None:
                    watch.on_chunk(result)
            if journal is not None:
                journal.steps = steps
                next_batch = first + len(round_of)
                journal.save(tapes, None, next_batch, ranks, now=next_batch == len(batches))
    return steps


def _costs(
    model: LanguageModel, batches: list[list[tuple[Tape, int, int]]], config: DocumentLora, dtype: torch.dtype, ranks: Ranks
) -> tuple[list[list[np.ndarray]], int]:
    """Nats of every target of every document of some batches, each computed by one rank, and the steps made."""
    costs, steps = [[np.zeros(end - start - 1) for _, start, end in batch] for batch in batches], 0
    if ranks.rank < len(batches):
        sequences = [_from_bos(tape.tokens[start:end]) for tape, start, end in batches[ranks.rank]]
        steps = _batch_costs(model, sequences, costs[ranks.rank], config, dtype)
    if ranks.world > 1:
        flat = [part for batch in costs for part in batch]
        whole = ranks.sum(torch.from_numpy(np.concatenate([*flat, [float(steps)]])).to(ranks.device)).cpu().numpy()
        parts = iter(np.split(whole[:-1], np.cumsum([len(part) for part in flat])[:-1]))
        costs, steps = [[next(parts) for _ in batch] for batch in costs], int(whole[-1])
    return costs, steps


def _from_bos(tokens: Tensor) -> Tensor:
    """The same, after BOS instead of the token before it."""
    return torch.cat([torch.full_like(tokens[:1], BOS_ID), tokens[1:]])


def _batch_costs(model: LanguageModel, sequences: list[Tensor], costs: list[np.ndarray], config: DocumentLora, dtype: torch.dtype) -> int:
    """Fill in the nats of one batch; returns the steps made."""
    device, size = model.embedding.weight.device, config.chunk_tokens
    with DocumentLearner(model, config, len(sequences)) as learner:
        for chunk in range(-(-max(map(len, costs)) // size)):
            rows = going_on([len(cost) for cost in costs], chunk * size)
            if len(rows) < len(costs):
                learner.keep(rows)
                sequences, costs = [sequences[row] for row in rows], [costs[row] for row in rows]
            ids, skip, targets = chunk_batch(sequences, chunk, config)
            nats_BT = learner.costs(ids.to(device), skip, targets.to(device), dtype)
            values = nats_BT.detach().double().cpu().numpy()
            for row, cost in enumerate(costs):
                part = cost[chunk * size : (chunk + 1) * size]
                part[:] = values[row, : len(part)]
            if going_on([len(cost) for cost in costs], (chunk + 1) * size):
                learner.learn(nats_BT, targets.to(device))
        return learner.steps
