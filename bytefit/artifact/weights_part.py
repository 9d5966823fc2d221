"""A model's weights as sections of an artifact, and back: gains, steps, corrections, and one section of codes a role."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, cast

import numpy as np
import torch

from bytefit.artifact.code_stream import decode_codes, decode_each, encode_codes
from bytefit.artifact.codecs import CODECS, smallest
from bytefit.artifact.container import Section
from bytefit.errors import UserError
from bytefit.model.language_model import LanguageModel
from bytefit.model.roles import ParameterInfo, Role
from bytefit.quant.codes import COARSE, FINE, MAX_OCTAVES, Codes, LogSteps, RowSteps, Steps
from bytefit.quant.low_rank import Correction, add_correction
from bytefit.quant.quantise import QuantisedModel

CodecName = Literal["context", "zlib", "zstd", "lzma", "brotli"]
CODED_ROLES = tuple(role for role in Role if role is not Role.GAIN)

# How a matrix's steps are stored, in the low half of its byte; the states of its trellis stand in the high half.
ONE_STEP, HALF_ROWS, SINGLE_ROWS, EXPONENTS, FINE_EXPONENTS = range(5)
_TRELLISES = (0, 4, 8)
_CORRECTION = struct.Struct("<HB")  # which coded matrix, and the rank


def smallest_section(kind: str, raw: bytes) -> Section:
    codec, payload = smallest(raw)
    return Section(kind, codec, payload, len(raw))


def _stream_section(kind: str, payload: bytes) -> Section:
    return Section(kind, CODECS["stored"], payload, len(payload))


class CodeSections:
    """One section of codes a role, encoded side by side; a role whose codes are the last time's is not encoded again."""

    def __init__(self, codec: CodecName):
        self.codec = codec
        self._last: dict[Role, tuple[list[Codes], Section]] = {}

    def __call__(self, members: dict[Role, list[Codes]]) -> list[Section]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self._section, members, members.values()))

    def _section(self, role: Role, members: list[Codes]) -> Section:
        last = self._last.get(role)
        if last is not None and len(last[0]) == len(members) and all(a is b for a, b in zip(last[0], members, strict=True)):
            return last[1]
        if self.codec == "context":
            section = _stream_section(role.value, encode_codes([m.codes for m in members], [m.trellis for m in members]))
        else:
            raw = _plain_code_bytes([m.codes for m in members])
            section = Section(role.value, CODECS[self.codec], CODECS[self.codec].compress(raw), len(raw))
        self._last[role] = members, section
        return section


def model_sections(quantised: QuantisedModel, infos: list[ParameterInfo], code_sections: CodeSections) -> list[Section]:
    """The sections of a quantised model; parameters stand in the model's order."""
    held = quantised.codes
    sections = [smallest_section("gains", _gain_bytes(list(quantised.gains.values())))]
    sections.append(smallest_section("scales", b"".join(_step_bytes(codes) for codes in held.values())))
    exponents = [row for codes in held.values() if isinstance(codes.steps, LogSteps) for row in (codes.steps.rows, codes.steps.columns)]
    if exponents:
        sections.append(_stream_section("exponents", encode_codes([row[None] for row in exponents], [0] * len(exponents))))
    if quantised.corrections:
        sections.append(smallest_section("low_rank", _correction_bytes(quantised.corrections, list(held))))
    members = {role: [held[info.name] for info in infos if info.role is role and info.name in held] for role in CODED_ROLES}
    return sections + code_sections({role: codes for role, codes in members.items() if codes})


def fill_model(model: LanguageModel, sections: dict[str, Section], codec: str) -> dict[str, int]:
    """Write every parameter from the sections; nothing may be missing or left over.

    Returns:
        Bytes of each matrix's codes, by parameter name; empty where the codec compresses several matrices as one.

    Raises:
        UserError: a section does not fit the model. Sizes are checked before anything is expanded.
    """
    infos = list(model.parameter_infos())
    coded = [info for info in infos if info.role in CODED_ROLES]
    gains = [info for info in infos if info.role not in CODED_ROLES]
    steps, trellises = _read_steps(sections, coded)
    corrections = _read_corrections(sections.get("low_rank"), coded)
    sizes: dict[str, int] = {}
    with torch.no_grad():
        _fill_gains(gains, sections["gains"].expand(16 + 8 * len(gains) + 4 * sum(info.parameter.numel() for info in gains)))
        for role in CODED_ROLES:
            members = [info for info in coded if info.role is role]
            if bool(members) != (role.value in sections):
                raise UserError(f"its {role.value} section is missing or not wanted by its model")
            if not members:
                continue
            shapes = [_shape(info) for info in members]
            section = sections[role.value]
            if codec == "context":
                decoded = list(decode_each(section.expand(len(section.payload)), shapes, [trellises[info.name] for info in members]))
                matrices = [codes for codes, _ in decoded]
                sizes |= {info.name: size for info, (_, size) in zip(members, decoded, strict=True)}
            else:
                matrices = _read_plain_codes(section.expand(1 + 4 * sum(rows * columns for rows, columns in shapes)), shapes)
            for info, codes in zip(members, matrices, strict=True):
                with np.errstate(over="ignore", invalid="ignore"):
                    weights = Codes(codes, steps[info.name], cast(Literal[0, 4, 8], trellises[info.name])).weights()
                    weights = add_correction(weights, corrections.get(info.name))
                _fill(info, weights)
    return sizes


