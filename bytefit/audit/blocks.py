"""Scores checked in parts: what a block of one cost, computed again from as little of the text as it follows from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from bytefit.audit.evidence import Evidence
from bytefit.model.language_model import LanguageModel
from bytefit.run.steps import trained_model
from bytefit.score.adapt import Adapt
from bytefit.score.document_lora import document_bounds
from bytefit.score.scorer import ScoreProtocol, target_nats
from bytefit.score.windows import Full, Sliding


@dataclass(frozen=True)
class Block:
    """A block of a score, scored again.

    Attributes:
        number: which one, from 0.
        recorded, now: nats.
    """

    name: str
    number: int
    targets: int
    recorded: float
    now: float


def blocks_again(run: Evidence) -> Iterator[Block]:
    """Of every score the first block, and another one that is drawn anew each time.

    Under ``Adapt`` the first one alone, which is scored before anything is learned: all others follow from everything before them. The
    float weights' score is left out where the weights are gone.
    """
    models = dict.fromkeys(run.scored, run.artifact.model)
    if (run.folder.checkpoint / "state.json").exists() and any(run.folder.checkpoint.glob("*.safetensors")):
        models["float_full"] = trained_model(run.folder, run.recipe)
    for name, model in models.items():
        blocks, protocol = run.scores[name]["blocks"], run.protocol(name)
        numbers = [0]
        if len(blocks) > 1 and not isinstance(protocol, Adapt):
            numbers.append(random.randrange(1, len(blocks)))
        for number in numbers:
            first, (targets, recorded, _) = sum(block[0] for block in blocks[:number]), blocks[number]
            nats = part_nats(model, run.tokens, protocol, getattr(torch, run.scores[name]["dtype"]), first, targets)
            yield Block(name, number, targets, recorded, float(nats.sum()))


def part_nats(model: LanguageModel, tokens: np.ndarray, protocol: ScoreProtocol, dtype: torch.dtype, first: int, count: int) -> np.ndarray:
    """The entries ``first`` … ``first + count - 1`` of ``target_nats``; targets that a contest's tail rule drops or repeats count once.

    Under ``Adapt`` of the first chunk only: the learning rates of the others follow from the length of the text.
    """
    if isinstance(protocol, Full):
        start = first - first % protocol.window
    elif isinstance(protocol, Sliding):
        start = max(0, first - protocol.window) // protocol.stride * protocol.stride
    elif isinstance(protocol, Adapt):
        start = 0
    else:
        start = max(start for start, _ in document_bounds(tokens, protocol.piece_tokens) if start <= first)
    if isinstance(protocol, Full | Sliding):
        protocol = replace(protocol, contest=False)
    return target_nats(model, tokens[start : first + count + 1], protocol, dtype)[first - start :]
