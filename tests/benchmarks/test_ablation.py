"""The ablation: every row changes its recipe, results survive a stop, differences are paired, step times are those of quiet runs."""

from __future__ import annotations

import statistics

import pytest

from bytefit.config import apply_settings, to_json
from bytefit.recipes import find_recipe
from bytefit.train.machine import describe_machine


def leaves(value, path=""):
    if isinstance(value, dict):
        return {leaf: held for key in value for leaf, held in leaves(value[key], f"{path}.{key}").items()}
    return {path: value}


def test_every_ablation_changes_its_recipe_and_nothing_that_it_does_not_say() -> None:
    from ablation import pairs, pairs_of
    from techniques import TECHNIQUES

    jobs = [(base.recipe, base.settings, own.settings) for base, own in pairs(seed=1, steps=200)]
    jobs += [(technique.home, (), technique.change) for technique in TECHNIQUES if technique.stage == "pack"]
    for recipe, common, settings in jobs:
        base, own = (apply_settings(find_recipe(recipe), pairs_of(words)) for words in (common, settings))
        before, after = leaves(to_json(base)), leaves(to_json(own))
        changed = {path[1:] for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        said = [path for path, _ in pairs_of(settings)]
        assert changed, f"{recipe} {settings}"
        assert all(any(path == word or path.startswith(f"{word}.") for word in said) for path in changed)


def test_names_and_ways_of_ablations_tell_them_apart() -> None:
    from ablation import pairs

    jobs = dict.fromkeys(job for pair in pairs(seed=1, steps=200) for job in pair)
    assert len({job.key for job in jobs}) == len(jobs)


def test_lengths_shrink_with_the_steps() -> None:
    from lengths import settings_for

    short = dict(setting.split("=", 1) for setting in settings_for(find_recipe("pr1171"), 0.1))
    assert short == {
        "train.loader.anneal_steps": "36",
        "train.optimizer.matrices.momentum_warmup_steps": "30",
        "train.average.ema_decay": "0.85",
        "train.average.swa.every": "1",
    }
    assert settings_for(find_recipe("pr1171"), 1.0) == []


def test_a_line_that_was_cut_off_is_made_again(tmp_path) -> None:
    from record import read_lines

    path = tmp_path / "rows.jsonl"
    assert read_lines(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    with open(path, "a") as file:
        file.write('{"a": 3}\n')
    assert read_lines(path) == [{"a": 1}, {"a": 2}, {"a": 3}]
    path.write_text('{"a": 1}')
    assert read_lines(path) == [{"a": 1}]
    assert path.read_text() == '{"a": 1}\n'
    path.write_text('{"a"')
    assert read_lines(path) == []
    assert path.read_text() == ""


def test_rows_of_other_settings_are_refused(tmp_path, dataset) -> None:
    from ablation import Job, Lines, digest_of

    job = Job("pr578", "XSA in the last blocks", "out", ("model.attention.exclusive=null",), False, 1, 200, "steps")
    lines = Lines(tmp_path / "rows.jsonl", 1000, dataset, {"pr578": 1000})
    assert not lines.has(job)
    row = {"recipe": job.recipe, "technique": job.technique, "way": job.way, "seed": 1, "match": "steps", "steps": 200}
    lengths = lines.lengths(job)
    row |= {
        "settings": list(job.settings),
        "lengths": lengths,
        "digest": digest_of(job, lengths),
        "machine": describe_machine(),
    } | lines.same
    lines.add(row)
    assert Lines(tmp_path / "rows.jsonl", 1000, dataset, {"pr578": 1000}).has(job)
    with pytest.raises(SystemExit, match="steps 200, not 300"):
        lines.has(Job(job.recipe, job.technique, job.way, job.settings, False, 1, 300, "steps"))
    with pytest.raises(SystemExit, match="bytes 1000, not 2000"):
        Lines(tmp_path / "rows.jsonl", 2000, dataset, {"pr578": 1000}).has(job)
    with pytest.raises(SystemExit, match="with lengths"):
        Lines(tmp_path / "rows.jsonl", 1000, dataset, {"pr578": 500}).has(job)
    lines.rows[0] = row | {"digest": "of another recipe"}
    with pytest.raises(SystemExit, match="with digest 'of another recipe'"):
        lines.has(job)


def test_a_pair_is_of_one_kind_of_processor(tmp_path, dataset, monkeypatch) -> None:
    """What another machine computed in its own way is not made again, but nothing of it is held against what this one computes."""
    import ablation

    monkeypatch.setattr(ablation, "dtype", lambda: "float32")
    base = ablation.Job("pr578", None, "base", (), True, 1, 200, "steps")
    own = ablation.Job("pr578", "XSA in the last blocks", "out", ("model.attention.exclusive=null",), False, 1, 200, "steps")
    lines = ablation.Lines(tmp_path / "rows.jsonl", 1000, dataset, {"pr578": 1000})

    def add(job: ablation.Job, dtype: str, cpu: str) -> None:
        row = {"recipe": job.recipe, "technique": job.technique, "way": job.way, "seed": 1, "match": "steps", "steps": 200}
        lengths = lines.lengths(job)
        row |= {"settings": list(job.settings), "lengths": lengths, "digest": ablation.digest_of(job, lengths)}
        lines.add(row | lines.same | {"dtype": dtype, "machine": describe_machine() | {"cpu": cpu}})

    here = describe_machine()["cpu"]
    add(base, "bfloat16", here)
    add(base, "float32", "another CPU")
    add(own, "float32", here)
    assert not lines.compared(base, own)
    assert (lines.has(base), lines.has(own)) == (False, True)
    add(own, "float32", "another CPU")
    assert lines.compared(base, own)
    assert not lines.has(base)


def test_an_ablation_is_the_mean_of_paired_differences(tmp_path) -> None:
    """With a technique minus without it: below zero it helps, whichever way the runs were made."""
    from render_ablation import ablation_section

    common = {"match": "steps", "steps": 200, "bytes": 1000, "milliseconds_a_step": 100.0, "commit": "c" * 40}
    common |= {"machine": {"cpu": "a CPU", "cpu_capability": "AVX512"}, "dtype": "bfloat16"}
    rows = []
    for seed, base, out, into in ((1, 2.0, 2.1, 1.7), (2, 2.2, 2.25, 2.1)):
        for recipe, technique, way, value in (
            ("pr578", None, "base", base),
            ("pr578", "smear gate", "out", out),
            ("baseline", None, "base", base),
            ("baseline", "smear gate", "in", into),
            ("pr578", "average of the weights (EMA)", "base", base - 1),  # has a base of its own: without snapshots
            ("pr578", "average of the weights (EMA)", "out", out - 1.1),
            ("baseline", "EMA blended with late snapshots", "base", base - 1),  # has a base of its own in the baseline: an average
            ("baseline", "EMA blended with late snapshots", "in", base - 0.9),
            ("baseline", "coprime loader", "in", base - 0.2 * seed),  # whose runs read other text
            ("pocket", None, "base", base),
            ("pocket", "value residual", "in", base + 0.1 * seed),  # whose batches mix documents
        ):
            rows.append(common | {"recipe": recipe, "technique": technique, "way": way, "seed": seed, "float": value, "packed": value})
    other = common | {"recipe": "baseline", "technique": "smear gate", "way": "in", "seed": 3, "float": 1.0, "packed": 1.0}
    rows.append(other | {"dtype": "float32"})  # whose base was computed otherwise, or not at all
    rows.append(other | {"machine": {"cpu": "another CPU", "cpu_capability": "AVX512"}})
    rows.append(common | {"recipe": "baseline", "technique": None, "way": "base", "seed": 3, "float": 2.0, "packed": 2.0})
    lines = ablation_section(rows, [], tmp_path)
    assert any(line.startswith("| average of the weights (EMA) | out | pr578 | float | 2 | +0.0250 (") for line in lines)
    page = [line for line in lines if "smear gate" in line]
    assert page[0].startswith("| smear gate | out | pr578 | float | 2 | -0.0750 (")
    assert page[1].startswith("| smear gate | in | baseline | float | 2 | -0.2000 (")
    assert (tmp_path / "ablation.svg").read_text().count("smear gate") == 2
    kinds = (
        "Pairs that differ from the first step on, and read the same text in the order of the shards: 0.1031, 2 degrees of freedom; "
        "the same where batches mix documents (`pocket`, #1171): 0.0707, 1 degrees of freedom; "
        "pairs that read other text, or other batches of it: 0.1414, 1 degrees of freedom; "
        "pairs that are the same run until late in training: 0.0250, 2 degrees"
    )
    assert any(kinds in line for line in lines)  # what drives one kind apart says nothing about another
    assert any(line.startswith("| EMA blended with late snapshots | in | baseline | float | 2 | +0.1000 (") for line in lines)
    assert any(line.startswith("Not measured yet, ") for line in lines)
    missing = {line.split(":")[0]: line for line in lines if line.startswith("* ")}
    assert "; bigram hash; " in missing["* out of pr1171"]
    assert "smear gate" not in missing["* out of pr578"] + missing["* in baseline"]


def test_techniques_share_one_spread() -> None:
    """Against the same by hand: the mean of the groups' variances, each with its degrees of freedom."""
    from render_ablation import Spread
    from scipy import stats

    groups = [[0.1, 0.12, 0.08], [-0.3, -0.31], [0.05]]
    spread = Spread.of(groups)
    variance = (2 * statistics.variance(groups[0]) + statistics.variance(groups[1])) / 3
    assert spread.freedom == 3
    assert spread.deviation == pytest.approx(variance**0.5)
    half = stats.t.ppf(0.975, 3) * variance**0.5
    assert spread.interval([0.05]) == pytest.approx((0.05, 0.05 - half, 0.05 + half))  # one seed has an interval too
    assert spread.interval(groups[1]) == pytest.approx((-0.305, -0.305 - half / 2**0.5, -0.305 + half / 2**0.5))
    assert spread.with_interval([0.05]).startswith("+0.0500 (")
    assert Spread.of([[0.05]]).with_interval([0.05]) == "+0.0500"  # nothing to know the spread by


def test_other_lengths_are_runs_of_every_system_as_it_is() -> None:
    import argparse

    from ablation import of_other_lengths

    options = argparse.Namespace(recipes=["pr606", "baseline"], only=None, steps=200)
    found = [(own.recipe, own.match, own.steps, own.settings, own.technique, base.steps) for base, own in of_other_lengths(options, 1)]
    expected = [
        (recipe, match, steps, (), None, 200) for recipe in ("baseline", "pr606") for match, steps in (("half", 100), ("double", 400))
    ]
    assert found == expected
