"""What the benchmarks of GPTQ and of the entropy coder measure with: the peers' grid, the compressors' bytes, the entropies."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gptq(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gptq")


@pytest.fixture
def codec(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("codec")


@pytest.mark.parametrize("bits", [5, 6])
def test_equal_grid_is_the_peers(gptq, bits) -> None:
    case = gptq.Case((16, 24), 100, 0)
    found = gptq.rounded([case], gptq.ways_of(bits)["nearest"])
    steps = case.W.abs().amax(1) / ((2**bits - 1) / 2)
    torch.testing.assert_close(found.steps[0], steps, rtol=1e-6, atol=0)
    assert found.codes.min() >= -(2 ** (bits - 1))
    assert found.codes.max() == 2 ** (bits - 1) - 1
    wanted = (case.W / steps[:, None]).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert ((found.codes[0] - wanted).abs() > 0).sum() <= 16  # a row's largest weight lies half way between two codes
    assert case.error(gptq.weights_of(found)[0]) == pytest.approx(
        float(((case.X @ (case.W - gptq.weights_of(found)[0]).T) ** 2).sum() / ((case.X @ case.W.T) ** 2).sum()), rel=1e-4
    )


def test_gptq_runs_without_peers(gptq, monkeypatch, tmp_path, capsys) -> None:
    out = tmp_path / "gptq.json"
    words = ["gptq.py", "--shapes", "16x24", "--batched", "24x16", "--rows", "100", "--bits", "5", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    gptq.main()
    record = json.loads(out.read_text())
    assert set(record["skipped"]) == {"llmcompressor", "torchao"}
    errors = record["rows"][0]["errors"]
    assert errors["ours, equal grid, search"] <= errors["ours, equal grid"] < errors["ours, nearest"]
    assert errors["llmcompressor"] is None
    assert len(record["batched"][0]["timing"]["ours_seconds_all"]) == 2
    assert "was skipped" in capsys.readouterr().out


@pytest.mark.parametrize("largest", [100, 300, 100_000])
@pytest.mark.parametrize("order", ["rows", "columns"])
def test_compressors_get_every_code(codec, largest, order) -> None:
    rng = np.random.default_rng(0)
    matrices = [rng.integers(-largest, largest + 1, shape).astype(np.int32) for shape in ((7, 5), (3, 4))]
    flat = np.concatenate([m.ravel(order="C" if order == "rows" else "F") for m in matrices])
    planes = np.frombuffer(codec.bytes_in_order(matrices, order), dtype=np.int8).reshape(-1, len(flat)).astype(np.int64)
    assert np.array_equal(sum(plane << (8 * i) for i, plane in enumerate(planes)), flat)
    assert len(planes) == {100: 1, 300: 2, 100_000: 3}[largest]


def test_entropy_of_groups(codec) -> None:
    codes = np.array([[-1, 1, -1, 1], [5, 5, 5, 5]])
    whole = codec.entropy_bytes(np.zeros_like(codes), codes)[0] * 8
    rows, _ = np.indices(codes.shape)
    plain, corrected = codec.entropy_bytes(rows, codes) * 8
    assert whole == pytest.approx(4 * 2 + 4 * 1)  # quarters, quarters and a half
    assert plain == pytest.approx(4)
    assert corrected == pytest.approx(4 + 0.5 * np.log2(np.e))  # two values in the first row, one in the second


def test_corrected_entropy_is_near_the_truth(codec) -> None:
    codes = np.rint(4 * np.random.default_rng(0).standard_normal((500, 192))).astype(np.int64)
    rows, _ = np.indices(codes.shape)
    truth = codec.entropy_bytes(np.zeros_like(codes), codes)[0]  # all rows have one distribution, and 96,000 codes show it
    plain, corrected = codec.entropy_bytes(rows, codes)
    assert plain < 0.98 * truth
    assert 0.99 * truth < corrected < truth


def test_measure_without_peers(codec) -> None:
    rng = np.random.default_rng(0)
    codes = np.rint(rng.standard_normal((64, 48)) * np.exp(rng.standard_normal((64, 1)))).astype(np.int32)
    row = codec.measure("some", {"mlp": ([codes, codes.T.copy()], [0, 8])}, codec.Peers(None))
    assert row["ours"]["restored"]
    assert row["codes"] == 2 * 64 * 48
    assert row["nncodec"] is None
    assert row["ours_over"]["zlib"] == row["ours"]["bytes"] / row["general"]["zlib"]["bytes"]
    summed = codec.totals("all", [row, row])
    assert summed["ours_over"] == pytest.approx(row["ours_over"])
    assert codec.verdicts_of(summed)[0] == "every code restored: yes"
