from __future__ import annotations

import numpy as np
import pytest
import torch

from bytefit.quant.codes import Codes, LogSteps, RowSteps
from bytefit.quant.gptq import Gptq
from bytefit.quant.grid import EqualDamageGrid, integer_grid
from bytefit.quant.prune import PruneConfig, find_ones, without_ones
from bytefit.quant.quantise import MatrixQuant
from tests.quant.tools import config_of, metric, normal_weights, quantise, quantise_all, second_moment, uneven_inputs

W = normal_weights(20, 30)
H = second_moment(uneven_inputs(200, 30))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.03, 0.5, 0.999])
def test_the_smallest_weights_go(share) -> None:
    keep = PruneConfig(share=share, min_size=0).keep(torch.from_numpy(W))
    count = int(share * 600)
    if not count:
        assert keep is None
        return
    kept = keep.numpy()
    assert (~kept).sum() == count
    assert np.abs(W[~kept]).max() <= np.abs(W[kept]).min()


def test_of_equal_weights_exactly_the_share_goes() -> None:
    keep = PruneConfig(share=0.25, min_size=0).keep(torch.ones(8, 10))
    assert int((~keep).sum()) == 20


@pytest.mark.parametrize(("min_size", "pruned"), [(599, True), (600, False), (601, False)])
def test_small_matrices_are_left_alone(min_size, pruned) -> None:
    keep = PruneConfig(share=0.5, min_size=min_size).keep(torch.from_numpy(W))
    assert (keep is not None) == pruned
    zeros = (quantise(W, integer_grid(8), prune=PruneConfig(share=0.5, min_size=min_size)).codes == 0).sum()
    assert (zeros >= 300) == pruned


@pytest.mark.parametrize("rounding", [None, Gptq(), Gptq(order="ascending", downdate=False, block=7)])
def test_pruned_weights_stay_zero(rounding) -> None:
    keep = PruneConfig(share=0.4, min_size=0).keep(torch.from_numpy(W)).numpy()
    codes = quantise(W, integer_grid(8), rounding, H=H, prune=PruneConfig(share=0.4, min_size=0))
    assert (codes.codes[~keep] == 0).all()
    assert (codes.codes[keep] != 0).mean() > 0.8


def test_refuses_impossible_shares() -> None:
    for wrong in ({"share": 1.0}, {"share": -0.1}, {"share": 0.5, "min_size": -1}):
        with pytest.raises(ValueError, match="must"):
            PruneConfig(**wrong)


def model_of_codes() -> tuple[dict[str, Codes], dict]:
    rng = np.random.default_rng(0)
    shapes = {"a": (6, 5), "b": (4, 7), "unknown": (3, 3), "c": (5, 4)}
    codes = {name: rng.integers(-2, 3, size=shape).astype(np.int32) for name, shape in shapes.items()}
    held = {
        "a": Codes(codes["a"], RowSteps((0.1 + rng.random(6)).astype(np.float32), "float32")),
        "b": Codes(codes["b"], RowSteps(np.array([0.3], dtype=np.float32), "float32")),
        "unknown": Codes(codes["unknown"], RowSteps(np.array([0.3], dtype=np.float32), "float32")),
        "c": Codes(codes["c"], LogSteps(0.25, rng.integers(-6, 6, size=5).astype(np.int32), rng.integers(-6, 6, size=4).astype(np.int32))),
    }
    moments = {name: second_moment(uneven_inputs(50, shapes[name][1], seed=i)) for i, name in enumerate(shapes) if name != "unknown"}
    rows = {name: rng.random(shapes[name][0]) + 0.01 for name in moments}
    return held, {name: metric(moment, rows[name]) for name, moment in moments.items()}


def slow_ones(held: dict[str, Codes], metrics: dict) -> list[tuple[float, str, int, int]]:
    """(step² · r_i · H_jj, matrix, row, column) of every code that is 1 or -1, cheapest first."""
    found = []
    for name, codes in held.items():
        if name not in metrics:
            continue
        for i in range(codes.codes.shape[0]):
            for j in range(codes.codes.shape[1]):
                if codes.codes[i, j] in (1, -1):
                    if isinstance(codes.steps, LogSteps):
                        step = codes.steps.base * 2.0 ** (codes.steps.rows[i] / 4) * 2.0 ** (codes.steps.columns[j] / 4)
                    else:
                        step = float(codes.steps.values[i % len(codes.steps.values)])
                    found.append((step**2 * float(metrics[name].rows[i] * metrics[name].columns[j, j]), name, i, j))
    return sorted(found)


@pytest.mark.parametrize("count", [0, 1, 10, 30])
def test_the_cheapest_ones_go_first(count) -> None:
    held, metrics = model_of_codes()
    ones = find_ones(held, metrics)
    expected = slow_ones(held, metrics)
    assert len(ones) == len(expected) >= 30
    zeroed = without_ones(held, ones, count)
    assert list(zeroed) == list(held)
    changed = {(name, int(i), int(j)) for name in held for i, j in zip(*np.nonzero(zeroed[name].codes != held[name].codes), strict=True)}
    assert changed == {(name, i, j) for _, name, i, j in expected[:count]}
    assert all(zeroed[name].codes[i, j] == 0 for name, i, j in changed)
    order = [(ones.names[m], *divmod(int(p), held[ones.names[m]].codes.shape[1])) for m, p in zip(ones.matrix, ones.position, strict=True)]
    assert [(name, i, j) for name, i, j in order] == [(name, i, j) for _, name, i, j in expected]


def test_zeroing_leaves_its_source_alone() -> None:
    held, metrics = model_of_codes()
    before = {name: codes.codes.copy() for name, codes in held.items()}
    without_ones(held, find_ones(held, metrics), 20)
    assert all(np.array_equal(before[name], held[name].codes) for name in held)


def test_no_ones_at_all() -> None:
    held, metrics = model_of_codes()
    held = {"b": Codes(2 * held["b"].codes, held["b"].steps)}
    assert len(find_ones(held, metrics)) == 0
    assert np.array_equal(without_ones(held, find_ones(held, metrics), 5)["b"].codes, held["b"].codes)
    assert len(find_ones(held, {})) == 0


def test_zeroing_a_code_touches_no_other_weight() -> None:
    """In a trellis the parity of a code decides what all codes below it mean."""
    quant = config_of(MatrixQuant(grid=EqualDamageGrid(step=0.05, trellis=8)))
    metrics = {"a": metric(H, 20)}
    held = quantise_all({"a": W}, quant, metrics).codes
    ones = find_ones(held, metrics)
    zeroed = without_ones(held, ones, len(ones) // 4)
    before, after = held["a"].weights(), zeroed["a"].weights()
    same_code = zeroed["a"].codes == held["a"].codes
    assert np.array_equal(before[same_code], after[same_code])
