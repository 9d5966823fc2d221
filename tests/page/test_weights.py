"""What the page decodes is, bit for bit, what Python loads."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from bytefit.artifact.code_stream import LARGEST_CODE, encode_codes
from bytefit.artifact.load import load_artifact
from tests.artifact.tools import CODEC_NAMES, EVERYTHING, GRIDS, one_rule, packed, rich_model
from tests.page.artifacts import in_browser_codecs


def streams() -> dict[str, tuple[list[np.ndarray], list[int]]]:
    """Codes that reach every branch: all states, long magnitudes, prediction that pays and prediction that is given up."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, spread: float = 3.0) -> np.ndarray:
        return np.round(rng.normal(size=shape) * spread).astype(np.int32)

    def walk(*shape: int) -> np.ndarray:
        """Neighbours in a row are alike, so that prediction pays."""
        return np.cumsum(normal(*shape), axis=1).astype(np.int32)

    def extreme(*shape: int) -> np.ndarray:
        return np.where(rng.random(shape) < 0.1, rng.integers(-LARGEST_CODE, LARGEST_CODE, shape, endpoint=True), 0).astype(np.int32)

    return {
        "one row": ([normal(1, 500), normal(1, 1)], [0, 0]),
        "trellises": ([normal(90, 40), normal(90, 40), normal(30, 7)], [4, 8, 0]),
        "rows and columns of all sizes": ([normal(120, 50) * rng.integers(1, 90, 50) * rng.integers(1, 90, 120)[:, None]], [8]),
        "predictable": ([walk(200, 60), normal(70, 20), walk(150, 30)], [0, 4, 8]),
        "predictable too late": ([np.concatenate([normal(70, 40), walk(200, 40)])], [0]),
        "predictable at first": ([np.concatenate([walk(100, 40), normal(100, 40)])], [4]),
        "wide": ([normal(70, 1100)], [0]),
        "extreme": ([extreme(70, 40), extreme(20, 1200), np.full((80, 30), LARGEST_CODE, np.int32), extreme(90, 30)], [0, 8, 4, 0]),
        "zeros, then signs": ([np.zeros((80, 30), np.int32), rng.choice([-LARGEST_CODE, LARGEST_CODE], (80, 30))], [0, 0]),
    }


def stream_task(path, matrices: list[np.ndarray], trellis: list[int], cut: int = 0) -> dict[str, Any]:
    """Write the stream, without its last ``cut`` bytes; how node is asked for it."""
    data = encode_codes(matrices, trellis)
    path.write_bytes(data[: len(data) - cut])
    return {"path": str(path), "shapes": [codes.shape for codes in matrices], "trellis": trellis}


def test_streams_of_codes(node, tmp_path) -> None:
    tasks = [stream_task(tmp_path / f"{i}.codes", *stream) for i, stream in enumerate(streams().values())]
    for (name, (matrices, _)), decoded in zip(streams().items(), node("streams", tasks), strict=True):
        for codes, got in zip(matrices, decoded, strict=True):
            assert np.array_equal(np.frombuffer(bytes.fromhex(got), "<i4").reshape(codes.shape), codes), name


def test_what_does_not_decode_is_refused(node, tmp_path) -> None:
    """Streams that are cut short; and codes beyond what doubles can follow, rather than wrong ones: 9,000 of the largest in a row."""
    codes = np.arange(300, dtype=np.int32).reshape(20, 15)
    cut = stream_task(tmp_path / "cut", [codes], [0], cut=1)
    large = stream_task(tmp_path / "large", [np.full((2, 9000), LARGEST_CODE, np.int32)], [0])
    assert node("streams", [cut, large]) == [
        "the artifact's codes do not decode",
        "the artifact's codes are too large for this page's numbers",
    ]


@pytest.fixture(scope="module")
def rich(dataset):
    return rich_model(dataset)


def test_weights_of_every_grid_and_codec(node, rich, dataset, tmp_path) -> None:
    """Every way of storing steps, trellises, corrections, coded and plain gains, with every codec."""
    cases = [(one_rule(dataclasses.replace(EVERYTHING.table, grid=grid)), "context") for grid in GRIDS]
    cases += [(EVERYTHING, codec) for codec in CODEC_NAMES]
    paths = []
    for i, (quant, codec) in enumerate(cases):
        paths.append(tmp_path / f"{i}.bytefit")
        paths[-1].write_bytes(packed(rich, dataset, budget_bytes=1 << 24, codec=codec, quant=quant, fit=False).data)
    for path, case, decoded in zip(paths, cases, node("weights", [in_browser_codecs(path) for path in paths]), strict=True):
        infos = list(load_artifact(path).model.parameter_infos())
        assert [(p["name"], p["role"], p["shape"]) for p in decoded] == [(i.name, i.role.value, list(i.parameter.shape)) for i in infos]
        for info, parameter in zip(infos, decoded, strict=True):
            want = info.parameter.detach().numpy().astype("<f4").tobytes()
            assert bytes.fromhex(parameter["values"]) == want, (info.name, case)
