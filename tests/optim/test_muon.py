from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from bytefit.optim.muon import Muon
from bytefit.optim.newton_schulz import POLAR_EXPRESS, coefficients_of, normalise_rows, orthogonalise
from tests.optim import parallel_worker
from tests.processes import run_ranks

QUINTIC = coefficients_of("quintic", 5)


def by_hand(w, g, m, *, lr, momentum, decay):
    """One step of one matrix in float64, from the formula."""
    m = momentum * m + g
    u = g + momentum * m
    x = u / (np.sqrt((u * u).sum()) + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    x = x.T if tall else x
    return (1 - lr * decay) * w - lr * np.sqrt(max(1, w.shape[0] / w.shape[1])) * x, m


def test_three_steps_equal_the_formula_in_float64() -> None:
    torch.manual_seed(0)
    shapes = [(16, 8), (8, 16), (16, 8), (12, 12)]
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    weights = [p.detach().double().numpy() for p in parameters]
    momenta = [np.zeros_like(w) for w in weights]
    muon = Muon(parameters, lr=0.1, momentum=0.9, weight_decay=0.02)
    for _ in range(3):
        for i, p in enumerate(parameters):
            p.grad = torch.randn_like(p)
            weights[i], momenta[i] = by_hand(weights[i], p.grad.double().numpy(), momenta[i], lr=0.1, momentum=0.9, decay=0.02)
        muon.step()
    for p, expected in zip(parameters, weights, strict=True):
        assert np.abs(p.detach().numpy() - expected).max() < 2e-5


def test_one_step_equals_torchs_muon() -> None:
    """torch averages its momentum (m <- 0.9 m + 0.1 g), a constant factor that the normalisation removes; it computes in bf16."""
    torch.manual_seed(0)
    start = [torch.randn(48, 32), torch.randn(48, 32), torch.randn(32, 64)]
    ours, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    muon = Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.01, dtype=torch.bfloat16)
    outside = torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True, adjust_lr_fn="original")
    for _ in range(2):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        muon.step()
        outside.step()
    for a, b, w in zip(ours, theirs, start, strict=True):
        moved = (b - w).norm()
        assert (a - b).norm() < 0.02 * moved  # bf16 rounding
        assert moved > 0.1


@pytest.mark.parametrize("shape", [(12, 12), (8, 24), (24, 8)])
@pytest.mark.parametrize("name", ["quintic", "polar_express"])
def test_iteration_flattens_singular_values(shape, name) -> None:
    torch.manual_seed(0)
    stack = torch.randn(3, *shape)
    coefficients = coefficients_of(name, 5)
    (out,) = orthogonalise([stack], coefficients, torch.float32)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.3
    assert values.max() < 1.3
    assert torch.allclose(out[1], orthogonalise([stack[1:2]], coefficients, torch.float32)[0][0], atol=1e-5)  # batched equals alone


def test_a_stack_and_its_transpose_go_together() -> None:
    """Results come back in the shape of their stacks, and are those of each alone."""
    torch.manual_seed(0)
    stacks = [torch.randn(2, 8, 24), torch.randn(3, 24, 8), torch.randn(1, 8, 24)]
    for stack, together in zip(stacks, orthogonalise(stacks, QUINTIC, torch.float32), strict=True):
        assert together.shape == stack.shape
        assert torch.allclose(together, orthogonalise([stack], QUINTIC, torch.float32)[0], atol=1e-5)


def composed(coefficients, x: np.ndarray) -> np.ndarray:
    for a, b, c in coefficients:
        x = a * x + b * x**3 + c * x**5
    return x


def test_polar_express_is_nearer_to_the_sign_than_one_quintic() -> None:
    """Over singular values from 0.001 to 1, five iterations each: 0.15 from 1 at worst, where one quintic is 0.53."""
    x = np.geomspace(1e-3, 1, 4001)
    worst = {name: np.abs(composed(coefficients_of(name, 5), x) - 1).max() for name in ("quintic", "polar_express")}
    assert worst["polar_express"] < 0.16
    assert worst["quintic"] > 0.5
    mean = {name: np.abs(composed(coefficients_of(name, 5), x) - 1).mean() for name in ("quintic", "polar_express")}
    assert mean["polar_express"] < 0.6 * mean["quintic"]
    # The mark of a best polynomial: the first one is as high at its inner maximum as at the end of its range.
    first = composed(POLAR_EXPRESS[:1], np.linspace(0, 1, 100_001))
    assert first[30_000:50_000].max() == pytest.approx(first[-1], abs=1e-6)


