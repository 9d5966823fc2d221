"""Packing: quantised model, config and tokenizer to the sections of one file, under a byte budget."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bytefit.artifact.container import Section, bytes_by_part, write_container
from bytefit.artifact.fit import CLOSE, solve
from bytefit.artifact.tokenizer_part import pack_tokenizer
from bytefit.artifact.weights_part import CodecName, model_sections, smallest_section
from bytefit.config import to_json
from bytefit.data.tokenizer import Tokenizer
from bytefit.errors import UserError
from bytefit.model.language_model import ModelConfig
from bytefit.model.roles import ParameterInfo
from bytefit.progress import say
from bytefit.quant.calibrate import Statistics
from bytefit.quant.prune import Ones, find_ones, without_ones
from bytefit.quant.quantise import QuantConfig, QuantisedModel, Quantiser


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How weights become bytes.

    Attributes:
        budget_bytes: most bytes of the whole file.
        quant: how the weights of each role are rounded.
        codec: ``context`` is the entropy coder for codes; the others compress the codes as bytes.
        fit: turn the dial (steps of all grids together) so that the file uses the budget; off keeps the grids as they are.
        zero_ones: most of the ±1 codes, as a share, that may be set to zero, the cheapest first, to get under the budget (PR #693).
    """

    budget_bytes: int
    quant: QuantConfig
    codec: CodecName = "context"
    fit: bool = True
    zero_ones: float = 0.0

    def __post_init__(self) -> None:
        if self.budget_bytes < 1:
            raise ValueError(f"budget_bytes {self.budget_bytes} must be above 0")
        if not 0 <= self.zero_ones <= 1:
            raise ValueError(f"zero_ones {self.zero_ones} must lie in 0..1")


@dataclass(frozen=True)
class Packed:
    """A finished artifact.

    Attributes:
        data: the file.
        parts: bytes by part; they sum to ``len(data)``.
        dial: by what all steps were divided to fit.
        quantised: the codes that are in it.
        zeroed: how many ±1 codes were set to zero to fit.
        attempts: how many times the model was rounded and encoded to find this one.
    """

    data: bytes
    parts: dict[str, int]
    dial: float
    quantised: QuantisedModel
    zeroed: int = 0
    attempts: int = 1


class Packer:
    """A model ready to be packed at any position of the dial.

    Args:
        weights: fp32 by parameter name.
        statistics: of the calibration, where the quantisation needs one.
        notes: small facts that travel with the model (recipe name, protocol).
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        infos: list[ParameterInfo],
        model: ModelConfig,
        tokenizer: Tokenizer,
        config: PackConfig,
        *,
        statistics: Statistics | None = None,
        notes: dict[str, Any] | None = None,
    ):
        self.infos, self.config, self.statistics = infos, config, statistics or {}
        self.quantiser = Quantiser(weights, infos, config.quant, self.statistics)
        self.fixed = fixed_sections(model, tokenizer, config, notes)

    @property
    def num_codes(self) -> int:
        return sum(self.quantiser.weights[name].numel() for name in self.quantiser.rules)

    def at(self, dial: float) -> Packed:
        """Packed at one position of the dial, whatever the size."""
        return self._encoded(self.quantiser.at(dial), dial)

    def _encoded(self, quantised: QuantisedModel, dial: float, zeroed: int = 0) -> Packed:
        sections = [*self.fixed, *model_sections(quantised, self.infos, self.config.codec)]
        return Packed(write_container(sections), bytes_by_part(sections), dial, quantised, zeroed)

    def _ones(self, packed: Packed) -> Ones:
        return find_ones(packed.quantised.codes, self.statistics)

    def _zeroing(self, packed: Packed, ones: Ones, count: int) -> Packed:
        codes = without_ones(packed.quantised.codes, ones, count)
        return self._encoded(replace(packed.quantised, codes=codes), packed.dial, count)

    def trimmed(self, packed: Packed, budget: int) -> Packed:
        """With as many of the cheapest ±1 codes at zero as the budget needs and ``zero_ones`` allows."""
        most = self.config.zero_ones
        if len(packed.data) <= budget or not most:
            return packed
        ones = self._ones(packed)
        low, high = 0, int(most * len(ones))
        best = self._zeroing(packed, ones, high)
        if len(best.data) > budget:
            return best
        while high - low > max(1, len(ones) // 2000):
            middle = (low + high) // 2
            tried = self._zeroing(packed, ones, middle)
            if len(tried.data) <= budget:
                high, best = middle, tried
            else:
                low = middle
        return best

    def refined(self, packed: Packed, budget: int) -> Packed:
        """With what is left of the budget spent on single matrices, each taken from a finer position of the dial where it still fits."""
        for octaves in (0.25, 0.06, 0.015):
            finer = self.quantiser.at(packed.dial * 2.0**octaves)
            for name in sorted(finer.codes, key=lambda name: -finer.codes[name].codes.size):
                if name in finer.corrections:
                    continue  # made for the codes that it has
                codes = packed.quantised.codes | {name: finer.codes[name]}
                tried = self._encoded(replace(packed.quantised, codes=codes), packed.dial, packed.zeroed)
                if len(packed.data) < len(tried.data) <= budget:
                    packed = tried
                if len(packed.data) >= budget * (1 - CLOSE):
                    return packed
        return packed


def pack(
    weights: dict[str, Tensor],
    infos: list[ParameterInfo],
    model: ModelConfig,
    tokenizer: Tokenizer,
    config: PackConfig,
    *,
    statistics: Statistics | None = None,
    notes: dict[str, Any] | None = None,
) -> Packed:
    """Quantise and encode a model so that the file holds at most ``config.budget_bytes``.

    Raises:
        UserError: the budget is below what this model can be packed into; the message gives the least.
    """
    packer = Packer(weights, infos, model, tokenizer, config, statistics=statistics, notes=notes)
    if config.fit:
        packed, _, attempts = solve(packer, config.budget_bytes)
        packed = replace(packed, attempts=attempts)
    else:
        packed = _as_it_is(packer)
    if packed.quantised.floor_rows:
        rows = sum(len(codes.codes) for codes in packed.quantised.codes.values())
        say(f"the floor under the steps binds {packed.quantised.floor_rows:,} of {rows:,} rows: it was made for larger weights")
    return packed


def _as_it_is(packer: Packer) -> Packed:
    budget = packer.config.budget_bytes
    packed = packer.trimmed(packer.at(1.0), budget)
    if len(packed.data) > budget:
        raise UserError(
            f"the artifact takes {len(packed.data):,} bytes, {len(packed.data) - budget:,} over the budget of "
            f"{budget:,}; use coarser grids, a smaller model, or --set pack.fit=true"
        )
    return packed


def fixed_sections(model: ModelConfig, tokenizer: Tokenizer, config: PackConfig, notes: dict[str, Any] | None = None) -> list[Section]:
    """What no dial changes: config and tokenizer."""
    record = {"model": to_json(model), "codec": config.codec, "notes": notes or {}}
    return [
        smallest_section("config", json.dumps(record, separators=(",", ":")).encode()),
        smallest_section("tokenizer", pack_tokenizer(tokenizer)),
    ]
