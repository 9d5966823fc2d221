"""Groups of runs and their statistics, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from bytefit.cli import main
from bytefit.config import to_json
from bytefit.errors import UserError
from bytefit.recipes import find_recipe
from bytefit.report.compare import Group, as_text, compare, read_groups

A = Group("a", (1.70, 1.72, 1.71), (1, 2, 3))
B = Group("b", (1.74, 1.77, 1.75), (1, 2, 3))
BYTES_A_TOKEN = 2.5


def make_run(
    path: Path,
    seed: int,
    value: float,
    *,
    dim: int = 192,
    text_bytes: int = 1000,
    name: str = "pocket",
    dtype: str = "float32",
    budget: int = 10**6,
) -> Path:
    path.mkdir()
    recipe = {"name": name, "size": "lab", "seed": seed, "model": {"dim": dim}, "score": {"headline": "sliding"}}
    recipe["pack"] = {"budget_bytes": budget}
    score = {"bits_per_byte": value, "bytes": text_bytes, "targets": 400, "dtype": dtype}
    scores = {"sliding": score, "full": score | {"bits_per_byte": value + 0.1}, "dataset_sha256": "d"}
    (path / "recipe.json").write_text(json.dumps(recipe))
    (path / "score.json").write_text(json.dumps(scores))
    return path


def test_paired_and_welch_by_hand() -> None:
    found = compare(A, B, BYTES_A_TOKEN)
    # Differences 0.04, 0.05, 0.04: mean 0.043333, standard error 0.005774 / sqrt(3).
    mean, error = 0.13 / 3, math.sqrt(((0.04 - 0.13 / 3) ** 2 * 2 + (0.05 - 0.13 / 3) ** 2) / 2 / 3)
    assert found.pairs == 3
    assert found.paired_difference == pytest.approx(mean)
    assert found.paired_p == pytest.approx(2 * stats.t.sf(mean / error, 2))
    # Variances 1e-4 and 2.3333e-4, three values each.
    a, b = 1e-4 / 3, 7e-4 / 9
    df = (a + b) ** 2 / (a**2 / 2 + b**2 / 2)
    assert found.welch_p == pytest.approx(2 * stats.t.sf(mean / math.sqrt(a + b), df))
    assert found.interval == pytest.approx(tuple(mean + side * stats.t.ppf(0.975, df) * math.sqrt(a + b) for side in (-1, 1)))


def test_the_contests_rule_in_this_tokenizers_bits() -> None:
    """0.005 nats a token of 2.5 bytes are 0.002885 bits a byte, which the difference has to exceed at p < 0.01."""
    margin = 0.005 / math.log(2) / BYTES_A_TOKEN
    found = compare(A, B, BYTES_A_TOKEN)
    assert found.record_margin == pytest.approx(margin) == pytest.approx(0.0028854, rel=1e-4)
    a, b = 1e-4 / 3, 7e-4 / 9
    df = (a + b) ** 2 / (a**2 / 2 + b**2 / 2)
    assert found.record_p == pytest.approx(stats.t.sf((0.13 / 3 - margin) / math.sqrt(a + b), df))
    assert found.is_record is (found.record_p < 0.01)
    assert compare(Group("a", (1.70, 1.701)), Group("b", (1.80, 1.801)), BYTES_A_TOKEN).is_record
    assert not compare(Group("b", (1.80, 1.801)), Group("a", (1.70, 1.701)), BYTES_A_TOKEN).is_record
    assert not compare(Group("a", (1.7000, 1.7001)), Group("b", (1.7015, 1.7016)), BYTES_A_TOKEN).is_record  # surely better, by too little


def test_equivalence_needs_both_sides() -> None:
    close = compare(Group("a", (1.700, 1.701, 1.702)), Group("b", (1.701, 1.702, 1.703)), BYTES_A_TOKEN, equivalence_margin=0.01)
    assert close.equivalent
    assert not compare(A, B, BYTES_A_TOKEN, equivalence_margin=0.01).equivalent
    assert not compare(B, A, BYTES_A_TOKEN, equivalence_margin=0.01).equivalent
    assert not compare(Group("a", (1.6, 1.8)), Group("b", (1.6, 1.8)), BYTES_A_TOKEN, equivalence_margin=0.01).equivalent  # too uncertain


def test_against_single_figures() -> None:
    several, single = Group("a", (1.70, 1.72, 1.71)), Group("published", (1.75,))
    want = float(stats.ttest_1samp([1.70, 1.72, 1.71], 1.75).pvalue)
    there, back = compare(several, single, BYTES_A_TOKEN), compare(single, several, BYTES_A_TOKEN)
    assert there.welch_p == pytest.approx(want) == pytest.approx(back.welch_p)
    assert there.difference == pytest.approx(0.04) == pytest.approx(-back.difference)
    half = float(stats.t.ppf(0.975, 2)) * 0.01 / math.sqrt(3)
    assert there.interval == pytest.approx((0.04 - half, 0.04 + half))
    assert back.interval == pytest.approx((-0.04 - half, -0.04 + half))
    assert there.record_p is not None
    assert back.record_p is not None
    assert there.record_p < 0.05 < back.record_p
    alone = compare(Group("a", (1.7,)), single, BYTES_A_TOKEN)
    assert alone.welch_p is None
    assert alone.interval is None
    assert not alone.is_record
    assert not alone.equivalent
    assert "no test can be made" in as_text([single], [alone])


def test_a_single_run_spreads_as_the_others_do() -> None:
    """Only what was published stands for itself: a mean of three and one run more are s·sqrt(1 + 1/3) apart by chance."""
    several, run = Group("a", (1.70, 1.72, 1.71), (1, 2, 3)), Group("b", (1.75,), (9,))
    error = 0.01 * math.sqrt(4 / 3)
    there, back = compare(several, run, BYTES_A_TOKEN), compare(run, several, BYTES_A_TOKEN)
    assert there.welch_p == pytest.approx(2 * stats.t.sf(0.04 / error, 2)) == pytest.approx(back.welch_p)
    half = float(stats.t.ppf(0.975, 2)) * error
    assert there.interval == pytest.approx((0.04 - half, 0.04 + half))
    assert back.interval == pytest.approx((-0.04 - half, -0.04 + half))
    margin = 0.005 / math.log(2) / BYTES_A_TOKEN
    assert there.record_p == pytest.approx(stats.t.sf((0.04 - margin) / error, 2))
    assert back.record_p == pytest.approx(stats.t.sf((-0.04 - margin) / error, 2))
    lower, upper = (-0.04 - margin) / error, (0.04 - margin) / error
    assert there.equivalence_p == pytest.approx(max(stats.t.cdf(lower, 2), stats.t.sf(-upper, 2)))


def test_values_without_spread() -> None:
    same = compare(Group("a", (1.7, 1.7)), Group("b", (1.7, 1.7)), BYTES_A_TOKEN)
    assert same.welch_p == 1.0
    assert not same.is_record
    assert same.equivalent
    apart = compare(Group("a", (1.7, 1.7)), Group("b", (1.8, 1.8)), BYTES_A_TOKEN)
    assert apart.welch_p == 0.0
    assert apart.is_record
    assert not apart.equivalent


def test_runs_are_grouped_by_what_but_the_seed_differs(tmp_path) -> None:
    runs = [make_run(tmp_path / f"a{seed}", seed, 1.7 + seed / 100) for seed in (1, 2)]
    runs += [make_run(tmp_path / f"b{seed}", seed, 1.8 + seed / 100, dim=128) for seed in (2, 3)]
    groups, bytes_a_token = read_groups(runs, "headline")
    assert bytes_a_token == 2.5
    assert [group.seeds for group in groups] == [(1, 2), (2, 3)]
    assert groups[0].label == "pocket, lab"
    assert groups[1].label == "pocket, lab (model.dim is 128, not 192)"
    assert "of different budgets" not in as_text(groups, [])
    assert compare(*groups, bytes_a_token).pairs == 1
    full, _ = read_groups(runs, "full")
    assert full[0].values == pytest.approx((1.81, 1.82))


def test_other_budgets_are_said(tmp_path) -> None:
    groups, _ = read_groups([make_run(tmp_path / "a", 1, 1.7), make_run(tmp_path / "b", 1, 1.8, name="pr578", budget=500_000)], "headline")
    assert "of different budgets (pocket, lab: 1,000,000 bytes; pr578, lab: 500,000 bytes)" in as_text(groups, [])


def test_groups_of_one_label_are_told_apart(tmp_path, capsys) -> None:
    """What is compared with the first group may differ from it in the same way, and from each other in another."""
    runs = [make_run(tmp_path / "a", 1, 1.6), *(make_run(tmp_path / f"b{i}", i, 1.7 + i / 100, name="pr578", dim=100 + i) for i in (1, 2))]
    groups, _ = read_groups(runs, "headline")
    assert [group.label for group in groups] == ["pocket, lab", "pr578, lab", "pr578, lab #2"]
    assert main(["compare", *map(str, runs), "--plot", str(tmp_path / "plot.svg")]) == 0
    assert (tmp_path / "plot.svg").read_text().count("pr578, lab") == 2


def test_seeds_of_two_versions_are_one_group(tmp_path) -> None:
    """A recipe that was written before a setting existed has it off."""
    runs = [make_run(tmp_path / str(seed), seed, 1.7) for seed in (1, 2)]
    for seed, run in enumerate(runs, start=1):
        recipe = json.loads(json.dumps(to_json(replace(find_recipe("pocket"), seed=seed))))
        if seed == 1:
            del recipe["pack"]["code_bytes"]
        (run / "recipe.json").write_text(json.dumps(recipe))
    groups, _ = read_groups(runs, "sliding")
    assert [group.seeds for group in groups] == [(1, 2)]


@pytest.mark.parametrize(("text", "alike"), [("t", True), ("u", False), (None, False)])
def test_text_may_be_the_same_under_another_tokenizer(tmp_path, text, alike) -> None:
    """A dataset's hash is of its tokenizer and its training text too."""
    runs = [make_run(tmp_path / str(seed), seed, 1.7) for seed in (1, 2)]
    for run, changes in zip(runs, ({"text_sha256": "t"}, {"text_sha256": text, "dataset_sha256": "e"}), strict=True):
        scores = json.loads((run / "score.json").read_text())
        (run / "score.json").write_text(json.dumps(scores | changes))
    if alike:
        assert len(read_groups(runs, "headline")[0]) == 1
    else:
        with pytest.raises(UserError, match="scored on other text"):
            read_groups(runs, "headline")