def test_more_iterations_of_polar_express_come_nearer_to_one() -> None:
    """The last polynomial, which repeats, leaves a singular value of one where it is."""
    x = np.linspace(1e-3, 1, 10_001)
    worst = [np.abs(composed(coefficients_of("polar_express", count), x) - 1).max() for count in (5, 6, 7, 9)]
    assert worst == sorted(worst, reverse=True)
    assert worst[1] < 0.01
    assert worst[2] < 1e-4
    assert worst[3] < 1e-9
    assert coefficients_of("polar_express", 10)[9] == coefficients_of("polar_express", 8)[7] == POLAR_EXPRESS[-1]
    assert sum(POLAR_EXPRESS[-1]) == 1.0


def test_row_normalising_gives_every_row_the_same_say() -> None:
    torch.manual_seed(0)
    stack = torch.randn(2, 6, 10) * torch.tensor([1e-3, 1, 1, 1, 1, 100.0])[:, None]
    assert torch.allclose(normalise_rows(stack).norm(dim=-1), torch.ones(2, 6), atol=1e-3)
    p, q = (nn.Parameter(torch.zeros(6, 10)) for _ in range(2))
    plain, equal = Muon([p], lr=1, momentum=0), Muon([q], lr=1, momentum=0, row_normalise=True)
    p.grad, q.grad = stack[0].clone(), stack[0].clone()
    plain.step()
    equal.step()
    assert torch.allclose(q, -orthogonalise([normalise_rows(stack[:1])], QUINTIC, torch.float32)[0][0], atol=1e-6)
    assert p.norm(dim=1)[0] < 0.1 < q.norm(dim=1)[0]  # the faint row takes part only after normalising


def test_mousse_equals_the_formula_and_brings_rows_and_columns_to_one_size() -> None:
    torch.manual_seed(0)
    sizes = 1e-3 * torch.tensor([1e-2, 1, 1, 1, 1, 10.0])[:, None] * torch.linspace(0.1, 3, 10)  # as small as gradients are
    p, q = (nn.Parameter(torch.zeros(6, 10)) for _ in range(2))
    plain, even = Muon([p], lr=1, momentum=0), Muon([q], lr=1, momentum=0, mousse_beta=0.9)
    rows, columns, expected = np.zeros((6, 1)), np.zeros((1, 10)), np.zeros((6, 10))
    for _ in range(50):
        gradient = torch.randn(6, 10) * sizes
        p.grad, q.grad = gradient.clone(), gradient.clone()
        plain.step()
        even.step()
        u = gradient.double().numpy()
        rows = 0.9 * rows + 0.1 * (u * u).mean(1, keepdims=True)
        columns = 0.9 * columns + 0.1 * (u * u).mean(0, keepdims=True)
        scaled = torch.from_numpy(u / np.sqrt(rows) / np.sqrt(columns))[None]
        expected -= orthogonalise([scaled], QUINTIC, torch.float64)[0][0].numpy()
    assert np.abs(q.detach().numpy() - expected).max() < 1e-3
    assert p.norm(dim=1)[0] < 0.5 * p.norm(dim=1)[1:].mean()  # the faint row lags behind; with Mousse it keeps up
    assert q.norm(dim=1)[0] > 0.7 * q.norm(dim=1)[1:].min()


def test_parameters_are_views_of_their_bank_and_nothing_goes_stale() -> None:
    parameters = [nn.Parameter(torch.randn(4, 6)) for _ in range(3)]
    before = [p.detach().clone() for p in parameters]
    muon = Muon(parameters, lr=0.1)
    (bank,) = muon.banks
    assert all(torch.equal(p, w) for p, w in zip(parameters, before, strict=True))
    for i, p in enumerate(parameters):
        assert p.data_ptr() == bank.weights[i].data_ptr()
        p.grad = torch.randn_like(p)
    muon.step()
    assert all(torch.equal(p, bank.weights[i]) and not torch.equal(p, before[i]) for i, p in enumerate(parameters))
    with torch.no_grad():
        parameters[1].fill_(7.0)
    assert (bank.weights[1] == 7.0).all()


