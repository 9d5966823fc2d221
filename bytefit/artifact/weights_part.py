"""A model's weights as sections of an artifact, and back: gains, scales, and one section of codes a role."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from bytefit.artifact.codecs import CODECS, smallest
from bytefit.artifact.container import Section
from bytefit.artifact.entropy import decode_codes, encode_codes
from bytefit.errors import UserError
from bytefit.model.language_model import LanguageModel
from bytefit.model.roles import ParameterInfo, Role
from bytefit.quant.quantise import QuantisedModel

CodecName = Literal["range", "zlib", "zstd", "lzma", "brotli"]
CODED_ROLES = tuple(role for role in Role if role is not Role.GAIN)


def smallest_section(kind: str, raw: bytes) -> Section:
    codec, payload = smallest(raw)
    return Section(kind, codec, payload, len(raw))


def model_sections(quantised: QuantisedModel, infos: list[ParameterInfo], codec: CodecName) -> list[Section]:
    """The sections of a quantised model; parameters stand in the model's order."""
    gains = b"".join(array.astype("<f4").tobytes() for array in quantised.gains.values())
    scales = b"".join(_scale_bytes(codes.scales) for codes in quantised.codes.values())
    sections = [smallest_section("gains", gains), smallest_section("scales", scales)]
    for role in CODED_ROLES:
        matrices = [quantised.codes[info.name].codes for info in infos if info.role is role and info.name in quantised.codes]
        if matrices and codec == "range":
            payload = encode_codes(matrices)
            sections.append(Section(role.value, CODECS["stored"], payload, len(payload)))
        elif matrices:
            raw = _plain_code_bytes(matrices)
            sections.append(Section(role.value, CODECS[codec], CODECS[codec].compress(raw), len(raw)))
    return sections


def fill_model(model: LanguageModel, sections: dict[str, Section], codec: str) -> None:
    """Write every parameter from the sections; nothing may be missing or left over.

    Raises:
        UserError: a section does not fit the model. Sizes are checked before anything is expanded.
    """
    infos = list(model.parameter_infos())
    coded = [info for info in infos if info.role in CODED_ROLES]
    gains = [info for info in infos if info.role not in CODED_ROLES]
    scales = _read_scales(sections["scales"].expand(sum(4 + 4 * info.parameter.shape[0] for info in coded)), coded)
    with torch.no_grad():
        _fill_gains(gains, sections["gains"].expand(4 * sum(info.parameter.numel() for info in gains)))
        for role in CODED_ROLES:
            members = [info for info in coded if info.role is role]
            if bool(members) != (role.value in sections):
                raise UserError(f"its {role.value} section is missing or not wanted by its model")
            if not members:
                continue
            shapes = [(info.parameter.shape[0], info.parameter.shape[1]) for info in members]
            section = sections[role.value]
            if codec == "range":
                matrices = decode_codes(section.expand(len(section.payload)), shapes)
            else:
                matrices = _read_plain_codes(section.expand(1 + 2 * sum(rows * columns for rows, columns in shapes)), shapes)
            for info, codes in zip(members, matrices, strict=True):
                with np.errstate(over="ignore"):
                    weights = codes.astype(np.float32) * scales[info.name][:, None]
                if not np.isfinite(weights).all():
                    raise UserError(f"its weights {info.name} are not finite")
                info.parameter.copy_(torch.from_numpy(weights))


def _scale_bytes(scales: np.ndarray) -> bytes:
    """One step a matrix stays fp32; one scale a row is fp16, as it was rounded when the codes were chosen."""
    return len(scales).to_bytes(4, "little") + scales.astype("<f4" if len(scales) == 1 else "<f2").tobytes()


def _read_scales(raw: bytes, coded: list[ParameterInfo]) -> dict[str, np.ndarray]:
    scales: dict[str, np.ndarray] = {}
    position = 0
    for info in coded:
        count = int.from_bytes(raw[position : position + 4], "little")
        if count not in (1, info.parameter.shape[0]):
            raise UserError(f"its scales section gives {count} scales for {info.name}")
        dtype = np.dtype("<f4" if count == 1 else "<f2")
        position += 4
        values = raw[position : position + count * dtype.itemsize]
        if len(values) != count * dtype.itemsize:
            raise UserError("its scales section is cut short")
        scales[info.name] = np.frombuffer(values, dtype=dtype).astype(np.float32)
        position += len(values)
    if position != len(raw):
        raise UserError("its scales section is longer than its model needs")
    return scales


def _fill_gains(infos: list[ParameterInfo], raw: bytes) -> None:
    if len(raw) != 4 * sum(info.parameter.numel() for info in infos):
        raise UserError("its gains section does not fit its model")
    values = np.frombuffer(raw, dtype="<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError("its gains are not finite")
    start = 0
    for info in infos:
        count = info.parameter.numel()
        info.parameter.copy_(torch.from_numpy(values[start : start + count]).view_as(info.parameter))
        start += count


def _plain_code_bytes(matrices: list[np.ndarray]) -> bytes:
    """Codes for a general-purpose compressor: a byte that gives the width (1 or 2), then int8 or int16 codes."""
    flat = np.concatenate([codes.ravel() for codes in matrices])
    width = 1 if np.abs(flat).max(initial=0) <= 127 else 2
    return bytes([width]) + flat.astype(f"<i{width}").tobytes()


def _read_plain_codes(raw: bytes, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    width = raw[0] if raw else 0
    sizes = [rows * columns for rows, columns in shapes]
    if width not in (1, 2) or len(raw) != 1 + width * sum(sizes):
        raise UserError("a section of codes does not fit its model")
    flat = np.frombuffer(raw[1:], dtype=f"<i{width}").astype(np.int32)
    pieces = np.split(flat, np.cumsum(sizes)[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
