"""Small artifacts of any model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bytefit.artifact.pack import PackConfig, pack
from bytefit.data.tokenizer import ByteTokenizer, Tokenizer
from bytefit.model.language_model import LanguageModel, ModelConfig
from bytefit.page.write import browser_artifact
from bytefit.quant.grid import StepGrid
from bytefit.quant.quantise import MatrixQuant, QuantConfig

FINE = MatrixQuant(grid=StepGrid(fineness=40.0))
QUANT = QuantConfig(table=FINE, attention=FINE, mlp=FINE, projection=FINE, head=FINE, gain_step=1 / 256)


def for_bytes(config: ModelConfig) -> ModelConfig:
    """The same model with the byte tokenizer's vocabulary."""
    return dataclasses.replace(config, vocab_size=ByteTokenizer().vocab_size)


def write_artifact(
    path: Path, model: LanguageModel, *, tokenizer: Tokenizer | None = None, config: PackConfig | None = None, notes: Any = None
) -> Path:
    """Pack as it is, at no particular size."""
    config = config or PackConfig(budget_bytes=1 << 24, quant=QUANT, fit=False)
    infos = list(model.parameter_infos())
    weights = {info.name: info.parameter.detach() for info in infos}
    path.write_bytes(pack(weights, infos, model.config, tokenizer or ByteTokenizer(), config, notes=notes).data)
    return path


def in_browser_codecs(path: Path) -> str:
    """The artifact as a page holds it, in a file next to it; its name."""
    held = path.with_suffix(".held")
    held.write_bytes(browser_artifact(path.read_bytes())[0])
    return str(held)