def test_the_largest_bank_goes_first() -> None:
    muon = Muon([nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(9, 9)), nn.Parameter(torch.zeros(2, 2))], lr=1)
    assert [tuple(bank.weights.shape) for bank in muon.banks] == [(1, 9, 9), (2, 2, 2)]


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="takes matrices"):
        Muon([nn.Parameter(torch.zeros(3))], lr=1)
    with pytest.raises(RuntimeError, match="got no gradient"):
        Muon([nn.Parameter(torch.zeros(3, 4))], lr=1).step()
    muon = Muon([nn.Parameter(torch.zeros(3, 4))], lr=1)
    with pytest.raises(ValueError, match="for a bank that has"):
        muon.load_state_tensors({"0.momentum": torch.zeros(2, 3, 4)})


def test_state_in_bf16_is_kept_in_bf16() -> None:
    p = nn.Parameter(torch.zeros(4, 4))
    muon = Muon([p], lr=0.1, state_dtype=torch.bfloat16)
    p.grad = torch.randn(4, 4)
    muon.step()
    assert muon.state_tensors()["0.momentum"].dtype == torch.bfloat16
    assert p.dtype == torch.float32


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    """Weights, momenta and hand-over of twenty steps on 1, 2 and 4 ranks (gloo), in fp32 and with bf16 states."""
    out = tmp_path_factory.mktemp("ranks")
    for world in (1, 2, 4):
        run_ranks(world, parallel_worker.walk_all, out / f"{world}.safetensors")
    return {world: safetensors.torch.load_file(out / f"{world}.safetensors") for world in (1, 2, 4)}


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(("state", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2), ("mousse", 1e-5)])
def test_any_number_of_ranks_gives_the_same_weights(on_ranks, world, state, tolerance) -> None:
    """Five matrices of one shape and two of another do not divide over 2 or 4 ranks: the banks are padded."""
    one, many = on_ranks[1], on_ranks[world]
    names = [name for name in one if name.startswith(f"{state}/weights")]
    assert len(names) == 7
    for name in names:
        assert (one[name] - one[name.replace("weights", "start")]).abs().max() > 0.5
        assert (one[name] - many[name]).abs().max() < tolerance * one[name].abs().max().clamp_min(1), name  # sums of another order


@pytest.mark.parametrize("world", [2, 4])
def test_states_survive_saving_and_do_not_depend_on_the_ranks(on_ranks, world) -> None:
    """Saved and loaded on several ranks, the steps after it are those of an undisturbed run; what is saved does not depend on the ranks."""
    for name, value in on_ranks[world].items():
        if name.startswith(("float32/resumed", "mousse/resumed")):
            assert torch.equal(value, on_ranks[world][name.replace("resumed", "weights")])
        if name.startswith(("float32/state", "mousse/state")):
            assert torch.allclose(value, on_ranks[1][name], atol=1e-5)
    assert sum(name.startswith("mousse/state") for name in on_ranks[world]) == 2 * 3  # of two banks momentum, rows and columns


@pytest.mark.parametrize("world", [2, 4])
def test_clipping_after_averaging_is_that_of_one_rank(on_ranks, world) -> None:
    """Before averaging it is not, by design: each rank clips what it has."""
    after = [n for n in on_ranks[1] if n.startswith("clip after/")]
    before = [n for n in on_ranks[1] if n.startswith("clip before/")]
    assert after
    assert all(torch.allclose(on_ranks[1][n], on_ranks[world][n], atol=1e-5) for n in after)
    assert not all(torch.allclose(on_ranks[1][n], on_ranks[world][n], atol=1e-3) for n in before)


def test_every_digit_of_polar_express_is_right() -> None:
    """Each polynomial is the best for the range that the one before leaves, so the furthest it goes above 1 is the furthest below."""
    x = torch.linspace(1e-3, 1, 1_000_001, dtype=torch.float64)
    for a, b, c in POLAR_EXPRESS:
        x = a * x + b * x**3 + c * x**5
        assert float(x.max() - 1) == pytest.approx(float(1 - x.min()), rel=1e-6, abs=1e-12)
    assert float((x - 1).abs().max()) < 1e-12
