"""What benchmarks rest on: the plain spelling computes the same numbers, tables say what rows hold, speeds and digests tell runs apart."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from bytefit.config import apply_settings, to_json
from bytefit.recipes import RECIPES, find_recipe

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def among_benchmarks(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith("as_submitted")])
def test_plain_spelling_is_the_same_network(name) -> None:
    recipe = find_recipe(name, "tiny")
    torch.manual_seed(0)
    model = recipe.model.build()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    tokens = torch.randint(0, recipe.model.vocab_size, (2, recipe.train.seq_len + 1))
    ours = model(tokens[:, :-1], tokens[:, 1:])
    plain = load("plain").plain_loss(model, tokens[:, :-1], tokens[:, 1:])
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    names = [name for name, p in model.named_parameters() if p.numel()]
    for mine, theirs, parameter in zip(
        torch.autograd.grad(ours, [p for p in model.parameters() if p.numel()]),
        torch.autograd.grad(plain, [p for p in model.parameters() if p.numel()]),
        names,
        strict=True,
    ):
        assert (mine - theirs).norm() <= 1e-3 * theirs.norm() + 1e-7, parameter


def test_a_system_keeps_its_row_until_a_gpu_has_measured_it() -> None:
    from render_systems import gpu_section

    summary = {"train_seconds": 120.0, "steps": 240, "val_bpb_float": 1.5, "val_bpb_full": 1.51, "val_bpb": 1.4321}
    summary |= {"artifact_bytes": 15_999_000, "proof_restored": None, "dataset_sha256": "a" * 64}
    row = {"recipe": "pr578", "size": "full", "milliseconds_a_step": 450.0, "tokens_per_second": 1.7e6, "peak_memory_bytes": 2**35}
    row |= {"mfu": 0.41, "attention_ms": {"flash": 3.25, "cudnn": 2.5}, "audit_fails": [20], "commit": "c" * 40, "summary": summary}
    on_gpu = row | {"gpus": 1, "seed": 2, "machine": {"gpu": "NVIDIA H200", "torch": "2.13.0"}}
    page = gpu_section(
        [on_gpu | {"gpus": 8, "mfu": None}, on_gpu, on_gpu | {"seed": 1}, row | {"recipe": "pr693", "seed": 1, "machine": {"gpu": None}}]
    )
    of_table = [line for line in page if line.startswith("| ")]
    assert {line.count("|") for line in of_table} == {of_table[0].count("|")}
    assert [line for line in of_table if line.startswith("| pr578")] == [
        f"| pr578 | {gpus} | {seed} | 120 | 240 | 450.0 | 1,700,000 | 32.0 | {mfu} | flash 3.25, cudnn 2.50 | 1.5000 | 1.5100 | 1.4321 "
        "| 15,999,000 | not tried | 20 |"
        for gpus, seed, mfu in ((1, 1, "41.0%"), (1, 2, "41.0%"), (8, 2, "unknown"))
    ]
    assert any(line.startswith("Class 20 asks for the whole validation split") for line in page)
    assert not any(line.startswith("Class 32") for line in page)
    assert "FlashAttention 3" in "".join(page)
    assert [line.split(" | ")[1] for line in page if line.startswith("| pr693")] == ["not measured"]  # a CPU's figures are not a GPU's
    assert sum("not measured" in line for line in page) == 5


@pytest.mark.parametrize("here", ["float32", "bfloat16"])
def test_rows_stand_whatever_they_were_computed_in(tmp_path, monkeypatch, here) -> None:
    """A run computes in what this machine is faster in; a row of another machine is not made again for that, one of other steps is."""
    import record
    import timed

    monkeypatch.setattr(record, "faster_dtype", lambda device: getattr(torch, here))
    record.dtype.cache_clear()
    entry, measured = timed.Entry("pr128", "pr128"), []
    monkeypatch.setattr(timed, "open_dataset", lambda path: None)
    monkeypatch.setattr(timed, "measure", lambda entry, *rest: measured.append(entry.name) or row(here, steps=9))

    def row(dtype: str, steps: int) -> dict:
        summary = {"steps": steps, "dtype": dtype, "val_bpb": 2.0, "artifact_bytes": 1}
        return {"name": "pr128", "seed": 1, "digest": entry.digest, "summary": summary}

    (tmp_path / "steps.json").write_text('{"steps": {"pr128": 9}}')
    paths = {"data": tmp_path, "steps": tmp_path / "steps.json", "out": tmp_path / "rows.jsonl"}
    options = argparse.Namespace(**paths, seeds=[1], most=None, workers=1)
    for held, again in ((row("bfloat16", steps=9), []), (row("bfloat16", steps=8), ["pr128"])):
        record.put_row(options.out, held, key=("name", "seed"))
        timed.run_entries([entry], options, {"commit": "c", "machine": {}})
        assert measured == again
    settings = [(path, value) for path, _, value in (word.partition("=") for word in entry.words[1::2])]
    training = apply_settings(find_recipe("pr128"), settings).train
    assert (training.dtype, training.optimizer.matrices.dtype) == (here, here)
    record.dtype.cache_clear()


def test_published_changes_stand_beside_ours() -> None:
    from render_published import published_section

    def ours(name: str, headline: float, last: float, averaged: float, packed: float) -> dict:
        summary = {"val_bpb": headline, "val_bpb_float": averaged, "val_bpb_full": packed, "val_bpb_sliding": headline}
        return {"name": name, "val_bpb_last": last, "summary": summary | {"val_bpb_adapted": None}}

    systems = {
        "pr693": {"headline": "sliding", "seeds": {"1": {"last": 1.2, "averaged": 1.1, "packed": 1.15, "sliding": 1.0}}},
        "pr128": {"headline": "sliding", "seeds": {"1": {"averaged": 1.3, "sliding": 1.25}, "2": {"sliding": 1.35}}},
        "pr1171": {"headline": "learning", "seeds": {"1": {"learning": 1.0}}},
    }
    rows = [ours("pr693", 2.1, 2.2, 2.21, 2.3), ours("pr693", 2.3, 2.2, 2.23, 2.3), ours("pr128", 2.0, 2.2, 2.2, 2.2)]
    rows.append(ours("pr693_as_submitted", 2.05, 2.3, 2.1, 2.05))  # what really ran may change a score the other way than the repaired form
    page = published_section({"machine": "large", "systems": systems}, rows, lambda rows: " †" if len(rows) == 1 else "")
    assert "| pr693 | 1.0000 (1) | 2.2000 (2) | 2.0500 (1) † | 1 of 2 | 2 of 2 | 1 of 1 |" in page
    assert "| pr128 | 1.3000 (2) | 2.0000 (1) † | not measured | 2 of 2 | 1 of 2 | – |" in page
    assert "| pr693 | averaging the weights | -0.1000 (1) | +0.0200 (2) | **no** | -0.2000 (1) | yes |" in page
    assert "| pr693 | packing | +0.0500 (1) | +0.0800 (2) | yes | -0.0500 (1) | **no** |" in page
    assert "| pr128 | packing and sliding windows | -0.0500 (1) | -0.2000 (1) | yes | – | – |" in page
    assert not any("pr1171" in line for line in page)  # not measured here yet


def test_settings_that_were_not_the_recipes_are_named() -> None:
    from render_score import adapt_section

    def row(name: str, **changed: dict) -> dict:
        adapt = to_json(find_recipe(f"pr{name[4:].split(':')[0]}").score.adapt) if name.startswith("PR") else {}
        of_run = {"run": "r", "seed": 1, "bytes": 9, "seconds": 1.0, "train_seconds": 300.0, "learned_steps": 3, "bits_per_byte": 2.0}
        return of_run | {"name": name, "protocol": adapt | {"window": 128, "stride": 32} | changed}

    trains = to_json(find_recipe("pr578").score.adapt)["trains"] | {"first_blocks_frozen": 1}
    rows = [row("sliding"), row("PR #578: SGD", trains=trains), row("PR #1171: AdamW"), row("PR #606: the same, with temperature")]
    page = "\n".join(adapt_section({"rows": rows}, None, lambda record: "here"))
    assert "but that PR #578 has `trains.first_blocks_frozen` 1, not 2. " in page
    assert "What *the same* leaves out: PR #606 has `chunk_tokens` 8192, not 16384; `epochs` 3, not 5; `temperature` 0.98, not 1.0." in page


def test_the_noise_of_steps_is_what_forms_that_take_the_same_time_differ_by() -> None:
    from render_systems import noise_of_steps

    speeds = {"baseline": 10.0, "baseline_as_submitted": 10.4, "pr128": 2.0, "pr128_as_submitted": 1.9, "pr578": 1, "pr578_as_submitted": 9}
    assert "+4 % for `baseline` and -5 % for `pr128`" in noise_of_steps([{"steps_per_second": speeds}])


def test_the_table_says_what_each_run_was_computed_in() -> None:
    from render_systems import arithmetic_of

    def row(name: str, seed: int, dtype: str) -> dict:
        return {"name": name, "seed": seed, "summary": {"dtype": dtype}}

    rows = [row("a", 1, "bfloat16"), row("b", 1, "bfloat16"), row("a", 2, "float32")]
    assert arithmetic_of(rows[:2]) == "Computed in bfloat16."
    assert arithmetic_of(rows).startswith("Computed in bfloat16, but in float32 seed 2 of a: ")
    rows += [row("b", 2, "float32"), row("a", 3, "float32")]
    assert arithmetic_of(rows).startswith("Computed in float32, but in bfloat16 seed 1 of all: ")


def test_speeds_do_not_depend_on_how_busy_the_machine_was() -> None:
    """What slows a whole round down is the machine's; what disturbs one entry in one round is nobody's."""
    from timed import undisturbed

    rounds = [{"a": 4.0 * busy, "b": 2.0 * busy, "c": 8.0 * busy} for busy in (0.9, 1.0, 0.5, 0.7, 1.0)]
    assert undisturbed(rounds) == pytest.approx({"a": 4.0, "b": 2.0, "c": 8.0})
    rounds[2]["b"] = 0.1
    assert undisturbed(rounds)["b"] == pytest.approx(2.0)


def test_speeds_beside_a_system_follow_its_steps(tmp_path, monkeypatch) -> None:
    """The entry beside them took twice its steps here, so that the others take half of what was measured; alike ones are measured once."""
    import timed

    rates, asked = {"whole": 8.0, "small": 16.0}, []
    monkeypatch.setattr(timed, "steps_per_second", lambda entry, options: asked.append(entry.name) or rates[entry.name])
    monkeypatch.setattr(timed, "SYSTEMS_STEPS", tmp_path / "systems.json")
    timed.SYSTEMS_STEPS.write_text('{"steps": {"whole": 1200}}')
    entries = [timed.Entry("small", "baseline", ("model.dim=96",)), timed.Entry("75 s", "baseline", seconds=75.0)]
    options = argparse.Namespace(steps=tmp_path / "steps.json", rounds=2)
    timed.measure_speed(entries, timed.Entry("whole", "baseline"), options, {"commit": "c"})
    held = json.loads(options.steps.read_text())
    assert asked == ["whole", "small"] * 2
    assert held["steps"] == {"small": 2400, "75 s": 300}
    assert [turn["steps_per_second"] for turn in held["rounds"]] == [rates, rates]


def test_both_forms_of_a_system_take_the_same_steps(tmp_path, monkeypatch) -> None:
    """Their steps cost the same; what is measured of the second form says how noisy the measurement is, and decides nothing."""
    import systems
    import timed

    held = json.loads((BENCHMARKS / "results" / "systems_steps.json").read_text())
    pairs = {entry.name: entry.pace.name for entry in systems.SYSTEMS if entry.paced_by}
    assert pairs == {name: name.removesuffix("_as_submitted") for name in RECIPES if name.endswith("_as_submitted")}
    assert all(held["steps"][name] == held["steps"][pace] for name, pace in pairs.items())
    rates = {"pr578": 4.0, "pr578_as_submitted": 5.0}
    monkeypatch.setattr(timed, "steps_per_second", lambda entry, options: rates[entry.name])
    entry = next(entry for entry in systems.SYSTEMS if entry.name == "pr578_as_submitted")
    options = argparse.Namespace(steps=tmp_path / "steps.json", rounds=1)
    timed.measure_speed([entry], None, options, {"commit": "c"})
    made = json.loads(options.steps.read_text())
    assert made["rounds"][0]["steps_per_second"] == rates
    assert made["steps"] == {"pr578_as_submitted": 4 * 293}  # 7 of 300 s are for calibrating on training text


def test_bytes_and_seconds_take_the_point_between_from_the_systems(tmp_path) -> None:
    from render_systems import scaling_section

    def row(budget: int, seconds: float, value: float, name: str = "pocket") -> dict:
        keys = ("val_bpb_float", "val_bpb_full", "val_bpb_sliding", "val_bpb")
        summary = dict.fromkeys(keys, value) | {"budget_bytes": budget, "artifact_bytes": budget - 5, "num_parameters": 7, "steps": 9}
        words = {"command": "bytefit run pocket --set model.dim=96", "commit": "c" * 40, "audit": {"fail": []}}
        words |= {"machine": {"cpu": "a", "cpu_capability": "AVX2"}}
        return words | {"name": name, "seconds": seconds, "summary": summary}

    rows = [row(250_000, 300.0, 1.9, "250 kB"), row(1_000_000, 75.0, 1.8, "75 s")]
    lines = scaling_section(rows, [row(1_000_000, 300.0, 1.5), row(1_000_000, 300.0, 1.7)], tmp_path)
    of_table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")][2:]
    assert [(cells[0], cells[1], cells[2], cells[9]) for cells in of_table] == [
        ("250,000", "300", "1", "1.9000"),
        ("1,000,000", "75", "1", "1.8000"),
        ("1,000,000", "300", "2", "1.6000"),
    ]
    assert lines[-2] == "Not measured yet: 500 kB, 2000 kB, 150 s, 600 s."
    assert {path.name for path in tmp_path.iterdir()} == {"bytes.svg", "seconds.svg"}


def test_a_row_that_is_measured_again_replaces_the_old_one(tmp_path) -> None:
    from record import put_row, read_lines

    path = tmp_path / "rows.jsonl"
    for name, seed, value in (("a", 1, 1.0), ("b", 1, 2.0), ("a", 2, 3.0), ("a", 1, 4.0)):
        put_row(path, {"name": name, "seed": seed, "value": value}, key=("name", "seed"))
    assert [(row["name"], row["seed"], row["value"]) for row in read_lines(path)] == [("b", 1, 2.0), ("a", 2, 3.0), ("a", 1, 4.0)]


def test_a_digest_tells_recipes_apart_and_not_their_runs() -> None:
    from record import digest

    def of(**settings: str) -> str:
        return digest(to_json(apply_settings(find_recipe("pr578"), [(path.replace("__", "."), value) for path, value in settings.items()])))

    known = of()
    assert of(seed="7", train__steps="9", train__seconds="null", train__reserve_seconds="1", score__max_bytes="5") == known
    assert of(train__dtype="bfloat16", train__optimizer__matrices__dtype="bfloat16") == known  # rows say it themselves
    for changed in ({"train__optimizer__clip_norm": "1"}, {"pack__budget_bytes": "9000"}, {"score__stride": "8"}, {"model__smear": "null"}):
        assert of(**changed) != known


def test_a_new_setting_that_is_off_leaves_digests_what_they_are() -> None:
    from record import digest

    recipe = to_json(find_recipe("pr578"))
    later = recipe | {"model": recipe["model"] | {"new_part": None}}
    step = recipe["model"]["plan"][0] | {"new": None}
    later["model"]["plan"] = [step, *recipe["model"]["plan"][1:]]
    assert digest(later) == digest(recipe)
    assert digest(recipe | {"model": recipe["model"] | {"new_part": {"type": "New"}}}) != digest(recipe)
    assert digest(recipe | {"model": recipe["model"] | {"new_part": False}}) != digest(recipe)  # off is what null says


def test_forms_are_compared_pair_by_pair_of_rows_of_now() -> None:
    """Rows of other steps are left out once one of now is there; a pair is of one seed, one dtype, one kind of processor if it can be."""
    from record import digest
    from render_forms import forms_section
    from render_systems import newest

    def row(name: str, steps: int, seed: int, dtype: str, bpb: float, cpu: str = "a") -> dict:
        scores = dict.fromkeys(("val_bpb_float", "val_bpb_full", "val_bpb"), bpb)
        made = {"name": name, "seed": seed, "val_bpb_last": bpb, "digest": digest(to_json(find_recipe(name))), "commit": "c" * 40}
        return made | {"summary": scores | {"steps": steps, "dtype": dtype}, "machine": {"cpu": cpu, "cpu_capability": "AVX2"}}

    submitted, steps = "pr128_as_submitted", {"steps": {"pr128": 100, "pr128_as_submitted": 100, "baseline": 100}}
    of_now = [row("pr128", 100, 1, "float32", 2.0), row("pr128", 100, 2, "bfloat16", 1.0), row(submitted, 100, 1, "float32", 2.25)]
    of_now.append(row(submitted, 100, 2, "float32", 9.0))
    before, alone = row(submitted, 90, 3, "float32", 5.0), row("baseline", 90, 1, "float32", 5.0)
    assert newest([*of_now, before, alone], steps) == [*of_now, alone]
    other = [row("pr128", 100, 3, "float32", 2.0, "b"), row(submitted, 100, 3, "float32", 2.5)]
    page = "\n".join(forms_section([*of_now, before, alone, *other], [], steps))
    assert "| pr128 | 1 | float32 | one kind | +0.2500 | +0.2500 | +0.2500 | +0.2500 |" in page
    assert "| pr128 | 3 | float32 | two kinds | +0.5000 | +0.5000 | +0.5000 | +0.5000 |" in page
    assert page.count("| pr128 |") == 2
    assert "second less the first" not in page
    page = "\n".join(forms_section([*of_now, before, alone, *other], [row("pr128", 100, 3, "float32", 2.375)], steps))
    assert "| pr128 | 3 | float32 | one kind | +0.1250 | +0.1250 | +0.1250 | +0.1250 |" in page  # by the row that was made again
    assert "| pr128 | 3 | float32 | +0.3750 | +0.3750 | +0.3750 | +0.3750 |" in page


def test_rows_of_another_count_of_steps_or_recipe_say_so() -> None:
    from record import digest
    from render_systems import EARLIER, system_figures

    keys = ("val_bpb_float", "val_bpb_full", "val_bpb_sliding", "val_bpb_adapted", "val_bpb")
    row = {
        "name": "pr128",
        "val_bpb_last": 2.0,
        "summary": dict.fromkeys(keys, 2.0) | {"artifact_bytes": 5, "steps": 100, "dtype": "float32"},
    }
    known = digest(to_json(find_recipe("pr128")))
    for now, of_recipe, marked in ((100, known, False), (101, known, True), (100, "of another", True)):
        page = system_figures("pr128", [row | {"digest": of_recipe}], {"steps": {"pr128": now}}, [])
        assert ("| pr128 † |" in page) == (EARLIER in page) == marked
