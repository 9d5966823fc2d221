"""An artifact file opened again: config, tokenizer, model. Nothing in it is executed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytefit.artifact.container import bytes_by_part, read_sections
from bytefit.artifact.tokenizer_part import unpack_tokenizer
from bytefit.artifact.weights_part import fill_model
from bytefit.config import from_json
from bytefit.data.byte_table import ByteTable, byte_table
from bytefit.data.tokenizer import Tokenizer
from bytefit.errors import UserError
from bytefit.files import read_bytes
from bytefit.model.inspect import cost_by_part
from bytefit.model.language_model import LanguageModel, ModelConfig

# A hostile config must not make us allocate without end: parameters are bounded by the file's size (a code of a trained model takes
# far more than a thousandth of a byte), and so are the position tables.
PARAMETERS_PER_BYTE = 1000
SPARE_PARAMETERS = 1_000_000
MAX_POSITIONS_TIMES_WIDTH = 1 << 27
MAX_STEPS = 1024
MAX_CONFIG_BYTES = 1 << 20
MAX_TOKENIZER_BYTES = 1 << 24


@dataclass(frozen=True)
class Artifact:
    """A model that was read from a file.

    Attributes:
        size: bytes of the file.
        sha256: of the file (of an unpacked artifact: of the file that it was).
        parts: bytes by part.
        notes: what the packer wrote beside the model.
        codec: of its codes (``PackConfig.codec``).
        matrix_bytes: bytes of each matrix's codes, by parameter name; empty where several matrices are compressed as one, or unpacked.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    byte_table: ByteTable
    size: int
    sha256: str
    parts: dict[str, int]
    notes: dict[str, Any]
    codec: str
    matrix_bytes: dict[str, int]


def load_artifact(path: Path) -> Artifact:
    """Raises UserError: missing, damaged, cut short, foreign or newer file; the message names the file and the reason."""
    data = read_bytes(path)
    try:
        return parse_artifact(data)
    except UserError as error:
        raise UserError(f"cannot load {path}: {error}") from None


def parse_artifact(data: bytes) -> Artifact:
    """The artifact in ``data``. Raises UserError without the file's name."""
    listed = read_sections(data)
    sections = {section.kind: section for section in listed}
    for kind in ("config", "tokenizer", "gains", "scales"):
        if kind not in sections:
            raise UserError(f"its {kind} section is missing")
    config, codec, notes = _read_config(sections["config"].expand(MAX_CONFIG_BYTES))
    tokenizer = unpack_tokenizer(sections["tokenizer"].expand(MAX_TOKENIZER_BYTES))
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"its tokenizer has {tokenizer.vocab_size} ids, its model {config.vocab_size}")
    model = build_model(config, len(data))
    matrix_bytes = fill_model(model, sections, codec)
    sha256, parts = hashlib.sha256(data).hexdigest(), bytes_by_part(listed)
    return Artifact(model.eval(), tokenizer, byte_table(tokenizer), len(data), sha256, parts, notes, codec, matrix_bytes)


def _read_config(raw: bytes) -> tuple[ModelConfig, str, dict[str, Any]]:
    try:
        record = json.loads(raw)
        config = from_json(ModelConfig, record["model"], "model")
        codec, notes = record["codec"], record["notes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"its config section cannot be read ({error})") from None
    if not isinstance(codec, str) or not isinstance(notes, dict):
        raise UserError("its config section has fields of the wrong type")
    return config, codec, notes


def build_model(config: ModelConfig, file_size: int) -> LanguageModel:
    """A model to be filled from a file of ``file_size`` bytes. Raises UserError where the file cannot hold it."""
    if len(config.plan) > MAX_STEPS or config.context * config.dim > MAX_POSITIONS_TIMES_WIDTH:
        raise UserError("its model is too large to be believed")
    try:
        total = sum(row.parameters for row in cost_by_part(config))
        if total > PARAMETERS_PER_BYTE * file_size + SPARE_PARAMETERS:
            raise UserError(f"its model claims {total:,} parameters, which {file_size:,} bytes cannot hold")
        return config.build(orthogonalise=False)
    except (ValueError, RuntimeError, OverflowError, MemoryError) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Python wraps one that comes while a class is made
            raise KeyboardInterrupt from None
        raise UserError(f"its model config does not build ({error})") from None
