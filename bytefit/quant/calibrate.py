"""Calibration: what each matrix sees and how much its outputs matter, measured on some text.

Where the text comes from is an explicit choice, because the contest's rules turn on it: training text counts against the training
clock, and validation text may not be used at all. Nothing here can read validation text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bytefit.data.shards import TokenStream
from bytefit.data.tokenizer import BOS_ID, Tokenizer
from bytefit.errors import UserError
from bytefit.files import read_bytes, write_bytes
from bytefit.model.language_model import Cache, LanguageModel
from bytefit.model.linear import Linear, Table
from bytefit.model.roles import ParameterInfo, Role
from bytefit.quant.metric import Metric

Statistics = dict[str, Metric]  # by the matrix's parameter name

_GOLDEN = 0.6180339887  # its multiples fill an interval evenly, however many there are


@dataclass(frozen=True, kw_only=True)
class TrainingText:
    """Windows spread evenly over the training split. Their seconds count against the training budget where it is a clock."""


@dataclass(frozen=True, kw_only=True)
class ModelText:
    """Text that the model writes itself, each window from an empty prompt (PR #1019).

    Attributes:
        temperature: of the sampling.
    """

    temperature: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= 100:
            raise ValueError(f"calibration temperature {self.temperature} must lie in (0, 100]")


@dataclass(frozen=True, kw_only=True)
class RandomIds:
    """Ids drawn evenly from the vocabulary (what PR #1171 really did)."""


@dataclass(frozen=True, kw_only=True)
class OwnText:
    """A UTF-8 text file.

    Attributes:
        path: of the file.
    """

    path: str


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """
    Attributes:
        source: where the text comes from.
        windows: how many windows, of the training length each.
        batch_windows: how many go through the model at once.
        sequential: once the codes are chosen, take the inputs again block by block, as the blocks before leave them once they are
            rounded, and choose the codes again.
    """

    source: TrainingText | ModelText | RandomIds | OwnText
    windows: int = 256
    batch_windows: int = 32
    sequential: bool = False

    def __post_init__(self) -> None:
        if self.windows < 1 or self.batch_windows < 1:
            raise ValueError(f"calibration windows {self.windows} and batch_windows {self.batch_windows} must be at least 1")


class _Moments:
    """Running sums for one map or table."""

    def __init__(self) -> None:
        self.inputs: Tensor | None = None  # Σ x xᵀ
        self.output_squares: Tensor | None = None  # Σ g²
        self.row_counts: Tensor | None = None  # of a table's rows
        self.row_gradients: Tensor | None = None  # Σ g gᵀ over looked-up rows


class _Listener:
    """Sums up what goes through one map or table; the maps of one matmul share the sum of their inputs."""

    def __init__(self, moments: _Moments, num_rows: int, inputs: dict[int, tuple[Tensor, Tensor]]):
        self.moments, self.num_rows, self.seen = moments, num_rows, inputs

    def multiplied(self, x: Tensor, y: Tensor) -> None:
        flat = x.detach().reshape(-1, x.size(-1)).float()
        held, total = self.seen.get(id(x), (None, None))
        if held is None or total is None:
            total = flat.T @ flat
            self.seen[id(x)] = (x, total)  # holding x keeps its id from being used again
        self.moments.inputs = total if self.moments.inputs is None else self.moments.inputs + total
        if y.requires_grad:
            y.register_hook(self._add_output_squares)  # type: ignore[no-untyped-call]

    def _add_output_squares(self, gradient: Tensor) -> None:
        squares = gradient.reshape(-1, gradient.size(-1)).float().square().sum(0)
        self.moments.output_squares = squares if self.moments.output_squares is None else self.moments.output_squares + squares

    def looked_up(self, ids: Tensor, rows: Tensor) -> None:
        counts = torch.bincount(ids.flatten(), minlength=self.num_rows).float()
        self.moments.row_counts = counts if self.moments.row_counts is None else self.moments.row_counts + counts
        if rows.requires_grad:
            rows.register_hook(self._add_row_gradients)  # type: ignore[no-untyped-call]

    def _add_row_gradients(self, gradient: Tensor) -> None:
        flat = gradient.reshape(-1, gradient.size(-1)).float()
        total = flat.T @ flat
        self.moments.row_gradients = total if self.moments.row_gradients is None else self.moments.row_gradients + total


@contextmanager
def _listening(model: LanguageModel, sums: dict[str, _Moments], only: set[str] | None) -> Iterator[None]:
    """Observers that add to ``sums`` what goes through every map and table (or those of ``only`` parameters) within the context."""
    inputs: dict[int, tuple[Tensor, Tensor]] = {}
    places = [(name, m) for name, m in model.named_modules() if isinstance(m, Linear | Table)]
    try:
        for name, module in places:
            if only is None or f"{name}.weight" in only:
                moments = sums.setdefault(f"{name}.weight", _Moments())
                module.observer = _Listener(moments, module.weight.size(0), inputs)
        yield
    finally:
        for _, module in places:
            module.observer = None


def collect(model: LanguageModel, batches: Iterable[Tensor], *, gradients: bool, seed: int = 0, only: set[str] | None = None) -> Statistics:
    """The metric of every matrix, in fp32 and on the CPU, wherever the model is.

    Args:
        model: the averaged, unrounded model.
        batches: token ids (B, T).
        gradients: also the outputs' second moments, from labels drawn from the model's predictions (the true Fisher information, not
            the empirical one).
        only: names of the parameters to look at.

    Raises:
        UserError: there is not a single batch.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, sums = 0, dict[str, _Moments]()
    for ids_BT in batches:  # may be written by this very model, which nobody should listen to
        tokens += ids_BT.numel()
        with _listening(model, sums, only), torch.set_grad_enabled(gradients):
            logits = model.logits(ids_BT)
            if gradients:
                flat = logits.flatten(0, 1)
                labels = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator).squeeze(-1).to(flat.device)
                loss = torch.nn.functional.cross_entropy(flat, labels, reduction="sum")
                loss.backward()  # type: ignore[no-untyped-call]
                model.zero_grad(set_to_none=True)
    if not tokens:
        raise UserError("calibration got no text at all; give it at least one window (calibrate.windows)")
    shapes = {info.name: info.parameter.shape for info in model.parameter_infos()}
    device = model.embedding.weight.device
    found: Statistics = {}
    for name, moments in sums.items():
        metric = _metric(moments, shapes[name], tokens, device)
        metric = Metric(metric.columns.cpu(), metric.rows.cpu())
        same = [m.columns for m in found.values() if m.columns.shape == metric.columns.shape and torch.equal(m.columns, metric.columns)]
        found[name] = Metric(same[0], metric.rows) if same else metric  # query, key and value share what they see
    return found


def _metric(moments: _Moments, shape: torch.Size, tokens: int, device: torch.device) -> Metric:
    """A map's metric, or a table's. Without gradients every output, and every channel of a row, matters alike.

    A tied table is both a table and an output matrix: its cost is a sum of two products, which is not a product; it is replaced by the one
    that has the sum's trace in every row and its mean over the rows.
    """
    num_rows, num_columns = shape
    columns, rows = torch.zeros(num_columns, num_columns, device=device), torch.zeros(num_rows, device=device)
    if moments.inputs is not None:
        inputs = moments.inputs / tokens
        squares = torch.ones(num_rows, device=device) if moments.output_squares is None else moments.output_squares / tokens
        if moments.row_counts is None:
            return Metric(inputs, squares)
        columns += inputs * squares.sum()
        rows += squares * inputs.trace()
    if moments.row_counts is not None:
        counts = moments.row_counts / tokens
        channels = torch.eye(num_columns, device=device)
        if moments.row_gradients is not None:
            # Rows that are looked up share one mean: a gradient that arrives is that of a row which was looked up.
            channels = moments.row_gradients / moments.row_counts.sum()
        columns += channels * counts.sum()
        rows += counts * channels.trace()
    return Metric(columns, rows / columns.trace().clamp_min(1e-30))


def calibration_batches(
    config: CalibrationConfig,
    model: LanguageModel,
    *,
    train: TokenStream,
    tokenizer: Tokenizer,
    seq_len: int,
    seed: int,
    stop_at: Callable[[], bool] = lambda: False,
) -> Iterator[Tensor]:
    """The batches (B, T) of ids that a config asks for.

    Args:
        stop_at: asked before every batch but the first; True ends the text early (the clock).

    Raises:
        UserError: the file is missing or too short, or the split is shorter than a window.
    """
    device = model.embedding.weight.device
    source, count = config.source, config.windows
    generator = torch.Generator().manual_seed(seed)

    def size(first: int) -> int:
        return min(config.batch_windows, count - first)

    for first in range(0, count, config.batch_windows):
        if first and stop_at():
            return
        if isinstance(source, RandomIds):
            ids = torch.randint(model.config.vocab_size, (size(first), seq_len), generator=generator)
        elif isinstance(source, ModelText):
            ids = _written_by(model, size(first), seq_len, source.temperature, generator)
        else:
            tokens = _tokens_of(source, train, tokenizer, seq_len)
            spread = np.linspace(0, len(tokens) - seq_len, count).astype(np.int64)
            starts = spread[in_any_number(count)][first : first + size(first)]
            ids = torch.stack([torch.from_numpy(np.asarray(tokens.read(int(start), seq_len), dtype=np.int64)) for start in starts])
        yield ids.to(device)


def in_any_number(count: int) -> np.ndarray:
    """Indices of ``count`` places in an order whose every beginning is spread evenly: the clock may end a calibration early."""
    return np.argsort(np.arange(count) * _GOLDEN % 1.0, kind="stable")


def _tokens_of(source: TrainingText | OwnText, train: TokenStream, tokenizer: Tokenizer, seq_len: int) -> TokenStream:
    if isinstance(source, TrainingText):
        stream, holder = train, "the training split"
    else:
        text = read_bytes(Path(source.path))
        stream, holder = TokenStream([np.array([BOS_ID, *tokenizer.encode_exact(text)], dtype=np.uint16)]), source.path
    if len(stream) < seq_len:
        raise UserError(f"{holder} holds {len(stream)} tokens, fewer than one window of {seq_len}; calibrate on more text")
    return stream


@torch.no_grad()
def _written_by(model: LanguageModel, count: int, seq_len: int, temperature: float, generator: torch.Generator) -> Tensor:
    """``count`` texts of ``seq_len`` ids, each from an empty prompt."""
    device = model.embedding.weight.device
    cache = Cache(model.config, count, seq_len, torch.float32, device)
    ids = torch.full((count, 1), BOS_ID)
    while ids.size(1) < seq_len:
        logits = model.logits(ids[:, cache.length :].to(device), torch.float32, cache)[:, -1].cpu()
        ids = torch.cat([ids, torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)], dim=1)
    return ids


def recollect(model: LanguageModel, rounded: Mapping[str, Tensor], batches: Sequence[Tensor], statistics: Statistics) -> Statistics:
    """The inputs' second moments once more, each block's as the rounded blocks before it leave them.

    The model's matrices are replaced block by block while this goes on, and put back afterwards.

    Args:
        rounded: every parameter as it will be decoded.
        statistics: of the unrounded model; what is known about the outputs stays.
    """
    infos = list(model.parameter_infos())
    last = max((info.block for info in infos if info.block is not None), default=-1)
    # What stands outside the blocks comes first, the output matrix last. Embeddings keep what is known: their inputs are the ids.
    stages = [[info for info in infos if info.block is None], *([i for i in infos if i.block == block] for block in range(last + 1))]
    kept = {info.name: info.parameter.detach().clone() for info in infos}
    outputs = {info.name for info in infos if info.role is Role.HEAD or info.parameter is model.embedding.weight}
    found = dict(statistics)

    def look_at(names: set[str]) -> None:
        seen = collect(model, batches, gradients=False, only=names & statistics.keys())
        found.update({name: Metric(metric.columns, statistics[name].rows) for name, metric in seen.items()})

    try:
        for stage in stages:
            look_at({info.name for info in stage} - outputs)
            with torch.no_grad():
                for info in stage:
                    info.parameter.copy_(rounded[info.name].view_as(info.parameter))
        if model.head.matrix is not None:
            look_at(outputs - {"embedding.weight"})
    finally:
        with torch.no_grad():
            for info in infos:
                info.parameter.copy_(kept[info.name])
    return found


def nothing_known(infos: Iterable[ParameterInfo]) -> Statistics:
    """Statistics that say nothing: every input and every output alike."""
    matrices = [info for info in infos if info.parameter.ndim == 2]
    return {info.name: Metric(torch.eye(info.parameter.shape[1]), torch.ones(info.parameter.shape[0])) for info in matrices}


def save_statistics(path: Path, statistics: Statistics, how: Any) -> None:
    """One safetensors file; second moments that several matrices share stand in it once."""
    tensors: dict[str, Tensor] = {}
    shares: dict[str, str] = {}
    owners: dict[int, str] = {}
    for name, metric in statistics.items():
        owner = owners.setdefault(id(metric.columns), name)
        shares[name] = owner
        tensors[f"rows/{name}"] = metric.rows.cpu()
        tensors[f"columns/{owner}"] = metric.columns.cpu()
    write_bytes(path, save(tensors, {"shares": json.dumps(shares), "how": json.dumps(how)}))


def load_statistics(path: Path) -> tuple[Statistics, Any] | None:
    """What ``save_statistics`` wrote; None where the file is damaged (it is measured again then)."""
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata()
            shares, how = json.loads(notes["shares"]), json.loads(notes["how"])
            columns = {owner: file.get_tensor(f"columns/{owner}") for owner in set(shares.values())}
            return {name: Metric(columns[owner], file.get_tensor(f"rows/{name}")) for name, owner in shares.items()}, how
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError):
        return None
