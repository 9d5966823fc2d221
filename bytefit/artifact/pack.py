"""Packing: quantised model, config and tokenizer to the sections of one file, under a byte budget."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bytefit.artifact.container import Section, bytes_by_part, write_container
from bytefit.artifact.fit import CLOSE, solve
from bytefit.artifact.tokenizer_part import pack_tokenizer
from bytefit.artifact.weights_part import CodecName, CodeSections, model_sections, smallest_section
from bytefit.config import to_json
from bytefit.data.tokenizer import Tokenizer
from bytefit.model.language_model import ModelConfig
from bytefit.model.roles import ParameterInfo
from bytefit.progress import say
from bytefit.quant.calibrate import Statistics
from bytefit.quant.codes import Codes
from bytefit.quant.prune import Ones, find_ones, without_ones
from bytefit.quant.quantise import QuantConfig, QuantisedModel, Quantiser


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How weights become bytes.

    Attributes:
        budget_bytes: the cap: most bytes of the artifact, and of the code that is counted with it.
        code_bytes: of these, left for the code (0: the artifact may have them all). A submission counts its script; docs/submission.md.
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
    code_bytes: int = 0

    def __post_init__(self) -> None:
        if self.budget_bytes < 1:
            raise ValueError(f"budget_bytes {self.budget_bytes} must be above 0")
        if not 0 <= self.code_bytes < self.budget_bytes:
            raise ValueError(f"code_bytes {self.code_bytes:,} of code leave nothing of budget_bytes {self.budget_bytes:,} to the artifact")
        if not 0 <= self.zero_ones <= 1:
            raise ValueError(f"zero_ones {self.zero_ones} must lie in 0..1")

    @property
    def artifact_bytes(self) -> int:
        """Most bytes of the artifact."""
        return self.budget_bytes - self.code_bytes


SPARE_BYTES = 256


def room_for_code(script_bytes: int) -> int:
    """What a script of this size is given: more than it takes, for its size still changes by a few bytes until it is handed in (the
    vocabulary of the dataset, the dtype of the scores, another version of Python), and the artifact must come out the same then."""
    return -(-(script_bytes + SPARE_BYTES) // SPARE_BYTES) * SPARE_BYTES


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
        self.code_sections = CodeSections(config.codec)

    @property
    def num_codes(self) -> int:
        return sum(self.quantiser.weights[name].numel() for name in self.quantiser.rules)

    def at(self, dial: float) -> Packed:
        """Packed at one position of the dial, whatever the size, with as many ±1 codes at zero as ``zero_ones`` allows."""
        quantised = self.quantiser.at(dial)
        if not self.config.zero_ones:
            return self._encoded(quantised, dial)
        ones = find_ones(quantised.codes, self.statistics)
        return self._zeroing(quantised, dial, ones, int(self.config.zero_ones * len(ones)))

    def _encoded(self, quantised: QuantisedModel, dial: float, zeroed: int = 0) -> Packed:
        sections = [*self.fixed, *model_sections(quantised, self.infos, self.code_sections)]
        return Packed(write_container(sections), bytes_by_part(sections), dial, quantised, zeroed)

    def _zeroing(self, quantised: QuantisedModel, dial: float, ones: Ones, count: int) -> Packed:
        return self._encoded(replace(quantised, codes=without_ones(quantised.codes, ones, count)), dial, count)

    def eased(self, packed: Packed, budget: int) -> Packed:
        """With no more of the ±1 codes at zero than the budget needs."""
        if not packed.zeroed or len(packed.data) > budget:
            return packed
        quantised = self.quantiser.at(packed.dial)
        ones = find_ones(quantised.codes, self.statistics)
        whole = self._encoded(quantised, packed.dial)
        if len(whole.data) <= budget:
            return whole
        low, high = 0, packed.zeroed
        while high - low > max(1, len(ones) // 2000):
            middle = (low + high) // 2
            tried = self._zeroing(quantised, packed.dial, ones, middle)
            if len(tried.data) <= budget:
                high, packed = middle, tried
            else:
                low = middle
        return packed

    def refined(self, packed: Packed, budget: int) -> Packed:
        """With what is left of the budget spent on single matrices: those that should fit go to a finer position of the dial, the
        largest first; where they do not fit after all, half of them."""
        moved: set[str] = set(packed.quantised.corrections)  # a correction was made for the codes that its matrix has
        for octaves in (0.25, 0.06, 0.015):
            finer = self.quantiser.at(packed.dial * 2.0**octaves).codes

            def with_finer(names: list[str], start: Packed, finer: dict[str, Codes] = finer) -> Packed:
                codes = start.quantised.codes | {name: finer[name] for name in names}
                return self._encoded(replace(start.quantised, codes=codes), start.dial, start.zeroed)

            left = sorted(finer.keys() - moved, key=lambda name: (-finer[name].codes.size, name))
            more = len(with_finer(left, packed).data) - len(packed.data)
            bytes_a_code = max(1, more) / max(1, sum(finer[name].codes.size for name in left))
            expected = {name: finer[name].codes.size * bytes_a_code for name in left}
            take: list[str] = []
            while len(packed.data) < budget * (1 - CLOSE):
                take = take or _filling(left, expected, budget - len(packed.data))
                if not take:
                    break
                tried = with_finer(take, packed)
                if len(tried.data) > budget and len(take) > 1:
                    take = take[: len(take) // 2]
                    continue
                left = [name for name in left if name not in take]
                if len(packed.data) < len(tried.data) <= budget:
                    packed = tried
                    moved |= set(take)
                take = []
        return packed


def _filling(names: list[str], expected: dict[str, float], room: float) -> list[str]:
    """In the order given, every one that still fits."""
    taken = []
    for name in names:
        if expected[name] <= room:
            taken.append(name)
            room -= expected[name]
    return taken


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
    """Quantise and encode a model so that the file holds at most ``config.artifact_bytes``.

    Raises:
        UserError: the budget is below what this model can be packed into; the message gives the least.
    """
    packer = Packer(weights, infos, model, tokenizer, config, statistics=statistics, notes=notes)
    packed = None if config.fit else _as_it_is(packer)
    if packed is None:
        packed, _, attempts = solve(packer, config.artifact_bytes)
        packed = replace(packed, attempts=attempts)
    if packed.quantised.floor_rows:
        rows = sum(len(codes.codes) for codes in packed.quantised.codes.values())
        say(f"the floor under the steps binds {packed.quantised.floor_rows:,} of {rows:,} rows: it was made for larger weights")
    return packed


def _as_it_is(packer: Packer) -> Packed | None:
    """With the recipe's own steps; None where they do not fit, so that nobody's training is for nothing."""
    budget = packer.config.artifact_bytes
    packed = packer.at(1.0)
    if len(packed.data) > budget:
        say(f"the recipe's own steps take {len(packed.data):,} bytes; the budget is {budget:,}, so coarser ones are sought")
        return None
    return packer.eased(packed, budget)


def fixed_sections(model: ModelConfig, tokenizer: Tokenizer, config: PackConfig, notes: dict[str, Any] | None = None) -> list[Section]:
    """What no dial changes: config and tokenizer."""
    record = {"model": to_json(model), "codec": config.codec, "notes": notes or {}}
    return [
        smallest_section("config", json.dumps(record, separators=(",", ":")).encode()),
        smallest_section("tokenizer", pack_tokenizer(tokenizer)),
    ]
