"""Techniques of the original systems that this version does not run yet: typed, and reported wherever a recipe is used.

A recipe states them, ``inactive`` names them, and ``show``, ``run`` and every summary repeat it. When one becomes active its config
moves to the part that runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FakeQuantConfig:
    """Rounding in the forward pass of training.

    Attributes:
        kind: straight-through, soft rounding with annealed sharpness, or a sigmoid in the backward pass.
        lowest, highest: range of the codes.
        percentile: of a row's magnitudes at which it is clipped; None takes the row's maximum.
        below: active while the factor on the learning rates is below this; above 1 from the first step.
    """

    kind: Literal["straight_through", "soft_round", "sigmoid"]
    lowest: int
    highest: int
    percentile: float | None
    below: float


@dataclass(frozen=True, kw_only=True)
class CrownQConfig:
    """Penalty on the rounding error of every row: weight, levels of its step, and when it is on."""

    weight: float = 0.01
    levels: int = 15
    below: float = 0.15


@dataclass(frozen=True, kw_only=True)
class GptqConfig:
    """Rounding with error feedback.

    Attributes:
        variant: A, the inverse Hessian without downdating; B, its upper Cholesky factor.
        levels: codes lie in ±levels.
        block, damp: columns a block, and the share of the mean diagonal that is added.
        damp_times: how often the damping is added (PR #693: when the Hessian is taken and when it is used).
        calibration: where the inputs come from: training text inside the clock, text that the model writes, or random ids.
        batches, batch_tokens: how much of it.
    """

    variant: Literal["A", "B"]
    levels: int
    block: int
    damp: float
    calibration: Literal["training", "model", "random"]
    damp_times: int = 1
    batches: int = 256
    batch_tokens: int = 2048


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Zeroing weights: a share of the smallest before rounding, or just as many ±1 codes as the budget needs."""

    share: float = 0.0
    ones_to_fit: bool = False


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

    fake_quant: FakeQuantConfig | None = None
    crown_q: CrownQConfig | None = None
    gptq: GptqConfig | None = None
    prune: PruneConfig | None = None
    adapt: AdaptConfig | None = None


TITLES = {
    "fake_quant": "fake quantisation in training",
    "crown_q": "the CROWN-Q penalty",
    "gptq": "GPTQ (weights are rounded to the nearest code instead)",
    "prune": "pruning",
    "adapt": "test-time training",
}


def inactive(pending: PendingConfig) -> list[str]:
    """In words, everything that is stated but does not run."""
    return [TITLES[field.name] for field in fields(pending) if getattr(pending, field.name) is not None]
