from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from bytefit.artifact.code_stream import encode_codes
from bytefit.errors import UserError
from bytefit.quant.clip import FixedClip, Percentile, RowMaximum, Searched, Shrunk, Sigmas
from bytefit.quant.gptq import Gptq
from bytefit.quant.grid import EqualDamageGrid, RowGrid, StepGrid, integer_grid
from bytefit.quant.quantise import FINEST_GAIN_STEP, MatrixQuant, _gain_codes
from tests.quant import reference
from tests.quant.tools import config_of, info, normal_weights, quantise, quantise_all, quantise_model, second_moment, uneven_inputs

W = normal_weights(24, 65)
RULES: list[tuple[FixedClip, tuple]] = [
    (RowMaximum(), ("maximum",)),
    (Percentile(share=0.9), ("percentile", 0.9)),
    (Percentile(share=0.99), ("percentile", 0.99)),
    (Percentile(share=0.9995), ("percentile", 0.9995)),
    (Percentile(share=1.0), ("percentile", 1.0)),
    (Percentile(share=0.2), ("percentile", 0.2)),
    (Sigmas(k=2.5), ("sigmas", 2.5)),
    (Shrunk(factor=0.7), ("shrunk", 0.7)),
]
RANGES = [(-1, 1), (-3, 3), (-7, 7), (-15, 15), (-16, 15), (-31, 31), (-32, 31), (-63, 63), (-127, 127)]


def assert_best_codes(codes: np.ndarray, W: np.ndarray, steps: np.ndarray, lowest: int, highest: int) -> None:
    """Nothing else would be nearer (ties may go either way)."""
    assert codes.min() >= lowest
    assert codes.max() <= highest
    best = reference.nearest(W, steps, lowest, highest)
    ours = np.abs(W - codes * steps[:, None])
    assert (ours <= np.abs(W - best * steps[:, None]) + 1e-6 * steps[:, None]).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_are_symmetric_codes(bits) -> None:
    highest = 2 ** (bits - 1) - 1
    codes = quantise(W, integer_grid(bits))
    steps = reference.row_steps(("maximum",), W, highest)
    assert np.array_equal(codes.steps.values, steps)
    assert_best_codes(codes.codes, W, steps, -highest, highest)
    assert (np.abs(codes.codes).max(1) == highest).all()
    assert np.array_equal(codes.weights(), (codes.codes.astype(np.float32) * steps[:, None].astype(np.float32)))


@pytest.mark.parametrize(("lowest", "highest"), RANGES)
@pytest.mark.parametrize(("clip", "rule"), RULES, ids=str)
def test_every_range_under_every_rule(lowest, highest, clip, rule) -> None:
    codes = quantise(W, RowGrid(lowest=lowest, highest=highest, clip=clip))
    steps = reference.row_steps(rule, W, highest)
    assert codes.steps.values == pytest.approx(steps, rel=1e-3)  # an fp16 may fall to the next one
    assert np.mean(codes.steps.values == steps) > 0.9
    assert_best_codes(codes.codes, W, codes.steps.values.astype(np.float64), lowest, highest)


def test_levels_may_differ_from_the_end() -> None:
    """As PR #578: 31 levels between zero and the reach, codes -32...31."""
    grid = RowGrid(lowest=-32, highest=31, levels=16, clip=Percentile(share=0.5))
    codes = quantise(W, grid)
    steps = reference.row_steps(("percentile", 0.5), W, 16)
    assert codes.steps.values == pytest.approx(steps, rel=1e-3)
    assert codes.codes.min() == -32
    assert codes.codes.max() == 31


@pytest.mark.parametrize("k", [3.0, 6.0])
def test_without_ends_no_weight_is_cut(k) -> None:
    weights = W.copy()
    weights[:, 0] *= 100
    codes = quantise(weights, RowGrid(lowest=None, highest=None, levels=31, clip=Sigmas(k=k)))
    steps = reference.row_steps(("sigmas", k), weights, 31)
    assert codes.steps.values == pytest.approx(steps, rel=1e-3)
    assert np.abs(codes.codes).max() > 31
    assert (np.abs(weights - codes.weights()) <= 0.5001 * codes.steps.values[:, None]).all()