def test_other_arithmetic_is_said(tmp_path) -> None:
    """``auto`` takes bf16 on one processor and fp32 on another; a difference between runs of both is not the recipes' alone."""
    one = make_run(tmp_path / "one", 1, 1.7, dim=128)
    for seed, dtype in ((1, "float32"), (2, "bfloat16")):
        groups, bytes_a_token = read_groups([one, make_run(tmp_path / dtype, seed, 1.8, dtype=dtype)], "headline")
        said = "computed in different dtypes" in as_text(groups, [compare(*groups, bytes_a_token)])
        assert said == (dtype == "bfloat16")
    assert [group.dtypes for group in groups] == [("float32",), ("bfloat16",)]


def test_mistakes_are_named(tmp_path, capsys) -> None:
    one, again = make_run(tmp_path / "one", 1, 1.7), make_run(tmp_path / "again", 1, 1.7)
    other_text = make_run(tmp_path / "other", 2, 1.7, text_bytes=999)
    for words, message in {
        (str(one), str(again)): "has the seed 1 of another run",
        (str(one), str(other_text)): "was scored on other text than",
        (str(one), "--protocol", "adapt"): "has no score by the protocol adapt",
        (str(one), "--published", "1.1;1.2"): "write numbers with commas",
        (str(one), "--published", "0"): "bits per byte lie above 0",
        (str(one), "--equivalence", "0"): "must be above 0",
        (str(tmp_path / "none"),): "cannot read",
    }.items():
        assert main(["compare", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_the_verb_prints_a_table_json_and_a_plot(tmp_path, capsys) -> None:
    runs = [str(make_run(tmp_path / f"a{seed}", seed, 1.7 + seed / 100)) for seed in (1, 2, 3)]
    assert main(["compare", *runs, "--published", "1.9,1.91", "--plot", str(tmp_path / "p.svg")]) == 0
    assert "pocket, lab is better than published by 0.18500 bits per byte" in capsys.readouterr().out
    assert main(["compare", *runs, "--published", "1.9,1.91", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [group["mean"] for group in record["groups"]] == pytest.approx([1.72, 1.905])
    assert record["groups"][0]["std"] == pytest.approx(0.01)
    assert record["comparisons"][0]["is_record"] is True
    drawn = (tmp_path / "p.svg").read_text()
    assert drawn.count("<circle") == 5
    assert "published" in drawn
