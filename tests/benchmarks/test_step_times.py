"""Step times: runs take turns, and what a step costs more is paid for in bits per byte at equal time."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from bytefit.config import apply_settings
from bytefit.recipes import find_recipe
from bytefit.run.steps import fit_recipe_to

FIVE_STEPS = (("train.steps", "5"), ("train.seconds", "null"), ("train.compile", "false"))


def test_turns_go_round_and_pass_over_who_has_left() -> None:
    from step_times import Turns

    turns, order = Turns(3), []

    def take(index: int) -> None:
        turns.wait(index)
        for _ in range(index + 1):
            order.append(index)
            turns.pass_on(index)
        turns.leave()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(take, range(3)))
    assert order == [0, 1, 2, 1, 2, 2]


def test_runs_that_take_turns_train_as_they_would_alone(dataset, monkeypatch) -> None:
    """Step by step, and to the same losses; the first time, before the first step, is not among theirs."""
    import step_times

    from bytefit.train.step import Stepper

    order: list[tuple[float, float]] = []
    step = Stepper.step

    def noted(self, optimizers, *, batch, **others):
        loss = step(self, optimizers, batch=batch, **others)
        order.append((others["lr_scale"], loss))
        return loss

    recipe = fit_recipe_to(find_recipe("pocket", "tiny"), dataset, tell=False)
    recipe = apply_settings(recipe, (*FIVE_STEPS, ("train.warmup_steps", "0")))
    other = apply_settings(recipe, [("train.batch_tokens", str(2 * recipe.train.batch_tokens))])
    monkeypatch.setattr(Stepper, "step", noted)
    alone = []
    for one in (recipe, other):
        (times,) = step_times.in_turns([one], dataset)
        assert len(times) == 5
        alone.append(order.copy())
        order.clear()
    both = step_times.in_turns([recipe, other], dataset)
    assert [len(times) for times in both] == [5, 5]
    assert order[::2] == alone[0]
    assert order[1::2] == alone[1]
    assert alone[0] != alone[1]


def test_a_run_that_fails_does_not_keep_the_others_waiting(dataset) -> None:
    import step_times

    recipe = apply_settings(fit_recipe_to(find_recipe("pocket", "tiny"), dataset, tell=False), FIVE_STEPS)
    lacks_ids = replace(recipe, model=replace(recipe.model, vocab_size=300))
    with pytest.raises(IndexError):
        step_times.in_turns([lacks_ids, recipe, recipe], dataset)


def test_of_a_steps_times_the_shortest_counts(dataset, monkeypatch) -> None:
    """By hand: 1 + 1 s of the base's two steps, 3 + 3 s of the variant's; runs are as short as they are told to be."""
    import step_times
    from ablation import Job

    trained, repeats = [], iter([[[1.0, 2.0], [3.0, 4.0]], [[2.0, 1.0], [3.0, 3.0]]])
    monkeypatch.setattr(step_times, "one_heap", lambda: None)
    monkeypatch.setattr(step_times, "in_turns", lambda recipes, dataset: trained.extend(recipes) or next(repeats))
    base = Job("pr1171", None, "base", (), True, 1, 0, "steps")
    own = replace(base, technique="bf16 momentum", way="out", settings=('train.optimizer.matrices.state_dtype="float32"',))
    (row,) = step_times.measure(base, [own], ("train.dtype=float32",), dataset.folder, steps=2, lab_steps=20, repeats=2)
    assert (row["base_milliseconds"], row["milliseconds"], row["ratio"]) == (1000.0, 3000.0, 3.0)
    assert row["ratios"] == [round(7 / 3, 4), 2.0]
    assert (row["technique"], row["way"], row["settings"]) == ("bf16 momentum", "out", list(own.settings))
    for recipe, state in zip(trained, ("bfloat16", "float32", "bfloat16", "float32"), strict=True):
        assert (recipe.train.steps, recipe.train.seconds, recipe.train.dtype) == (2, None, "float32")
        assert recipe.train.loader.anneal_steps == 36  # a tenth of the lab's
        assert recipe.train.optimizer.matrices.state_dtype == state


def test_every_variant_is_timed_beside_its_own_base() -> None:
    from ablation import pairs
    from step_times import SIDE_BY_SIDE, groups

    found = [(base, own) for base, variants in groups(1, None) for own in variants]
    assert sorted(found, key=str) == sorted(pairs(1, 0), key=str)
    assert max(len(variants) for _, variants in groups(1, None)) == SIDE_BY_SIDE
    assert {base.recipe for base, _ in groups(1, ["pr606"])} == {"pr606"}


def test_at_equal_time_a_slower_step_costs_what_the_system_would_have_gained(tmp_path) -> None:
    """By hand. A doubling is worth 0.4 and 0.2; without the gate the system's step takes 1/1.25 of the time, the baseline's half."""
    from render_ablation import Lengths, StepTimes, ablation_section

    common = {"steps": 200, "bytes": 1000, "commit": "c" * 40, "seed": 1, "dtype": "bfloat16", "command": "python it"}
    common |= {"machine": {"cpu": "a CPU", "cpu_capability": "AVX512"}}
    rows = [
        common | {"recipe": recipe, "technique": technique, "way": way, "match": match, "float": value, "packed": value + 1}
        for recipe, technique, way, match, value in (
            ("pr578", None, "base", "half", 2.4),
            ("pr578", None, "base", "steps", 2.0),
            ("pr578", None, "base", "double", 1.8),
            ("pr578", "smear gate", "out", "steps", 2.1),
            ("baseline", None, "base", "steps", 3.0),
            ("baseline", None, "base", "half", 3.3),
            ("baseline", None, "base", "double", 2.9),
            ("baseline", "smear gate", "in", "steps", 2.8),
            ("baseline", "bigram hash", "in", "steps", 2.9),
        )
    ]
    clocked = [
        common | {"recipe": recipe, "technique": "smear gate", "way": way, "ratio": ratio, "ratios": ratios}
        for recipe, way, ratio, ratios in (("pr578", "out", 0.8, [0.8, 0.8]), ("baseline", "in", 2.0, [2.0, 2.0]))
    ]
    lengths = Lengths(rows)
    assert lengths.a_doubling("pr578", "float", longer=False) == pytest.approx(0.4)
    assert lengths.a_doubling("pr578", "packed", longer=True) == pytest.approx(0.2)
    assert lengths.a_doubling("pr606", "float", longer=True) is None
    lines = ablation_section(rows, [clocked[0] | {"ratio": 9.0}, *clocked], tmp_path)  # the first was timed before a setting changed
    out, into = (line for line in lines if line.startswith("| smear gate |"))
    without_the_gate_in_its_time = 2.0 + 0.4 * math.log2(1 / 0.8)  # the system, with 0.8 of the steps
    assert out == f"| smear gate | out | pr578 | float | 1 | -0.1000 | 1.25× | {without_the_gate_in_its_time - 2.1:+.4f} |"
    assert into == "| smear gate | in | baseline | float | 1 | -0.2000 | 2.00× | -0.1000 |"
    assert "| bigram hash | in | baseline | float | 1 | -0.1000 |  |  |" in lines
    assert (tmp_path / "ablation.svg").read_text().count("<circle") == 2
    spread = StepTimes([clocked[0] | {"ratios": [0.8, 0.9]}, clocked[1] | {"ratios": [2.0, 2.0]}]).spread
    assert spread.freedom == 2
    assert spread.deviation == pytest.approx(math.log(0.9 / 0.8) / 2)


def test_an_interval_at_equal_time_is_as_wide_as_both_errors() -> None:
    from render_ablation import Spread

    spread = Spread.of([[0.1, 0.12, 0.08], [-0.3, -0.31]])
    mean, low, high = spread.interval([0.05], price=0.1, price_half_width=0.04)
    half = (spread.half_width(1) ** 2 + 0.04**2) ** 0.5
    assert (mean, low, high) == pytest.approx((0.15, 0.15 - half, 0.15 + half))
    assert half > spread.half_width(1)
