from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytefit.artifact.code_stream import LARGEST_CODE, decode_codes, encode_codes
from bytefit.artifact.weights_part import CodeSections
from bytefit.errors import UserError
from bytefit.model.roles import Role
from bytefit.quant.codes import Codes, RowSteps
from bytefit.quant.trellis_tables import TRELLIS


def normal_codes(shape, spread, seed=0):
    return np.round(np.random.default_rng(seed).normal(size=shape) * spread).astype(np.int32)


def size(codes, trellis=0) -> int:
    return len(encode_codes([codes], [trellis]))


def check_restores(matrices, trellis) -> bytes:
    data = encode_codes(matrices, trellis)
    decoded = decode_codes(data, [codes.shape for codes in matrices], trellis)
    assert all(codes.dtype == np.int32 for codes in decoded)
    assert all(np.array_equal(a, b) for a, b in zip(matrices, decoded, strict=True))
    return data


def entropy_bytes(codes) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def normal_entropy(spread) -> float:
    """Bits a code of ``normal_codes``."""
    edges = np.arange(-math.ceil(9 * spread) - 1, math.ceil(9 * spread) + 1) + 0.5
    p = np.diff([0.5 * math.erf(edge / (spread * math.sqrt(2))) for edge in edges])
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


@settings(max_examples=80, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4),
    spread=st.sampled_from([0.0, 0.3, 3.0, 300.0, 2.0**19]),
    trellis=st.lists(st.sampled_from([0, 4, 8]), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
)
def test_restores_any_codes(shapes, spread, trellis, seed) -> None:
    rng = np.random.default_rng(seed)
    tailed = [np.round(rng.standard_t(2, size=shape) * spread).clip(-LARGEST_CODE, LARGEST_CODE) for shape in shapes]
    check_restores([codes.astype(np.int32) for codes in tailed], trellis[: len(shapes)])


@pytest.mark.parametrize("shape", [(1, 700), (700, 1), (300, 40), (40, 300), (70, 1500)])
@pytest.mark.parametrize("trellis", [0, 4, 8])
def test_restores_extreme_codes(shape, trellis) -> None:
    rng = np.random.default_rng(0)
    spikes = np.where(rng.random(shape) < 0.02, rng.integers(-LARGEST_CODE, LARGEST_CODE, shape, endpoint=True), 0)
    signs = rng.choice([-LARGEST_CODE, LARGEST_CODE], shape)
    zeros = np.zeros(shape)
    ramp = np.cumsum(rng.integers(0, 900, shape), axis=1).clip(0, LARGEST_CODE)  # predictable, so prediction is on
    check_restores([codes.astype(np.int32) for codes in (zeros, spikes, signs, ramp, zeros, spikes)], [trellis] * 6)


def test_takes_codes_of_any_layout_and_leaves_them_alone() -> None:
    codes = normal_codes((30, 50), 3)
    codes.flags.writeable = False
    assert encode_codes([codes.T.copy()], [0]) == encode_codes([codes.T], [0]) == encode_codes([codes.T.astype(np.int64)], [0])


def test_nothing_takes_no_bytes_and_zeros_few() -> None:
    assert encode_codes([], []) == b""
    assert decode_codes(b"", [], []) == []
    assert size(np.zeros((512, 512), dtype=np.int32)) < 200


def test_refuses_codes_too_large() -> None:
    with pytest.raises(ValueError, match="exceed"):
        encode_codes([np.array([[LARGEST_CODE + 1]])], [0])


