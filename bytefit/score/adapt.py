"""Protocols that learn from what they have scored: settings, and which parameters they train.

A chunk of targets is scored first; only then may its tokens be learned from; the last chunk is never followed by learning (score-first
test-time training: PR #461, #578, #606, #1171, #1413; per-document adapters: PR #77, #1530).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bytefit.dtypes import DtypeName
from bytefit.model.language_model import LanguageModel
from bytefit.model.roles import ParameterInfo
from bytefit.score.windows import Sliding, Window

RoleName = Literal["table", "attention", "attention_out", "mlp", "projection", "head", "gain"]
ALL_ROLES: tuple[RoleName, ...] = ("table", "attention", "attention_out", "mlp", "projection", "head", "gain")
IN_BLOCKS: tuple[RoleName, ...] = ("attention", "attention_out", "mlp")
MAPS: tuple[RoleName, ...] = ("attention", "attention_out", "mlp", "head")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which parameters train.

    Attributes:
        roles: a parameter of another role stays as it is.
        first_blocks_frozen: so many blocks at the bottom stay as they are.
        last_blocks: only so many blocks at the top train (PR #1171 calls that ``freeze_blocks``); None all of them.
        everywhere: roles that train in every block, whatever the two above say; ``head`` means a tied table too.
    """

    roles: tuple[RoleName, ...] = ALL_ROLES
    first_blocks_frozen: int = 0
    last_blocks: int | None = None
    everywhere: tuple[RoleName, ...] = ()

    def __post_init__(self) -> None:
        if self.first_blocks_frozen < 0 or (self.last_blocks is not None and self.last_blocks < 0):
            raise ValueError("first_blocks_frozen and last_blocks must not be negative")

    def of(self, model: LanguageModel) -> list[ParameterInfo]:
        """The parameters that train, in the model's order. Parameters outside the blocks go by their role alone."""
        infos = [info for info in model.parameter_infos() if info.parameter.numel()]
        num_blocks = 1 + max((info.block for info in infos if info.block is not None), default=-1)
        first = max(self.first_blocks_frozen, 0 if self.last_blocks is None else num_blocks - self.last_blocks)
        inside = [info for info in infos if info.role.value in self.roles and (info.block is None or info.block >= first)]
        is_head = model.embedding.weight if model.head.matrix is None and "head" in self.everywhere else None
        return [info for info in infos if info in inside or info.role.value in self.everywhere or info.parameter is is_head]


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent with momentum (PR #578)."""

    lr: float = 0.002
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.lr < 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"sgd lr {self.lr} and weight_decay {self.weight_decay} must not be negative, momentum {self.momentum} in [0, 1)"
            )


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (PR #1171, #606)."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.lr < 0 or self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"adamw lr {self.lr} and weight_decay {self.weight_decay} must not be negative, betas {self.betas} in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class SignalToNoise:
    """The gradient of each parameter of more than one number times ``clamp(mean |g| / std g, lowest, highest)`` (PR #693's code; never
    switched on there)."""

    lowest: float = 0.3
    highest: float = 3.0


@dataclass(frozen=True, kw_only=True)
class DepthDecay:
    """The rate of a block is ``factor`` times that of the block above it; parameters outside the blocks have the full rate."""

    factor: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise ValueError(f"depth decay factor {self.factor} must lie in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """Sliding windows in chunks; after each chunk but the last, a few epochs on its tokens.

    A window belongs to the chunk that its first target lies in.

    Attributes:
        chunk_tokens: targets a chunk.
        epochs: passes over a chunk.
        batch_sequences: sequences of ``window`` tokens a step, on all ranks together.
        train_chunks: so many chunks are learned from; None all but the last.
        schedule: of the rate over chunks: constant, or half a cosine that ends at nothing with chunk ``train_chunks``, or the last one.
        within_chunk: over the steps of a chunk: constant, or half a cosine down to a tenth (PR #693's code).
        clip_norm: of the gradient; None never.
        ema_decay: score with an average of the weights that moves by ``1 - ema_decay`` after each chunk (PR #578).
        sam_radius: take the gradient where the loss is worst within this distance (sharpness-aware minimisation, arXiv 2010.01412).
        layer_rates: rates that differ from layer to layer.
        temperature: logits are divided by ``clamp(1 - (1 - temperature) (1 - H / ln V), 0.9, 1.05)`` with H their entropy (PR #606).
        dtype: that learning computes in; ``auto`` is bf16 on GPUs and fp32 on CPUs, whichever is faster there, so that every decoder of
            one class of machine learns alike.
    """

    window: int
    stride: int
    chunk_tokens: int
    optimizer: Sgd | AdamW = field(default_factory=Sgd)
    trains: Selection = field(default_factory=Selection)
    epochs: int = 3
    batch_sequences: int = 256
    train_chunks: int | None = None
    schedule: Literal["constant", "cosine"] = "cosine"
    within_chunk: Literal["constant", "cosine"] = "constant"
    clip_norm: float | None = 1.0
    ema_decay: float | None = None
    sam_radius: float | None = None
    layer_rates: SignalToNoise | DepthDecay | None = None
    temperature: float = 1.0
    dtype: DtypeName = "float32"

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"adapt stride {self.stride} must lie in 1..{self.window} (the window)")
        for name in ("chunk_tokens", "epochs", "batch_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"adapt {name} {getattr(self, name)} must be at least 1")
        if self.train_chunks is not None and self.train_chunks < 0:
            raise ValueError(f"adapt train_chunks {self.train_chunks} must not be negative")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"adapt ema_decay {self.ema_decay} must lie in [0, 1), or be null")
        for name in ("clip_norm", "sam_radius"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"adapt {name} {getattr(self, name)} must be above 0, or null")
        check_temperature(self.temperature)

    def windows(self, num_tokens: int) -> list[Window]:
        return Sliding(window=self.window, stride=self.stride).windows(num_tokens)

    def num_chunks(self, num_tokens: int) -> int:
        return -(-max(0, num_tokens - 1) // self.chunk_tokens)

    def chunk_of(self, target: int) -> int:
        return (target - 1) // self.chunk_tokens

    def learned_chunks(self, num_chunks: int) -> int:
        """How many chunks are learned from; the last never is."""
        most = max(0, num_chunks - 1)
        return most if self.train_chunks is None else min(self.train_chunks, most)


@dataclass(frozen=True, kw_only=True)
class DocumentLora:
    """Every document alone, with low-rank adapters of its own that start from nothing (PR #77, #1530).

    A chunk is scored; then one Adam step on it; the document's next chunk sees the result. Nothing passes from one document to another, nor
    from one piece of a long document to the next: pieces side by side bound the time that one long document takes.

    Attributes:
        window: most tokens of context and chunk together.
        chunk_tokens: targets a chunk.
        rank, alpha: the adapters add ``alpha / rank · B A x`` to a map's output; B starts at zero.
        roles: of the maps that have one.
        batch_documents: documents side by side; changes nothing but the speed.
        piece_tokens: a longer document is cut into pieces of so many targets, each a document of its own; None cuts nothing.
    """

    window: int
    chunk_tokens: int = 32
    rank: int = 8
    alpha: float = 8.0
    roles: tuple[RoleName, ...] = MAPS
    lr: float = 1e-3
    betas: tuple[float, float] = (0.0, 0.999)
    weight_decay: float = 0.0
    batch_documents: int = 32
    piece_tokens: int | None = None
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "chunk_tokens", "batch_documents"):
            if getattr(self, name) < 1:
                raise ValueError(f"documents {name} {getattr(self, name)} must be at least 1")
        if self.piece_tokens is not None and self.piece_tokens < 1:
            raise ValueError(f"documents piece_tokens {self.piece_tokens} must be at least 1, or null")
        if self.chunk_tokens > self.window:
            raise ValueError(f"documents chunk_tokens {self.chunk_tokens} must not be longer than the window ({self.window})")
        if self.lr < 0 or self.alpha <= 0 or self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("documents lr and weight_decay must not be negative, alpha above 0, betas in [0, 1)")
        if not set(self.roles) <= set(MAPS):
            raise ValueError(f"documents roles {list(self.roles)} must be of {list(MAPS)}: only maps have adapters")
        check_temperature(self.temperature)

    @property
    def stride(self) -> int:
        """Targets that each window scores, as of the other protocols."""
        return self.chunk_tokens


def check_temperature(temperature: float) -> None:
    if not 0.5 <= temperature <= 1.5:
        raise ValueError(f"temperature {temperature} must lie in 0.5..1.5 (1 is off)")


CodedProtocol = Sliding | Adapt | DocumentLora  # what text can be compressed with
