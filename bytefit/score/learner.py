"""Learning from what has been scored: gradient steps on a packed model between the chunks of a protocol (``Adapt``).

What a learner does depends on the weights, the settings and the tokens, never on how they were scored: the encoder, the decoder and
the scorer of one text all arrive at the same weights.
"""

from __future__ import annotations

import math
from types import TracebackType

import torch
from torch import Tensor

from bytefit.dtypes import DtypeName, resolve_dtype
from bytefit.model.language_model import LanguageModel
from bytefit.model.roles import ParameterInfo
from bytefit.ranks import Ranks
from bytefit.score.adapt import AdamW, Adapt, DepthDecay, SignalToNoise
from bytefit.score.tape import Scored

# Positions in one forward and backward pass: on a CPU what its caches hold, on a GPU what keeps it busy, here 16 windows
# of 2,048 and the target behind each.
MICRO_TOKENS = {"cpu": 2048, "cuda": 16 * 2049}


class Learner:
    """Trains a model's selected parameters; as a context it gives the model back as it was.

    Args:
        num_chunks: of the whole text; the rate's schedule and the last chunk depend on it.
    """

    def __init__(self, model: LanguageModel, config: Adapt, num_chunks: int, ranks: Ranks):
        self.model, self.config, self.ranks = model, config, ranks
        self.num_chunks, self.learned_chunks = num_chunks, config.learned_chunks(num_chunks)
        self.infos = config.trains.of(model)
        self.parameters = [info.parameter for info in self.infos]
        self.steps = 0
        auto: DtypeName = "bfloat16" if model.embedding.weight.is_cuda else "float32"
        self._dtype = resolve_dtype(auto if config.dtype == "auto" else config.dtype, ranks.device)
        self._before = [p.detach().clone() for p in self.parameters]
        self._needed_gradient = [p.requires_grad for p in model.parameters()]
        # With an average, the model holds the average between two chunks, and these hold the weights that learn.
        self._live = [p.detach().clone() for p in self.parameters] if config.ema_decay is not None else []
        self.optimizer = _optimizer(config, self.infos)

    def __enter__(self) -> Learner:
        chosen = set(map(id, self.parameters))
        for p in self.model.parameters():
            p.requires_grad_(id(p) in chosen)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _copy(self._before, self.parameters)
        for p, needed in zip(self.model.parameters(), self._needed_gradient, strict=True):
            p.grad = None
            p.requires_grad_(needed)

    def learn(self, pieces: list[Scored], chunk: int) -> None:
        """Some epochs on a chunk: one piece a stream."""
        if chunk >= self.learned_chunks or not self.parameters:
            return
        if self._live:
            average = [p.detach().clone() for p in self.parameters]
            _copy(self._live, self.parameters)
        batches = self._batches(pieces)
        over_chunks = _half_cosine(chunk, self.config.train_chunks or self.num_chunks) if self.config.schedule == "cosine" else 1.0
        num_steps = self.config.epochs * len(batches)
        for step in range(num_steps):
            scale = over_chunks
            if self.config.within_chunk == "cosine":
                scale *= 0.1 + 0.9 * _half_cosine(step, num_steps)
            self._step(batches[step % len(batches)], scale)
        if self._live:
            decay = self.config.ema_decay
            assert decay is not None
            self._live = [p.detach().clone() for p in self.parameters]
            with torch.no_grad():
                for p, mean in zip(self.parameters, average, strict=True):
                    p.copy_(mean.lerp_(p.detach(), 1 - decay))

    def _batches(self, pieces: list[Scored]) -> list[list[Tensor]]:
        """Sequences of at most ``window`` inputs and as many targets, in order, ``batch_sequences`` a step."""
        window, size = self.config.window, self.config.batch_sequences
        sequences = [
            piece.tokens[start : start + window + 1] for piece in pieces for start in range(0, len(piece.tokens) - 1, window)
        ]  # fmt: skip
        return [sequences[start : start + size] for start in range(0, len(sequences), size)]

    def _step(self, batch: list[Tensor], scale: float) -> None:
        self._gradient(batch)
        if self.config.sam_radius is not None:
            norm = torch.stack([p.grad.norm() for p in self.parameters if p.grad is not None]).norm().clamp_min(1e-12)
            with torch.no_grad():
                kept = [p.clone() for p in self.parameters]
                for p in self.parameters:
                    assert p.grad is not None
                    p.add_(p.grad, alpha=self.config.sam_radius / float(norm))
            self._gradient(batch)
            _copy(kept, self.parameters)
        if isinstance(self.config.layer_rates, SignalToNoise):
            rates = self.config.layer_rates
            for p in self.parameters:
                if p.grad is not None and p.numel() > 1:
                    p.grad.mul_((p.grad.abs().mean() / p.grad.std().clamp_min(1e-12)).clamp(rates.lowest, rates.highest))
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * scale
        self.optimizer.step()
        self.steps += 1

    def _gradient(self, batch: list[Tensor]) -> None:
        """The gradient of the batch's mean cost a token, the same on every rank."""
        self.optimizer.zero_grad(set_to_none=True)
        tokens = sum(len(sequence) - 1 for sequence in batch)
        rank, world = self.ranks.rank, self.ranks.world
        mine = batch[rank * len(batch) // world : (rank + 1) * len(batch) // world]
        device = self.model.embedding.weight.device
        for rows in _equal_rows(mine, MICRO_TOKENS[device.type]):
            ids = torch.stack(rows).to(device)
            loss = self.model(ids[:, :-1], ids[:, 1:], self._dtype)
            (loss * ((ids.size(1) - 1) * len(ids) / tokens)).backward()
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if world > 1:
            flat = self.ranks.sum(torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None]))
            for p, part in zip(self.parameters, torch.split(flat, [p.numel() for p in self.parameters]), strict=True):
                p.grad = part.view_as(p)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next chunk depends on, for a progress file."""
        tensors = {f"weights.{i}": p.detach().clone() for i, p in enumerate(self.parameters)}
        tensors |= {f"live.{i}": w for i, w in enumerate(self._live)} | {"steps": torch.tensor(self.steps)}
        for i, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": torch.as_tensor(value) for key, value in entry.items() if value is not None}
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Raises KeyError or RuntimeError where they are not a learner's of this model."""
        _copy([tensors[f"weights.{i}"] for i in range(len(self.parameters))], self.parameters)
        self._live = [tensors[f"live.{i}"] for i in range(len(self._live))]
        self.steps = int(tensors["steps"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def _optimizer(config: Adapt, infos: list[ParameterInfo]) -> torch.optim.Optimizer:
    """PyTorch's, with one group a parameter, because rates may differ."""
    settings = config.optimizer
    top = max((info.block for info in infos if info.block is not None), default=0)
    groups = []
    for info in infos:
        depth = 0 if info.block is None or not isinstance(config.layer_rates, DepthDecay) else top - info.block
        factor = config.layer_rates.factor**depth if isinstance(config.layer_rates, DepthDecay) else 1.0
        groups.append({"params": [info.parameter], "lr": settings.lr, "full_lr": settings.lr * factor})
    groups = groups or [{"params": [torch.zeros(1)], "lr": 0.0, "full_lr": 0.0}]  # nothing trains
    if isinstance(settings, AdamW):
        return torch.optim.AdamW(groups, betas=settings.betas, weight_decay=settings.weight_decay, foreach=False)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, foreach=False)


def _half_cosine(position: int, count: int) -> float:
    """From 1 at the first of ``count`` to 0 at the last."""
    return 0.5 * (1 + math.cos(math.pi * position / (count - 1))) if count > 1 else 1.0


def _equal_rows(sequences: list[Tensor], most_tokens: int) -> list[list[Tensor]]:
    """Runs of equally long sequences, at most so many positions each."""
    runs: list[list[Tensor]] = []
    for sequence in sequences:
        last = runs[-1] if runs else []
        if last and len(last[0]) == len(sequence) and (len(last) + 1) * len(sequence) <= most_tokens:
            last.append(sequence)
        else:
            runs.append([sequence])
    return runs


def _copy(sources: list[Tensor], parameters: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for p, source in zip(parameters, sources, strict=True):
            p.copy_(source)
