"""Techniques of the original systems that this version does not run yet: typed, and reported wherever a recipe is used.

A recipe states them, ``inactive`` names them, and ``show``, ``run`` and every summary repeat it. When one becomes active its config
moves to the part that runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Score-first test-time training.

    Attributes:
        chunk_tokens, stride, epochs, batch_sequences: the protocol.
        optimizer, lr, momentum, clip_norm: of the adaptation; the rate falls by a cosine over the chunks that are trained on.
        train_chunks: how many chunks are trained on; None all but the last.
        last_blocks: how many blocks train, with the scales of the others; None all blocks but ``frozen_blocks``.
        freeze_tables: the embedding and the side tables stay as they are.
        ema_decay: of the weights that score; None scores with the live ones.
        temperature: entropy-adaptive temperature; 1 is off.
    """

    chunk_tokens: int
    stride: int
    epochs: int
    optimizer: Literal["sgd", "adamw"]
    lr: float
    momentum: float = 0.9
    clip_norm: float = 1.0
    freeze_tables: bool = True
    batch_sequences: int = 32
    train_chunks: int | None = None
    last_blocks: int | None = None
    frozen_blocks: tuple[int, ...] = ()
    ema_decay: float | None = None
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PendingConfig:
    """What the original did, or said that it did, and this version does not do yet. None: the original has none of it."""

    adapt: AdaptConfig | None = None


TITLES = {
    "adapt": "test-time training",
}


def inactive(pending: PendingConfig) -> list[str]:
    """In words, everything that is stated but does not run."""
    return [TITLES[field.name] for field in fields(pending) if getattr(pending, field.name) is not None]
