"""Every part acts: switched on it changes what the model computes, eager and compiled, and the two agree."""

from __future__ import annotations

import functools

import pytest
import torch

from bytefit.model.language_model import Cache, LanguageModel, ModelConfig
from bytefit.model.plan import Plan, unet_plan
from bytefit.model.value_residual import ValueResidualConfig
from tests.model.parts import BASE, CONFIGS, PARTS, configured, random_model, straight_plan, tokens

IDS, TARGETS = tokens(2, 16), tokens(2, 16, seed=1)
Outcome = tuple[torch.Tensor, dict[str, torch.Tensor]]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outcome(loss_of, model: LanguageModel) -> Outcome:
    """The loss and every parameter's gradient."""
    model.zero_grad(set_to_none=True)
    loss = loss_of(IDS, TARGETS)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.numel() and p.grad is not None}


def assert_same(actual: Outcome, expected: Outcome) -> None:
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-5)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            actual[1][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
        )


def compiled_loss(model: LanguageModel) -> float:
    """Of the graph that training has made of it, run as it is. What becomes of a graph that holds every part, gradients and C++, the tests
    of all parts say."""
    torch._dynamo.reset()
    return float(torch.compile(model.requires_grad_(False), backend="eager", dynamic=False, fullgraph=True)(IDS, TARGETS))


@functools.cache
def compiled_loss_of(config: ModelConfig) -> float:
    return compiled_loss(random_model(config))


@pytest.mark.parametrize("name", PARTS)
def test_part_changes_the_logits(name) -> None:
    """From starts that are neutral by design no logit moves; once the part's own parameters have moved, the logits do."""
    part = PARTS[name]
    on, off = configured(part.on), configured(part.off)
    shared = {made: p.shape for made, p in off.build().named_parameters()}
    own = frozenset(made for made, p in on.build().named_parameters() if shared.get(made) != p.shape)
    with torch.no_grad():
        without = random_model(off).logits(IDS)
        assert (random_model(on).logits(IDS) - without).abs().max() > 1e-2
        at_start = (random_model(on, leave=own).logits(IDS) - without).abs().max()
    assert at_start < 1e-5 if part.neutral else at_start > 1e-3


@pytest.mark.parametrize("name", PARTS)
def test_part_changes_the_compiled_loss(name) -> None:
    """Making a graph may fold a flag away: the graph's loss with the part is the eager one, and not the one without."""
    part = PARTS[name]
    model = random_model(configured(part.on))
    compiled = compiled_loss(model)
    assert compiled == pytest.approx(float(model(IDS, TARGETS)), rel=1e-5)
    assert abs(compiled - compiled_loss_of(configured(part.off))) > 1e-3


def test_other_forms_compile_with_gradients() -> None:
    model = random_model(CONFIGS["all together, other forms"])
    assert_same(outcome(torch.compile(model, backend="aot_eager", dynamic=False), model), outcome(model, model))


def test_all_parts_through_the_real_compiler() -> None:
    model = random_model(CONFIGS["all together"])
    assert_same(outcome(torch.compile(model, dynamic=False), model), outcome(model, model))


CURRICULA: dict[str, tuple[ModelConfig, Plan]] = {
    "loops switched on": (configured({"plan": straight_plan(0, 1, 0, 1)}), BASE.plan),
    "loops and skips switched on": (configured({"plan": unet_plan((0, 1, 0, 1))}), unet_plan(2)),
    "all together": (CONFIGS["all together"], unet_plan(3)),
}


@pytest.mark.parametrize("name", CURRICULA)
def test_compiled_model_follows_its_plan(name) -> None:
    """Compiled once; each switch of the plan, there and back, changes the compiled loss to the eager one under that plan."""
    config, first = CURRICULA[name]
    model = random_model(config).requires_grad_(False)
    compiled = torch.compile(model, backend="aot_eager", dynamic=False)
    losses = []
    for plan in (first, config.plan, first, config.plan):
        model.run_plan(plan)
        losses.append(float(compiled(IDS, TARGETS)))
        assert losses[-1] == pytest.approx(float(model(IDS, TARGETS)), rel=1e-5)
    assert losses[:2] == losses[2:]
    assert abs(losses[0] - losses[1]) > 1e-2


def test_compiled_gradients_follow_the_plan() -> None:
    """A skip weight that the plan leaves out gets no gradient; the others get the eager one."""
    model = random_model(configured({"plan": unet_plan((0, 1, 0, 1))}))
    compiled = torch.compile(model, backend="aot_eager", dynamic=False)
    for plan, skips in ((unet_plan(2), [True, False]), (model.config.plan, [True, True])):
        model.run_plan(plan)
        actual = outcome(compiled, model)
        assert_same(actual, outcome(model, model))
        assert actual[1]["skip_scales"].any(-1).tolist() == skips


def test_run_plan_runs_the_plan() -> None:
    """A model switched to a plan computes what a model built with that plan computes."""
    model = random_model(configured({"plan": straight_plan(0, 1, 0, 1)}))
    model.run_plan(BASE.plan)
    with torch.no_grad():
        assert torch.equal(model.logits(IDS), random_model(BASE).logits(IDS))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (straight_plan(0), "same blocks"),
        (straight_plan(0, 1, 2), r"has 3 steps, more than model\.plan \(2\)"),
        (unet_plan(2), r"has 1 skips, more than model\.plan \(0\)"),
        ((), "plan is empty"),
    ],
)
def test_run_plan_refuses_what_the_weights_do_not_fit(plan, message) -> None:
    model = random_model(BASE)
    with pytest.raises(ValueError, match=message):
        model.run_plan(plan)
    assert model.plan == BASE.plan


def test_run_plan_keeps_the_block_that_hands_on_its_values() -> None:
    model = random_model(configured({"attention.value_residual": ValueResidualConfig()}))
    with pytest.raises(ValueError, match="must start with block 0, not 1"):
        model.run_plan(straight_plan(1, 0))


def test_running_past_the_context_is_refused() -> None:
    """One position left, five asked for: its rotary row must not silently serve them all."""
    model = random_model(BASE)
    cache = Cache(model.config, 1, 64, torch.float32)
    with torch.no_grad():
        model.hidden(IDS[:1].repeat(1, 9)[:, : BASE.context - 1], torch.float32, cache)
        with pytest.raises(ValueError, match=f"context of {BASE.context}"):
            model.hidden(IDS[:1, :5], torch.float32, cache)
