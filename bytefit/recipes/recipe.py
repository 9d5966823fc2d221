"""A recipe: the whole run as one typed value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bytefit.artifact.pack import PackConfig
from bytefit.config import from_json, to_json
from bytefit.data.tokenizer import TokenizerConfig
from bytefit.errors import UserError
from bytefit.files import read_json
from bytefit.model.language_model import ModelConfig
from bytefit.quant.calibrate import CalibrationConfig
from bytefit.score.adapt import Adapt, CodedProtocol, DocumentLora
from bytefit.score.windows import Full, Sliding
from bytefit.train.config import TrainConfig

Size = Literal["full", "lab", "tiny"]


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How the packed model is scored.

    Attributes:
        window: tokens a window, in both protocols.
        stride: targets that each sliding window scores.
        adapt: a protocol that learns from what it has scored; None scores without one.
        headline: the protocol whose bits per byte are the run's result, which the proof and ``compress`` use (``full`` is proven as
            ``sliding``).
        max_bytes: score only whole documents up to about this many bytes of validation text (null: all of it).
        proof_bytes: bytes of validation text that are really compressed and restored (0: no proof).
    """

    window: int
    stride: int
    adapt: Adapt | DocumentLora | None = None
    headline: Literal["full", "sliding", "adapt"] = "sliding"
    max_bytes: int | None = None
    proof_bytes: int = 65_536

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"score.stride {self.stride} must lie in 1..{self.window} (score.window)")
        if self.headline == "adapt" and self.adapt is None:
            raise ValueError("score.headline is adapt, but score.adapt is null")
        if self.proof_bytes < 0 or (self.max_bytes is not None and self.max_bytes < 1):
            raise ValueError("score.proof_bytes must not be negative and score.max_bytes must be above 0 or null")

    @property
    def protocols(self) -> dict[str, Full | CodedProtocol]:
        """Everything that a run is scored under, by its name in ``score.json``; ``float_full`` is of the weights before they are packed."""
        full = Full(window=self.window)
        found: dict[str, Full | CodedProtocol] = {"float_full": full, "full": full}
        found["sliding"] = Sliding(window=self.window, stride=self.stride)
        return found if self.adapt is None else found | {"adapt": self.adapt}

    @property
    def scored(self) -> Full | CodedProtocol:
        """The protocol of the headline."""
        return self.protocols[self.headline]

    @property
    def coded(self) -> CodedProtocol:
        """The protocol that an artifact of this recipe compresses with."""
        if self.headline == "adapt" and self.adapt is not None:
            return self.adapt
        return Sliding(window=self.window, stride=self.stride)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run, besides the text and the machine.

    Attributes:
        name, size: which recipe function made it; both are part of a run folder's name.
        tokenizer: trained when the dataset is built for this run; a given dataset keeps its own.
        model: its ``vocab_size`` is replaced by the dataset's when the run starts.
        calibrate: what the rounding learns about the matrices' inputs; None where it needs nothing.
    """

    name: str
    size: Size
    seed: int = 1337
    tokenizer: TokenizerConfig
    model: ModelConfig
    train: TrainConfig
    calibrate: CalibrationConfig | None = None
    pack: PackConfig
    score: ScoreConfig

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or Path(self.name).name != self.name:
            raise ValueError(f"name {self.name!r} must be a word without slashes")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed {self.seed} must lie in 0..2^63 - 1")
        if self.pack.quant.needs_inputs and self.calibrate is None:
            raise ValueError("pack.quant rounds by what matrices see; say where that is measured (calibrate)")
        if self.pack.zero_ones and self.calibrate is None:
            raise ValueError("pack.zero_ones goes by what matrices see; say where that is measured (calibrate)")
        longest = max(self.train.seq_len, self.score.window, self.score.adapt.window if self.score.adapt is not None else 0)
        if longest > self.model.context:
            raise ValueError(f"model.context {self.model.context} is shorter than the longest window ({longest} tokens); raise it")


def read_recipe(path: Path) -> Recipe:
    """From a file in which ``to_json`` of one stands, as ``recipe.json`` of every run.

    Raises:
        UserError: it cannot be read, or is not of a recipe of this version.
    """
    record = read_json(path)
    try:
        return from_json(Recipe, record)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def as_written_now(record: Any) -> Any:
    """A recipe's JSON with the settings that have come since it was written, which are off."""
    try:
        return json.loads(json.dumps(to_json(from_json(Recipe, record))))
    except UserError:  # of another form: the first difference says where
        return record