def test_codes_suit_the_step_that_is_stored() -> None:
    """Rounded to fp16, the step moves the codes at the end of an int12 grid; codes chosen for the exact step would miss there."""
    codes = quantise(10 * W, integer_grid(12))
    exact = np.abs(10 * W).astype(np.float64).max(1) / 2047
    stored = codes.steps.values.astype(np.float64)
    assert np.array_equal(stored, stored.astype(np.float16))
    assert_best_codes(codes.codes, 10 * W, stored, -2047, 2047)
    of_exact_steps = np.rint(10 * W / exact[:, None])
    assert (of_exact_steps != codes.codes).mean() > 0.02


def held_by_fp16(steps: np.ndarray) -> bool:
    """As they are, or shifted by the octave of the largest."""
    shifts = (0, -int(np.floor(np.log2(steps.max()))))
    with np.errstate(over="ignore"):
        return any(np.array_equal(shifted, shifted.astype(np.float16)) for shifted in (np.ldexp(steps, shift) for shift in shifts))


@pytest.mark.parametrize("scale", [1e-9, 3e-5, 1.0, 3e6])
def test_steps_of_any_size_keep_three_digits(scale) -> None:
    weights = (W * scale).astype(np.float32)
    codes = quantise(weights, integer_grid(6))
    assert codes.steps.dtype == "float16"
    assert held_by_fp16(codes.steps.values)
    assert codes.steps.values == pytest.approx(np.abs(weights).max(1) / 31, rel=1e-3)
    assert_best_codes(codes.codes, weights, codes.steps.values.astype(np.float64), -31, 31)


def test_fp32_steps_where_asked_for() -> None:
    codes = quantise(W, RowGrid(lowest=-31, highest=31, scale_dtype="float32"))
    assert codes.steps.dtype == "float32"
    assert np.array_equal(codes.steps.values, np.abs(W).max(1) / np.float32(31))


@pytest.mark.parametrize("dial", [2.0**-14, 2.0**-11, 2.0**14])
def test_stored_steps_are_what_weights_are_made_of(dial) -> None:
    """Whatever the dial makes of the steps, the file's dtype holds them exactly."""
    codes = quantise(50 * W, integer_grid(2), Gptq(), H=second_moment(uneven_inputs(200, 65)), dial=dial)
    assert np.isfinite(codes.steps.values).all()
    assert np.isfinite(codes.weights()).all()
    assert held_by_fp16(codes.steps.values)


def test_a_search_over_steps_of_both_dtypes_stores_what_it_chose() -> None:
    """One rule's steps need fp32 and another's do not; the rows choose differently."""
    rng = np.random.default_rng(0)
    two_values = (2.2e-4 * rng.choice([-1, 1], size=(1, 400))).astype(np.float32)  # wants its maximum; 0.8 of it needs fp32
    spread = rng.normal(size=(40, 400)).astype(np.float32)  # want to be cut
    codes = quantise(
        np.concatenate([two_values, spread]), RowGrid(lowest=-3, highest=3, clip=Searched(among=(Shrunk(factor=0.8), RowMaximum())))
    )
    assert held_by_fp16(codes.steps.values)


@pytest.mark.parametrize("dial", [1.0, 0.5])
def test_the_floor_binds_and_is_counted(dial) -> None:
    floor = 1 / 31
    weights = np.concatenate([W, 100 * W])
    unbound = np.abs(weights).max(1) / (31 * dial)
    model = quantise_all(
        {"a": weights, "b": weights[:30]}, config_of(MatrixQuant(grid=RowGrid(lowest=-31, highest=31, floor=floor))), dial=dial
    )
    steps = model.codes["a"].steps.values
    assert steps == pytest.approx(np.maximum(unbound, floor), rel=1e-3)
    assert 20 < (unbound < floor).sum() < 40
    assert model.floor_rows == (unbound < floor).sum() + (unbound[:30] < floor).sum()


def test_a_searched_floor_is_counted_too() -> None:
    weights = np.concatenate([W, 100 * W])
    grid = RowGrid(lowest=-31, highest=31, floor=1 / 31, clip=Searched(among=(RowMaximum(), Percentile(share=0.9))))
    model = quantise_all({"a": weights}, config_of(MatrixQuant(grid=grid)))
    assert model.floor_rows == (model.codes["a"].steps.values < 1 / 31 * 1.0005).sum() >= 20