def _shape(info: ParameterInfo) -> tuple[int, int]:
    return info.parameter.shape[0], info.parameter.shape[1]


def _fill(info: ParameterInfo, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise UserError(f"its weights {info.name} are not finite")
    info.parameter.copy_(torch.from_numpy(values).view_as(info.parameter))


# Steps


def _step_bytes(codes: Codes) -> bytes:
    """A byte that says how, then the steps; exponents stand in a section of their own."""
    steps, high = codes.steps, codes.trellis << 4
    if isinstance(steps, LogSteps):
        kind = EXPONENTS if steps.parts == COARSE else FINE_EXPONENTS
        return bytes([kind | high]) + struct.pack("<f", steps.base)
    if len(steps.values) == 1:
        return bytes([ONE_STEP | high]) + steps.values.astype("<f4").tobytes()
    if steps.dtype == "float16":
        # All in fp16's range once they are shifted by the octave of the largest, if not without.
        for shift in (0, -int(np.floor(np.log2(steps.values.max())))):
            shifted = np.ldexp(steps.values, shift)
            with np.errstate(over="ignore"):
                fits = np.array_equal(shifted.astype(np.float16).astype(np.float32), shifted)
            if fits:
                return bytes([HALF_ROWS | high]) + struct.pack("<b", shift) + shifted.astype("<f2").tobytes()
    return bytes([SINGLE_ROWS | high]) + steps.values.astype("<f4").tobytes()


def _read_steps(sections: dict[str, Section], coded: list[ParameterInfo]) -> tuple[dict[str, Steps], dict[str, int]]:
    """Steps and trellis of every coded matrix, by name."""
    raw = sections["scales"].expand(sum(2 + 4 * _shape(info)[0] for info in coded))
    steps: dict[str, Steps] = {}
    trellises: dict[str, int] = {}
    bases: dict[str, tuple[float, int]] = {}
    position = 0
    for info in coded:
        if position >= len(raw):
            raise UserError("its scales section is cut short")
        kind, trellises[info.name] = raw[position] & 15, raw[position] >> 4
        if kind > FINE_EXPONENTS or trellises[info.name] not in _TRELLISES:
            raise UserError(f"its scales section gives {info.name} steps of the unknown kind {raw[position]}")
        shift = 0
        if kind == HALF_ROWS:
            position += 1
            shift = int.from_bytes(raw[position : position + 1], "little", signed=True)
        count = _shape(info)[0] if kind in (HALF_ROWS, SINGLE_ROWS) else 1
        dtype = np.dtype("<f2" if kind == HALF_ROWS else "<f4")
        part = raw[position + 1 : position + 1 + count * dtype.itemsize]
        if len(part) != count * dtype.itemsize:
            raise UserError("its scales section is cut short")
        values = np.ldexp(np.frombuffer(part, dtype=dtype).astype(np.float32), -shift)
        if kind in (EXPONENTS, FINE_EXPONENTS):
            bases[info.name] = float(values[0]), COARSE if kind == EXPONENTS else FINE
        else:
            steps[info.name] = RowSteps(values, "float16" if kind == HALF_ROWS else "float32")
        position += 1 + len(part)
    if position != len(raw):
        raise UserError("its scales section is longer than its model needs")
    return steps | _read_exponents(sections.get("exponents"), [info for info in coded if info.name in bases], bases), trellises


def _read_exponents(section: Section | None, members: list[ParameterInfo], bases: dict[str, tuple[float, int]]) -> dict[str, Steps]:
    if bool(members) != (section is not None):
        raise UserError("its exponents section is missing or not wanted by its scales")
    if section is None:
        return {}
    lengths = [length for info in members for length in _shape(info)]
    rows = decode_codes(section.expand(len(section.payload)), [(1, length) for length in lengths], [0] * len(lengths))
    found: dict[str, Steps] = {}
    for info, row, column in zip(members, rows[::2], rows[1::2], strict=True):
        base, parts = bases[info.name]
        if max(np.abs(row).max(), np.abs(column).max()) > 2 * MAX_OCTAVES * parts:
            raise UserError("its exponents section holds steps beyond any weight")
        found[info.name] = LogSteps(base, row[0], column[0], parts)
    return found


# Gains


def _gain_bytes(gains: Sequence[Codes | np.ndarray]) -> bytes:
    """fp32 after a zero byte; or, after a one, the step and two streams: each gain's own middle, and what differs from it."""
    codes = [gain.codes for gain in gains if isinstance(gain, Codes)]
    if len(codes) < len(gains) or not gains:
        return b"\0" + b"".join(gain.astype("<f4").tobytes() for gain in gains if isinstance(gain, np.ndarray))
    first = gains[0]
    assert isinstance(first, Codes)
    assert isinstance(first.steps, RowSteps)
    middles = [int(np.median(row)) if row.size else 0 for row in codes]
    stream = encode_codes([np.array([middles], dtype=np.int32)], [0])
    rest = [row - middle for row, middle in zip(codes, middles, strict=True) if row.size]
    return b"\1" + struct.pack("<fI", first.steps.values[0], len(stream)) + stream + encode_codes(rest, [0] * len(rest))


def _fill_gains(infos: list[ParameterInfo], raw: bytes) -> None:
    sizes = [info.parameter.numel() for info in infos]
    if raw[:1] == b"\0" and len(raw) == 1 + 4 * sum(sizes):
        values = np.frombuffer(raw[1:], dtype="<f4").astype(np.float32)
        parts = np.split(values, np.cumsum(sizes)[:-1])
    elif raw[:1] == b"\1" and len(raw) >= 9:
        step, length = struct.unpack_from("<fI", raw, 1)
        middles = decode_codes(raw[9 : 9 + length], [(1, len(infos))], [0])[0][0]
        rest = iter(decode_codes(raw[9 + length :], [(1, size) for size in sizes if size], [0] * sum(size > 0 for size in sizes)))
        empty = np.zeros((1, 0), dtype=np.int32)
        rows = [(next(rest) if size else empty) + middle for size, middle in zip(sizes, middles, strict=True)]
        with np.errstate(over="ignore", invalid="ignore"):
            parts = [RowSteps(np.array([step], dtype=np.float32), "float32").scale(row)[0] for row in rows]
    else:
        raise UserError("its gains section does not fit its model")
    for info, part in zip(infos, parts, strict=True):
        _fill(info, part)


# Low-rank corrections


def _correction_bytes(corrections: dict[str, Correction], names: list[str]) -> bytes:
    """How many; for each its matrix, rank and fp32 steps; then the codes of all as one stream."""
    heads = bytes([len(corrections)])
    codes = []
    for name, pair in corrections.items():
        heads += _CORRECTION.pack(names.index(name), len(pair[0].codes))
        for part in pair:
            assert isinstance(part.steps, RowSteps)
            heads += part.steps.values.astype("<f4").tobytes()
            codes.append(part.codes)
    return heads + encode_codes(codes, [0] * len(codes))


def _read_corrections(section: Section | None, coded: list[ParameterInfo]) -> dict[str, Correction]:
    if section is None:
        return {}
    raw = section.expand(sum(4 * min(_shape(info)) * (2 + sum(_shape(info))) for info in coded) + 1024)
    infos, ranks, all_steps = [], [], []
    position = 1
    try:
        for _ in range(raw[0]):
            index, rank = _CORRECTION.unpack_from(raw, position)
            position += _CORRECTION.size
            infos.append(coded[index])
            ranks.append(rank)
            if not 1 <= rank <= min(_shape(coded[index])):
                raise UserError(f"its low_rank section asks for rank {rank} of {coded[index].name}")
            for _ in range(2):
                all_steps.append(np.frombuffer(raw, dtype="<f4", count=rank, offset=position).astype(np.float32))
                position += 4 * rank
    except (struct.error, IndexError, ValueError):
        raise UserError("its low_rank section is cut short") from None
    shapes = [(rank, length) for info, rank in zip(infos, ranks, strict=True) for length in _shape(info)]
    codes = decode_codes(raw[position:], shapes, [0] * len(shapes))
    parts = [Codes(array, RowSteps(steps, "float32")) for array, steps in zip(codes, all_steps, strict=True)]
    return {info.name: (parts[2 * i], parts[2 * i + 1]) for i, info in enumerate(infos)}


# Codes for general-purpose compressors


def _plain_code_bytes(matrices: list[np.ndarray]) -> bytes:
    """A byte that gives the number of planes, then the codes' lowest bytes (signed), what is left of them after that, and so on.

    Planes, because a single code beyond a byte would otherwise double all others.
    """
    left = np.concatenate([codes.ravel() for codes in matrices])
    planes: list[np.ndarray] = []
    while not planes or left.any():
        planes.append(left.astype(np.int8))
        left = (left - planes[-1]) >> 8
    return bytes([len(planes)]) + b"".join(plane.tobytes() for plane in planes)


def _read_plain_codes(raw: bytes, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    sizes = [rows * columns for rows, columns in shapes]
    if not raw or not 1 <= raw[0] <= 4 or len(raw) != 1 + raw[0] * sum(sizes):
        raise UserError("a section of codes does not fit its model")
    planes = np.frombuffer(raw[1:], dtype=np.int8).reshape(raw[0], -1).astype(np.int32)
    flat = np.zeros(sum(sizes), dtype=np.int32)
    for plane in planes[::-1]:
        flat = (flat << 8) + plane
    pieces = np.split(flat, np.cumsum(sizes)[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
