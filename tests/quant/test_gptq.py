from __future__ import annotations

import numpy as np
import pytest
import torch

from bytefit.errors import UserError
from bytefit.model.roles import Role
from bytefit.quant.gptq import Gptq
from bytefit.quant.grid import RowGrid, StepGrid, integer_grid
from bytefit.quant.metric import Metric, factorise
from bytefit.quant.prune import PruneConfig
from bytefit.quant.quantise import MatrixQuant, QuantConfig
from tests.quant import reference
from tests.quant.tools import config_of, info, normal_weights, quantise, quantise_all, quantise_model, second_moment, uneven_inputs

COLS = 40
W = normal_weights(32, COLS, seed=1)
X = uneven_inputs(500, COLS, seed=2)
H = second_moment(X)
INT4 = integer_grid(4)
STEPS = reference.row_steps(("maximum",), W, 7)


def assert_same_codes(ours: np.ndarray, reference_codes: np.ndarray) -> None:
    """Equal, but for one row where fp32 may have broken a tie the other way."""
    assert (ours != reference_codes).any(1).sum() <= 1


@pytest.mark.parametrize("block", [1, 7, 64, 128])
@pytest.mark.parametrize("order", ["descending", "ascending", "given"])
def test_it_is_the_textbook(order, block) -> None:
    codes = quantise(W, INT4, Gptq(order=order, block=block, damp=0.01), H=H)
    assert_same_codes(codes.codes, reference.brain_surgeon(W, STEPS, -7, 7, reference.damped(H, 0.01), reference.order_of(H, order)))


@pytest.mark.parametrize("block", [1, 7, 64, 128])
@pytest.mark.parametrize("order", ["descending", "ascending", "given"])
def test_the_form_without_downdating_is_that_of_pr578(order, block) -> None:
    codes = quantise(W, INT4, Gptq(order=order, block=block, damp=0.05, downdate=False), H=H)
    want = reference.whole_inverse(W, STEPS, -7, 7, reference.damped(H, 0.05), reference.order_of(H, order))
    assert_same_codes(codes.codes, want)
    assert (want != reference.brain_surgeon(W, STEPS, -7, 7, reference.damped(H, 0.05), reference.order_of(H, order))).mean() > 0.05


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("damp", [0.002, 0.1])
def test_damping_is_a_share_of_the_mean_diagonal(damp, times) -> None:
    codes = quantise(W, INT4, Gptq(damp=damp, damp_times=times), H=H)
    want = reference.brain_surgeon(W, STEPS, -7, 7, reference.damped(H, damp, times), reference.order_of(H, "descending"))
    assert_same_codes(codes.codes, want)


def test_one_step_for_the_matrix() -> None:
    codes = quantise(W, StepGrid(fineness=2.0), Gptq(), H=H)
    step = np.sqrt(np.mean(W.astype(np.float64) ** 2)) / 2
    want = reference.brain_surgeon(W, np.full(len(W), step), -9999, 9999, reference.damped(H, 0.01), reference.order_of(H, "descending"))
    assert_same_codes(codes.codes, want)


def test_order_and_damping_matter() -> None:
    """Or the tests above could not tell them apart."""
    ways = [
        Gptq(),
        Gptq(order="ascending"),
        Gptq(order="given"),
        Gptq(damp=0.1),
        Gptq(downdate=False),
    ]
    results = [quantise(W, INT4, way, H=H).codes for way in ways]
    assert all((a != b).any(1).sum() > 5 for i, a in enumerate(results) for b in results[:i])


def test_outputs_are_far_better_than_by_nearest_rounding() -> None:
    nearest = reference.output_error(W, quantise(W, INT4).weights(), X)
    standard = reference.output_error(W, quantise(W, INT4, Gptq(), H=H).weights(), X)
    contest = reference.output_error(W, quantise(W, INT4, Gptq(order="ascending", downdate=False), H=H).weights(), X)
    assert standard < 0.3 * nearest
    assert standard < contest


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    assert (quantise(W, INT4, Gptq(), H=np.eye(COLS)).codes == quantise(W, INT4).codes).all()


def test_batched_layers_equal_single_ones() -> None:
    """Equal shapes make one batch, whatever each layer's inputs and dead columns are."""
    weights, metrics = {}, {}
    for i in range(5):
        weights[f"layer{i}"] = normal_weights(32, COLS, seed=i)
        inputs = uneven_inputs(500, COLS, seed=10 + i)
        inputs[:, i] = 0
        metrics[f"layer{i}"] = Metric(torch.from_numpy(second_moment(inputs)), torch.ones(32))
    weights["other"], metrics["other"] = normal_weights(16, COLS, seed=9), metrics["layer0"]
    config = config_of(MatrixQuant(grid=INT4, rounding=Gptq()), prune=PruneConfig(share=0.1, min_size=16 * COLS))
    together = quantise_all(weights, config, metrics)
    assert list(together.codes) == list(weights)
    for name, w in weights.items():
        alone = quantise_all({name: w}, config, {name: metrics[name]}).codes[name]
        assert_same_codes(together.codes[name].codes, alone.codes)
        assert np.array_equal(together.codes[name].steps.values, alone.steps.values)
    assert (together.codes["layer3"].codes[:, 3] == 0).all()
    assert (together.codes["layer3"].codes[:, 4] != 0).any()


