"""Packing: quantised model, config and tokenizer to the sections of one file, under a byte budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from bytefit.artifact.container import Section, bytes_by_part, write_container
from bytefit.artifact.tokenizer_part import pack_tokenizer
from bytefit.artifact.weights_part import CodecName, model_sections, smallest_section
from bytefit.config import to_json
from bytefit.data.tokenizer import Tokenizer
from bytefit.errors import UserError
from bytefit.model.language_model import ModelConfig
from bytefit.model.roles import ParameterInfo
from bytefit.progress import say
from bytefit.quant.quantise import QuantConfig, quantise_model

# The dial's range: from a sixteenth to eight times the recipe's own number of steps.
MIN_DIAL, MAX_DIAL = 1 / 16, 8.0
DIAL_STEPS = 4096  # positions of the dial in each doubling: neighbours differ by some tens of bytes in a million


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How weights become bytes.

    Attributes:
        budget_bytes: most bytes of the whole file.
        quant: the grid of each role.
        codec: ``range`` is the entropy coder for codes; the others compress the codes as int8 (or int16) bytes.
        fit: turn the dial (steps of all grids together) so that the file uses the budget; off keeps the grids as they are.
    """

    budget_bytes: int
    quant: QuantConfig
    codec: CodecName = "range"
    fit: bool = True

    def __post_init__(self) -> None:
        if self.budget_bytes < 1:
            raise ValueError(f"budget_bytes {self.budget_bytes} must be above 0")


@dataclass(frozen=True)
class Packed:
    """A finished artifact.

    Attributes:
        data: the file.
        parts: bytes by part; they sum to ``len(data)``.
        dial: how the grids were scaled to fit.
    """

    data: bytes
    parts: dict[str, int]
    dial: float


def pack(
    weights: dict[str, Tensor],
    infos: list[ParameterInfo],
    model: ModelConfig,
    tokenizer: Tokenizer,
    config: PackConfig,
    *,
    notes: dict[str, Any] | None = None,
) -> Packed:
    """Quantise and encode a model so that the file holds at most ``config.budget_bytes``.

    Args:
        weights: fp32 by parameter name.
        notes: small facts that travel with the model (recipe name, protocol).

    Raises:
        UserError: the budget is below what this model can be packed into; the message gives the least.
    """

    fixed = fixed_sections(model, tokenizer, config, notes)

    def attempt(dial: float) -> Packed:
        return pack_at(dial, weights, infos, config, fixed)

    if not config.fit:
        packed = attempt(1.0)
        if len(packed.data) > config.budget_bytes:
            raise UserError(
                f"the artifact takes {len(packed.data):,} bytes, {len(packed.data) - config.budget_bytes:,} over the budget of "
                f"{config.budget_bytes:,}; use coarser grids, a smaller model, or --set pack.fit=true"
            )
        return packed
    return turn_dial(attempt, config.budget_bytes)


def fixed_sections(model: ModelConfig, tokenizer: Tokenizer, config: PackConfig, notes: dict[str, Any] | None = None) -> list[Section]:
    """What no dial changes: config and tokenizer."""
    record = {"model": to_json(model), "codec": config.codec, "notes": notes or {}}
    return [
        smallest_section("config", json.dumps(record, separators=(",", ":")).encode()),
        smallest_section("tokenizer", pack_tokenizer(tokenizer)),
    ]


def pack_at(dial: float, weights: dict[str, Tensor], infos: list[ParameterInfo], config: PackConfig, fixed: list[Section]) -> Packed:
    """Pack at one position of the dial, whatever the size."""
    sections = [*fixed, *model_sections(quantise_model(weights, infos, config.quant, dial), infos, config.codec)]
    return Packed(write_container(sections), bytes_by_part(sections), dial)


def turn_dial(attempt: Callable[[float], Packed], budget: int) -> Packed:
    """The finest dial position whose artifact fits: bisection over positions with the real encoder."""
    least = attempt(MIN_DIAL)
    if len(least.data) > budget:
        raise UserError(
            f"a budget of {budget:,} bytes is impossible for this model: the least it packs into is {len(least.data):,} bytes; "
            "raise --bytes or make the model smaller (--set model.dim=...)"
        )
    positions = int(np.log2(MAX_DIAL / MIN_DIAL) * DIAL_STEPS)
    low, high, best = 0, positions + 1, least
    while high - low > 1:
        middle = (low + high) // 2
        packed = attempt(MIN_DIAL * 2 ** (middle / DIAL_STEPS))
        if len(packed.data) <= budget:
            low, best = middle, packed
        else:
            high = middle
    if low == 0:
        say("the budget allows only the coarsest quantisation; expect a large loss")
    return best