@pytest.mark.parametrize("spread", [0.4, 3.0, 60.0])
def test_notices_a_stream_of_another_length(spread) -> None:
    codes = normal_codes((90, 30), spread)
    data = encode_codes([codes], [0])
    wrong = [data[:-1], data[:-2], data[:-8], data[: len(data) // 2], b"", data + b"\0", data + b"\xff", data + bytes(range(1, 9))]
    for stream in wrong:
        with pytest.raises(UserError, match="do not decode"):
            decode_codes(stream, [codes.shape], [0])
    with pytest.raises(UserError, match="do not decode"):
        decode_codes(b"\0", [], [])


@pytest.mark.parametrize("trellis", [0, 4, 8])
def test_garbage_ends_and_stays_in_range(trellis) -> None:
    rng = np.random.default_rng(1)
    for stream in (bytes(4000), b"\xff" * 4000, rng.bytes(4000), b"\x55" * 40):
        try:
            (decoded,) = decode_codes(stream, [(200, 90)], [trellis])
        except UserError:
            continue
        assert np.abs(decoded).max() <= LARGEST_CODE


@pytest.mark.parametrize(("spread", "excess"), [(0.5, 1.005), (1.5, 1.005), (3.0, 1.005), (24.0, 1.01)])
def test_independent_codes_come_near_their_entropy(spread, excess) -> None:
    codes = normal_codes((512, 512), spread)
    assert size(codes) < excess * entropy_bytes(codes)


def test_learns_any_distribution_over_a_few_values() -> None:
    codes = np.random.default_rng(0).choice([-7, -2, 0, 1, 2, 5], p=[0.1, 0.2, 0.05, 0.2, 0.2, 0.25], size=(300, 300)).astype(np.int32)
    by_magnitude = entropy_bytes(np.abs(codes)) + np.count_nonzero(codes) / 8  # signs are taken to be even
    assert size(codes) < 1.01 * by_magnitude


@pytest.mark.parametrize("axis", [0, 1])
def test_uses_the_scale_of_rows_and_of_columns(axis) -> None:
    rng = np.random.default_rng(0)
    scales = np.exp(rng.normal(size=256))
    codes = np.round(rng.normal(size=(256, 256)) * 4 * (scales[:, None] if axis == 0 else scales[None, :])).astype(np.int32)
    shuffled = rng.permutation(codes.ravel()).reshape(codes.shape)
    assert size(codes) < 0.93 * size(shuffled)
    assert size(codes) < 1.03 * 256 * sum(normal_entropy(4 * scale) for scale in scales) / 8


def test_predicts_columns_that_depend_on_others() -> None:
    rng = np.random.default_rng(0)
    codes = np.round(rng.normal(size=(1000, 8)) @ rng.normal(size=(8, 48)) * 8 + rng.normal(size=(1000, 48)) * 4).astype(np.int32)
    independent = np.stack([rng.permutation(column) for column in codes.T], axis=1)
    assert size(codes) < 0.85 * size(independent)


def trellis_codes(num_states, shape):
    """Codes whose spread is small in states of one quantiser and large in those of the other."""
    rng = np.random.default_rng(0)
    next_state, quantiser = TRELLIS[num_states]
    states, rows = np.zeros(shape[1], dtype=np.int64), []
    for _ in range(shape[0]):
        rows.append(np.round(rng.normal(size=shape[1]) * np.where(quantiser[states], 0.6, 3.0)).astype(np.int32))
        states = next_state[states, rows[-1] & 1].astype(np.int64)
    return np.array(rows)


@pytest.mark.parametrize("num_states", [4, 8])
def test_uses_the_trellis_state(num_states) -> None:
    codes = trellis_codes(num_states, (300, 200))
    assert size(codes, num_states) < 0.92 * size(codes)


def test_learns_from_one_matrix_for_the_next() -> None:
    small = [normal_codes((24, 24), 3, seed) for seed in range(40)]
    assert len(encode_codes(small, [0] * 40)) < 0.96 * sum(size(codes) for codes in small)


def test_streams_are_reproducible() -> None:
    matrices = [normal_codes((80, 60), 3), normal_codes((128, 32), 30)]
    assert encode_codes(matrices, [4, 0]) == encode_codes(matrices, [4, 0])


def test_the_format_has_not_changed() -> None:
    """These bytes are part of the artifact's format."""
    codes = np.array([[3, -1, 0, 40], [0, 2, -5, -1000]], dtype=np.int32)
    assert encode_codes([codes, codes], [0, 4]).hex() == "2dd233e67168bb477dc4c3bb408eb2"


def test_only_roles_that_changed_are_encoded_again() -> None:
    sections = CodeSections("context")
    rng = np.random.default_rng(0)
    first, second, third = (
        Codes(rng.integers(-9, 9, size=(6, 40)).astype(np.int32), RowSteps(np.ones(1, np.float32), "float32")) for _ in range(3)
    )
    before = sections({Role.MLP: [first, second], Role.ATTENTION: [second]})
    after = sections({Role.MLP: [first, third], Role.ATTENTION: [second]})
    assert after[1] is before[1]
    assert after[0].payload == encode_codes([first.codes, third.codes], [0, 0]) != before[0].payload