def test_a_shared_input_serves_different_settings() -> None:
    """Matrices that see the same, but are to be rounded in another order, must not get the other's factor."""
    ways = {Role.MLP: Gptq(), Role.ATTENTION: Gptq(order="ascending"), Role.HEAD: Gptq(damp=0.1), Role.TABLE: Gptq(downdate=False)}
    config = QuantConfig(
        **{role.value: MatrixQuant(grid=INT4, rounding=way) for role, way in ways.items()}, projection=MatrixQuant(grid=INT4)
    )
    metric = Metric(torch.from_numpy(H), torch.ones(32))
    infos = [info(role.value, W.shape, role) for role in ways]
    together = quantise_model(dict.fromkeys((i.name for i in infos), torch.from_numpy(W)), infos, config, {i.name: metric for i in infos})
    for role, way in ways.items():
        assert_same_codes(together.codes[role.value].codes, quantise(W, INT4, way, H=H).codes)


def test_pruned_weights_stay_zero_and_their_errors_are_made_good() -> None:
    keep = np.ones(W.size, dtype=bool)
    keep[np.argsort(np.abs(W).ravel(), kind="stable")[: int(0.3 * W.size)]] = False
    keep = keep.reshape(W.shape)
    codes = quantise(W, INT4, Gptq(), H=H, prune=PruneConfig(share=0.3, min_size=0))
    pruned = W * keep
    want = reference.brain_surgeon(pruned, STEPS, -7, 7, reference.damped(H, 0.01), reference.order_of(H, "descending"), keep)
    assert (codes.codes[~keep] == 0).all()
    assert_same_codes(codes.codes, want)
    free = reference.brain_surgeon(pruned, STEPS, -7, 7, reference.damped(H, 0.01), reference.order_of(H, "descending"))
    assert (free[~keep] != 0).any()  # without the mask the feedback would bring some of them back


@pytest.mark.parametrize("rounding", [Gptq(), Gptq(order="ascending", downdate=False), Gptq(order="given", block=7)])
def test_columns_that_never_saw_anything_get_code_zero(rounding) -> None:
    inputs = X.copy()
    inputs[:, [3, 20, 39]] = 0
    moment = second_moment(inputs)
    codes = quantise(W, INT4, rounding, H=moment)
    assert (codes.codes[:, [3, 20, 39]] == 0).all()
    live = [j for j in range(COLS) if j not in (3, 20, 39)]
    damped = reference.damped(moment[np.ix_(live, live)], rounding.damp)
    order = reference.order_of(moment[np.ix_(live, live)], rounding.order)
    rule = reference.brain_surgeon if rounding.downdate else reference.whole_inverse
    assert_same_codes(codes.codes[:, live], rule(W[:, live], STEPS, -7, 7, damped, order))


def test_nothing_at_all_seen() -> None:
    codes = quantise(W, INT4, Gptq(), H=np.zeros((COLS, COLS)))
    assert (codes.codes == 0).all()


def test_a_singular_second_moment_is_damped_more_and_said_so(capsys) -> None:
    few = X[:5]  # 5 inputs cannot span 40 columns
    moment = (few.T @ few / 5).astype(np.float32)
    codes = quantise(W, INT4, Gptq(damp=0.0), H=moment)
    err = capsys.readouterr().err
    assert "w: the inputs' second moment is singular; damped by" in err
    assert "instead of 0" in err
    assert len(err.strip().splitlines()) == 1
    assert np.abs(codes.codes).max() <= 7
    share = float(err.split("damped by ")[1].split(" of")[0])
    factor = factorise(torch.from_numpy(moment), damp=0.0)
    assert share == pytest.approx(factor.damp)
    assert 1e-7 < share < 0.1
    capsys.readouterr()
    quantise(W, INT4, Gptq(damp=0.01), H=H)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_second_moment_that_is_no_number(bad) -> None:
    moment = H.copy()
    moment[3, 4] = moment[4, 3] = bad
    with pytest.raises(UserError, match=r"second moment of the inputs of w holds NaN or infinite") as caught:
        quantise(W, INT4, Gptq(), H=moment)
    assert "\n" not in str(caught.value)


def test_gptq_without_a_calibration_is_refused() -> None:
    with pytest.raises(UserError, match="w cannot be rounded like this without a calibration"):
        quantise(W, INT4, Gptq())


@pytest.mark.parametrize("order", ["descending", "ascending", "given"])
def test_the_factor_says_what_an_error_still_costs(order) -> None:
    """It is a column's second moment given the columns that are still to come, by an independent factorisation."""
    factor = factorise(torch.from_numpy(H), damp=0.01, order=order)
    want_order = reference.order_of(H, order)
    assert factor.order.tolist() == want_order
    left = reference.conditional_diagonal(reference.damped(H, 0.01), want_order)
    assert factor.costs.numpy() == pytest.approx(left[want_order], rel=1e-5)
    assert (factor.carry.triu(1) == 0).all()


def test_ends_hold_under_feedback() -> None:
    codes = quantise(W, RowGrid(lowest=-4, highest=3), Gptq(), H=H)
    steps = reference.row_steps(("maximum",), W, 3)
    want = reference.brain_surgeon(W, steps, -4, 3, reference.damped(H, 0.01), reference.order_of(H, "descending"))
    assert_same_codes(codes.codes, want)
    assert codes.codes.min() == -4
    assert codes.codes.max() == 3