SEARCH = [("percentile", 0.8), ("percentile", 0.9), ("percentile", 0.97), ("shrunk", 0.5), ("maximum",)]
AMONG = (Percentile(share=0.8), Percentile(share=0.9), Percentile(share=0.97), Shrunk(factor=0.5), RowMaximum())


@pytest.mark.parametrize("judge", ["nearest", "feedback"])
@pytest.mark.parametrize("error", ["plain", "weighted"])
@pytest.mark.parametrize("each", ["row", "matrix"])
def test_the_best_rule_is_found(each, error, judge) -> None:
    rng = np.random.default_rng(4)
    weights = (W[:, :30] * rng.choice([1, 1, 1, 3], size=(24, 30))).astype(np.float32)
    H = second_moment(uneven_inputs(300, 30, seed=1))
    order, damped = reference.order_of(H, "descending"), reference.damped(H, 0.01)
    all_steps = [reference.row_steps(rule, weights, 3) for rule in SEARCH]
    costs, outcomes = [], []
    for steps in all_steps:
        codes = reference.brain_surgeon(weights, steps, -3, 3, damped, order)
        outcomes.append(codes)
        if judge == "nearest":
            codes = reference.nearest(weights, steps, -3, 3)
        left = weights - codes * steps[:, None]
        costs.append([row @ (H if error == "weighted" else np.eye(30)) @ row for row in left.astype(np.float64)])
    if each == "matrix":
        costs = [[sum(cost)] * 24 for cost in costs]
    best = np.argmin(costs, axis=0)
    got = quantise(weights, RowGrid(lowest=-3, highest=3, clip=Searched(among=AMONG, each=each, error=error, judge=judge)), Gptq(), H=H)
    assert np.allclose(got.steps.values, [all_steps[k][i] for i, k in enumerate(best)], rtol=1e-3)
    want = np.stack([outcomes[k][i] for i, k in enumerate(best)])
    assert (got.codes != want).any(1).sum() <= 1
    if each == "row":
        assert len(set(best)) > 1  # the search had something to find


def test_searches_differ_in_what_they_choose() -> None:
    """The four ways to judge a rule are not one and the same."""
    H = second_moment(uneven_inputs(300, 65, seed=1))
    chosen = {
        (error, judge): tuple(
            quantise(W, RowGrid(lowest=-3, highest=3, clip=Searched(among=AMONG, error=error, judge=judge)), Gptq(), H=H).steps.values
        )
        for error in ("plain", "weighted")
        for judge in ("nearest", "feedback")
    }
    assert len(set(chosen.values())) == 4


def test_plain_search_is_no_worse_than_any_rule() -> None:
    def squares(clip) -> np.ndarray:
        codes = quantise(W, RowGrid(lowest=-7, highest=7, clip=clip))
        return np.square(W - codes.weights()).sum(1)

    searched = squares(Searched(among=AMONG))
    assert all((searched <= squares(rule) * (1 + 1e-5)).all() for rule in AMONG)


def test_step_grid_has_one_step_and_no_end() -> None:
    codes = quantise(W, StepGrid(fineness=6.0))
    assert codes.steps.values.shape == (1,)
    assert codes.steps.values[0] == pytest.approx(np.sqrt((W.astype(np.float64) ** 2).mean()) / 6)
    assert np.abs(codes.weights() - W).max() <= codes.steps.values[0] * 0.5001


GRIDS = [
    integer_grid(2),
    integer_grid(6),
    RowGrid(lowest=-16, highest=15, clip=Percentile(share=0.99)),
    RowGrid(lowest=None, highest=None, levels=31, clip=Sigmas(k=12.0)),
    StepGrid(fineness=4.0),
    EqualDamageGrid(step=0.02, trellis=0, row_factors=False, rate_weight=1.0),
    EqualDamageGrid(step=0.02, trellis=8, row_factors=False, rate_weight=1.0),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_finer_dial_is_a_smaller_error_and_more_bytes(grid) -> None:
    weights, H = normal_weights(64, 65), second_moment(uneven_inputs(200, 65))
    all_codes = [quantise(weights, grid, H=H, dial=dial) for dial in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)]
    errors = [np.square(codes.weights() - weights).mean() for codes in all_codes]
    sizes = [len(encode_codes([codes.codes], [codes.trellis])) for codes in all_codes]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 50
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]
    assert sizes[-1] - sizes[-2] == pytest.approx(weights.size / 8, rel=0.3)  # at high rate an octave is a bit a weight


