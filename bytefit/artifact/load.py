"""An artifact file opened again: config, tokenizer, model. Nothing in it is executed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bytefit.artifact.container import bytes_by_part, read_container, read_sections
from bytefit.artifact.entropy import decode_codes
from bytefit.artifact.pack import CODED_ROLES
from bytefit.artifact.tokenizer_part import unpack_tokenizer
from bytefit.config import from_json
from bytefit.data.byte_table import ByteTable, byte_table
from bytefit.data.tokenizer import Tokenizer
from bytefit.errors import UserError
from bytefit.files import read_bytes
from bytefit.model.inspect import cost_by_part
from bytefit.model.language_model import LanguageModel, ModelConfig
from bytefit.model.roles import ParameterInfo

# A hostile config must not make us allocate without end: parameters are bounded by the file's size (a code of a trained model takes
# far more than a thousandth of a byte), and so are the position tables.
PARAMETERS_PER_BYTE = 1000
SPARE_PARAMETERS = 1_000_000
MAX_POSITIONS_TIMES_WIDTH = 1 << 27
MAX_STEPS = 1024


@dataclass(frozen=True)
class Artifact:
    """A model that was read from a file.

    Attributes:
        size: bytes of the file.
        sha256: of the file.
        parts: bytes by part.
        notes: what the packer wrote beside the model.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    byte_table: ByteTable
    size: int
    sha256: str
    parts: dict[str, int]
    notes: dict[str, Any]


def load_artifact(path: Path) -> Artifact:
    """Raises UserError: missing, damaged, cut short, foreign or newer file; the message names the file and the reason."""
    data = read_bytes(path)
    try:
        return parse_artifact(data)
    except UserError as error:
        raise UserError(f"cannot load {path}: {error}") from None


def parse_artifact(data: bytes) -> Artifact:
    """The artifact in ``data``. Raises UserError without the file's name."""
    parts = read_container(data)
    for kind in ("config", "tokenizer", "gains", "scales"):
        if kind not in parts:
            raise UserError(f"its {kind} section is missing")
    config, codec, notes = _read_config(parts["config"])
    tokenizer = unpack_tokenizer(parts["tokenizer"])
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"its tokenizer has {tokenizer.vocab_size} ids, its model {config.vocab_size}")
    model = _build(config, len(data))
    _fill(model, parts, codec)
    model.eval()
    sections = read_sections(data)
    sha256 = hashlib.sha256(data).hexdigest()
    return Artifact(model, tokenizer, byte_table(tokenizer), len(data), sha256, bytes_by_part(sections), notes)


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


def _build(config: ModelConfig, file_size: int) -> LanguageModel:
    if len(config.plan) > MAX_STEPS or config.context * config.dim > MAX_POSITIONS_TIMES_WIDTH or config.mlp.width > 1024:
        raise UserError("its model is too large to be believed")
    try:
        total = sum(row.parameters for row in cost_by_part(config))
        if total > PARAMETERS_PER_BYTE * file_size + SPARE_PARAMETERS:
            raise UserError(f"its model claims {total:,} parameters, which {file_size:,} bytes cannot hold")
        return config.build()
    except (ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"its model config does not build ({error})") from None


def _fill(model: LanguageModel, parts: dict[str, bytes], codec: str) -> None:
    """Write every parameter from the sections; nothing may be missing or left over."""
    infos = list(model.parameter_infos())
    coded = [info for info in infos if info.role in CODED_ROLES]
    scales = _read_scales(parts["scales"], coded)
    with torch.no_grad():
        _fill_gains([info for info in infos if info.role not in CODED_ROLES], parts["gains"])
        for role in CODED_ROLES:
            members = [info for info in coded if info.role is role]
            if bool(members) != (role.value in parts):
                raise UserError(f"its {role.value} section is missing or not wanted by its model")
            if not members:
                continue
            shapes = [(info.parameter.shape[0], info.parameter.shape[1]) for info in members]
            raw = parts[role.value]
            matrices = decode_codes(raw, shapes) if codec == "range" else _plain_codes(raw, shapes)
            for info, codes in zip(members, matrices, strict=True):
                weights = codes.astype(np.float32) * scales[info.name][:, None]
                if not np.isfinite(weights).all():
                    raise UserError(f"its weights {info.name} are not finite")
                info.parameter.copy_(torch.from_numpy(weights))


def _fill_gains(infos: list[ParameterInfo], raw: bytes) -> None:
    values = np.frombuffer(raw, dtype="<f4") if len(raw) % 4 == 0 else np.zeros(0)
    if len(values) != sum(info.parameter.numel() for info in infos) or not np.isfinite(values).all():
        raise UserError("its gains section does not fit its model")
    start = 0
    for info in infos:
        count = info.parameter.numel()
        info.parameter.copy_(torch.from_numpy(values[start : start + count].astype(np.float32)).view_as(info.parameter))
        start += count


def _read_scales(raw: bytes, coded: list[ParameterInfo]) -> dict[str, np.ndarray]:
    scales: dict[str, np.ndarray] = {}
    position = 0
    for info in coded:
        count = int.from_bytes(raw[position : position + 4], "little")
        if count not in (1, info.parameter.shape[0]):
            raise UserError(f"its scales section gives {count} scales for {info.name}")
        dtype = np.dtype("<f4" if count == 1 else "<f2")
        position += 4
        values = np.frombuffer(raw[position : position + count * dtype.itemsize], dtype=dtype)
        if len(values) != count or not np.isfinite(values).all():
            raise UserError("its scales section is cut short or holds values that are not finite")
        scales[info.name] = values.astype(np.float32)
        position += count * dtype.itemsize
    if position != len(raw):
        raise UserError("its scales section is longer than its model needs")
    return scales


def _plain_codes(raw: bytes, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    width = raw[0] if raw else 0
    sizes = [rows * columns for rows, columns in shapes]
    if width not in (1, 2) or len(raw) != 1 + width * sum(sizes):
        raise UserError("a section of codes does not fit its model")
    flat = np.frombuffer(raw[1:], dtype=f"<i{width}").astype(np.int32)
    pieces = np.split(flat, np.cumsum(sizes)[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