@pytest.mark.parametrize("dial", [0.3, 1.0, 5.0])
@pytest.mark.parametrize(("lowest", "highest"), [(-16, 15), (-1, 1)])
def test_the_dial_moves_the_ends_with_the_steps(lowest, highest, dial) -> None:
    codes = quantise(W, RowGrid(lowest=lowest, highest=highest), dial=dial)
    assert codes.steps.values == pytest.approx(np.abs(W).max(1) / (highest * dial), rel=1e-3)
    assert_best_codes(
        codes.codes, W, codes.steps.values.astype(np.float64), round(Fraction(lowest) * Fraction(dial)), max(1, round(highest * dial))
    )


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rows_of_zeros_stay_zero(grid) -> None:
    """In a trellis a zero may take a half step for its neighbours' sake; nothing but zeros stays nothing there too."""
    H = second_moment(uneven_inputs(200, 65))
    mixed = W.copy()
    mixed[3] = mixed[10] = 0
    for weights in (np.zeros_like(W), mixed):
        rounded = quantise(weights, grid, H=H).weights()
        assert np.isfinite(rounded).all()
        if not getattr(grid, "trellis", 0) or not weights.any():
            assert (rounded[(weights == 0).all(1)] == 0).all()
    assert np.abs(rounded[0] - mixed[0]).max() < np.abs(mixed[0]).max()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (1, 1)])
def test_rows_and_columns_of_one_weight(grid, shape) -> None:
    weights = np.linspace(0.4, 1.0, 5, dtype=np.float32)[: shape[0] * shape[1]].reshape(shape)
    rounded = quantise(weights, grid, H=np.eye(shape[1]))
    assert rounded.codes.shape == shape
    ternary = isinstance(grid, RowGrid) and grid.highest == 1
    assert rounded.weights() == pytest.approx(weights, abs=0.46 if ternary else 0.2)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiny_and_huge_weights_stay_numbers(grid) -> None:
    H = second_moment(uneven_inputs(200, 65))
    for scale in (1e-38, 1e-30, 1e-8, 1e6):
        codes = quantise((W * np.float32(scale)).astype(np.float32), grid, H=H)
        assert np.isfinite(codes.weights()).all()
        assert np.abs(codes.codes).max() <= 1 << 20


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_one_clear_line(grid, bad) -> None:
    weights = W.copy()
    weights[2, 3] = bad
    with pytest.raises(UserError, match="NaN or infinite") as caught:
        quantise_model(
            {"blocks.1.mlp.up.weight": torch.from_numpy(weights)},
            [info("blocks.1.mlp.up.weight", W.shape)],
            config_of(MatrixQuant(grid=grid)),
        )
    assert "blocks.1.mlp.up.weight" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RowGrid(lowest=-31, highest=None),
        lambda: RowGrid(lowest=None, highest=None),
        lambda: RowGrid(lowest=1, highest=31),
        lambda: RowGrid(lowest=-31, highest=0),
        lambda: RowGrid(lowest=-31, highest=31, levels=0),
        lambda: RowGrid(lowest=-31, highest=31, floor=0.0),
        lambda: integer_grid(1),
        lambda: StepGrid(fineness=0.0),
        lambda: EqualDamageGrid(step=0.0),
        lambda: EqualDamageGrid(rate_weight=-1.0),
        lambda: Percentile(share=0.0),
        lambda: Percentile(share=1.1),
        lambda: Sigmas(k=0.0),
        lambda: Shrunk(factor=0.0),
        lambda: Searched(among=()),
        lambda: Gptq(block=0),
        lambda: Gptq(damp=-0.1),
    ],
)
def test_impossible_settings_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"must|needs|name|give"):
        make()


def test_gains_that_no_code_can_hold_are_one_clear_line() -> None:
    values = np.array([1.0, -60.0], dtype=np.float32)
    codes = _gain_codes("blocks.0.scale", values, FINEST_GAIN_STEP).codes
    assert encode_codes([codes], [0])
    with pytest.raises(UserError, match=r"blocks.0.scale has grown to 70.*gain_step=null"):
        _gain_codes("blocks.0.scale", values * 70 / 60, FINEST_GAIN_STEP)
