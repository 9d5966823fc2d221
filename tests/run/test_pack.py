from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bytefit.artifact.load import load_artifact
from bytefit.cli import main
from bytefit.config import apply_settings
from bytefit.data.dataset import Dataset
from bytefit.errors import UserError
from bytefit.ledger import Ledger
from bytefit.optim.average import AverageConfig
from bytefit.quant.calibrate import CalibrationConfig, OwnText, RandomIds, TrainingText, collect, load_statistics
from bytefit.quant.clip import RowMaximum
from bytefit.quant.fake import FakeQuantConfig, StraightThrough
from bytefit.quant.gptq import Gptq
from bytefit.quant.grid import EqualDamageGrid, integer_grid
from bytefit.quant.low_rank import LowRankConfig
from bytefit.quant.quantise import MatrixQuant, QuantConfig
from bytefit.recipes import find_recipe
from bytefit.recipes.recipe import Recipe
from bytefit.run import steps
from bytefit.run.folder import RunFolder
from bytefit.run.steps import _batches, _same_batches, calibrate_step, pack_step, trained_model

GPTQ = MatrixQuant(grid=integer_grid(6), rounding=Gptq())
EQUAL = MatrixQuant(grid=EqualDamageGrid())
PACK_KEYS = {"bytes", "budget", "parts", "dial", "attempts", "zeroed", "floor_rows", "pruned"}


def everywhere(quant: MatrixQuant, **others: object) -> QuantConfig:
    return QuantConfig(table=quant, attention=quant, mlp=quant, projection=quant, head=quant, **others)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    """A folder with eight steps of training; tests copy it."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", "pocket", "--size", "tiny", "--steps", "8", "--data", str(dataset.folder), "--out", str(out)]) == 0
    return out


@pytest.fixture
def folder(trained, tmp_path) -> RunFolder:
    shutil.copytree(trained, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def recipe_of(
    folder: RunFolder,
    *,
    source: object = None,
    windows: int = 4,
    quant: QuantConfig | None = None,
    sequential: bool = False,
    budget: int = 16_000,
) -> Recipe:
    recipe = folder.read_recipe()
    calibrate = CalibrationConfig(source=source or TrainingText(), windows=windows, batch_windows=2, sequential=sequential)
    return dataclasses.replace(
        recipe, calibrate=calibrate, pack=dataclasses.replace(recipe.pack, quant=quant or everywhere(GPTQ), budget_bytes=budget)
    )


def times(folder: RunFolder) -> int:
    return folder.calibration.stat().st_mtime_ns


def test_a_calibration_is_kept_and_used_again(folder, dataset) -> None:
    recipe, ledger = recipe_of(folder), Ledger()
    first = calibrate_step(folder, recipe, dataset, ledger)
    assert folder.calibration.name == "calibration.safetensors"
    assert ledger.seconds["calibrate"] > 0
    written, seconds = times(folder), ledger.seconds["calibrate"]
    ledger = Ledger()
    again = calibrate_step(folder, recipe, dataset, ledger)
    assert times(folder) == written
    assert ledger.seconds["calibrate"] == pytest.approx(seconds)  # of the first time: a process that was killed kept no ledger
    assert all(torch.equal(first[name].columns, again[name].columns) and torch.equal(first[name].rows, again[name].rows) for name in first)


def test_it_is_what_the_trained_model_sees_on_that_text(folder, dataset) -> None:
    got = calibrate_step(folder, recipe_of(folder, windows=3), dataset, Ledger())
    starts = np.linspace(0, len(dataset.train) - 64, 3).astype(int)
    text = torch.from_numpy(np.stack([dataset.train.read(int(start), 64) for start in starts]))
    want = collect(trained_model(folder, recipe_of(folder)), [text], gradients=False)
    for name in want:
        assert torch.allclose(got[name].columns, want[name].columns, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": 6},
        {"source": RandomIds()},
        {"quant": everywhere(EQUAL)},  # needs gradients
    ],
    ids=str,
)
def test_other_settings_are_measured_again(folder, dataset, changes) -> None:
    calibrate_step(folder, recipe_of(folder), dataset, Ledger())
    before = times(folder)
    got = calibrate_step(folder, recipe_of(folder, **changes), dataset, Ledger())
    assert times(folder) > before
    held, _ = load_statistics(folder.calibration)
    assert all(torch.equal(held[name].columns, got[name].columns) for name in got)
    assert bool((got["blocks.0.mlp.up.weight"].rows != 1).any()) == ("quant" in changes)


def test_another_budget_or_grid_is_not(folder, dataset) -> None:
    calibrate_step(folder, recipe_of(folder), dataset, Ledger())
    before = times(folder)
    calibrate_step(
        folder, recipe_of(folder, budget=9000, quant=everywhere(MatrixQuant(grid=integer_grid(4), rounding=Gptq()))), dataset, Ledger()
    )
    assert times(folder) == before


def test_newer_weights_are_measured_again(folder, dataset) -> None:
    calibrate_step(folder, recipe_of(folder), dataset, Ledger())
    before = times(folder)
    later = before + 10_000_000
    os.utime(folder.checkpoint / "state.json", ns=(later, later))
    calibrate_step(folder, recipe_of(folder), dataset, Ledger())
    assert times(folder) > before


def test_a_damaged_calibration_is_measured_again(folder, dataset) -> None:
    first = calibrate_step(folder, recipe_of(folder), dataset, Ledger())
    folder.calibration.write_bytes(folder.calibration.read_bytes()[:1000])
    again = calibrate_step(folder, recipe_of(folder), dataset, Ledger())
    assert all(torch.equal(first[name].columns, again[name].columns) for name in first)
    assert load_statistics(folder.calibration) is not None


def test_a_changed_text_file_is_measured_again(folder, dataset, write) -> None:
    path = write("own.txt", "The quiet river found the open window. " * 20)
    recipe = recipe_of(folder, source=OwnText(path=str(path)))
    first = calibrate_step(folder, recipe, dataset, Ledger())
    path.write_text("17 1984 café naïve stone bread letter. " * 20)
    again = calibrate_step(folder, recipe, dataset, Ledger())
    name = "blocks.0.mlp.up.weight"
    assert not torch.equal(first[name].columns, again[name].columns)


def test_without_calibration_nothing_is_measured(folder, dataset) -> None:
    recipe = folder.read_recipe()
    plain = dataclasses.replace(recipe.pack, quant=everywhere(MatrixQuant(grid=integer_grid(6))), budget_bytes=16_000)
    pack_step(folder, dataclasses.replace(recipe, calibrate=None, pack=plain), dataset, Ledger())
    assert not folder.calibration.exists()
    assert folder.artifact.stat().st_size <= 16_000


@pytest.mark.parametrize(
    "quant",
    [everywhere(GPTQ), everywhere(EQUAL), everywhere(GPTQ, low_rank=LowRankConfig(), gain_step=0.01)],
    ids=["gptq", "equal", "more"],
)
def test_pack_step_leaves_an_artifact_and_its_record(folder, dataset, quant) -> None:
    ledger = Ledger()
    packed = pack_step(folder, recipe_of(folder, quant=quant), dataset, ledger)
    record = json.loads(folder.pack.read_text())
    assert set(record) == PACK_KEYS
    assert folder.artifact.read_bytes() == packed.data
    assert record["bytes"] == len(packed.data) == sum(record["parts"].values())
    assert 0.995 * 16_000 < record["bytes"] <= record["budget"] == 16_000
    assert (record["dial"], record["attempts"], record["zeroed"], record["floor_rows"]) == (packed.dial, packed.attempts, 0, 0)
    assert 1 <= record["attempts"] <= 40
    assert ledger.seconds["calibrate"] > 0
    assert ledger.seconds["fit"] > 0
    artifact = load_artifact(folder.artifact)
    assert artifact.notes["recipe"] == "pocket"
    for name, p in artifact.model.named_parameters():
        assert np.array_equal(p.detach().numpy().ravel(), packed.quantised.weights(name).ravel())


def test_a_word_where_training_rounded_to_other_codes(folder, dataset, capsys) -> None:
    """Fake quantisation that aims at a grid which the budget does not leave is for nothing."""
    recipe = recipe_of(folder, quant=everywhere(MatrixQuant(grid=integer_grid(6))))
    pack_step(folder, recipe, dataset, Ledger())
    assert "training rounded" not in capsys.readouterr().err
    highest = integer_grid(6).ends(json.loads(folder.pack.read_text())["dial"])[1]
    for aimed, told in ((highest, False), (4 * highest, True)):
        fake_quant = FakeQuantConfig(rounding=StraightThrough(), lowest=-aimed, highest=aimed, clip=RowMaximum(), below=0.5)
        pack_step(folder, dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, fake_quant=fake_quant)), dataset, Ledger())
        said = f"rounded to codes {-aimed}..{aimed}, but the budget leaves {-highest}..{highest}" in capsys.readouterr().err
        assert said == told


def test_gptq_leaves_the_outputs_nearer_than_nearest_rounding(folder, dataset) -> None:
    """At the same grid, on text that the calibration did not see."""
    text = torch.from_numpy(dataset.val.read(0, 6 * 64).reshape(6, 64))
    differences: list[float] = []
    with torch.no_grad():
        wanted = trained_model(folder, recipe_of(folder)).logits(text)
    for rounding in (Gptq(), None):
        rule = MatrixQuant(grid=integer_grid(4), rounding=rounding) if rounding else MatrixQuant(grid=integer_grid(4))
        table = MatrixQuant(grid=integer_grid(12))
        quant = dataclasses.replace(everywhere(rule), table=table, head=table)
        recipe = recipe_of(folder, quant=quant, windows=16, budget=1 << 20)
        recipe = dataclasses.replace(recipe, pack=dataclasses.replace(recipe.pack, fit=False))
        pack_step(folder, recipe, dataset, Ledger())
        with torch.no_grad():
            differences.append(float((load_artifact(folder.artifact).model.logits(text) - wanted).square().mean()))
    assert differences[0] < 0.8 * differences[1]


def test_taking_the_inputs_again_changes_the_codes_and_leaves_the_weights_alone(folder, dataset) -> None:
    plain = pack_step(folder, recipe_of(folder), dataset, Ledger())
    again = pack_step(folder, recipe_of(folder, sequential=True), dataset, Ledger())
    assert 0.995 * 16_000 < len(again.data) <= 16_000
    changed = {
        name for name in plain.quantised.codes if not np.array_equal(plain.quantised.codes[name].codes, again.quantised.codes[name].codes)
    }
    assert {"blocks.1.mlp.down.weight", "blocks.1.attention.query.weight"} <= changed


def test_pack_verb_takes_other_budgets(folder, capsys) -> None:
    for budget in (15_000, 9_000):
        assert main(["pack", str(folder.path), "--bytes", str(budget), "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert set(record) == PACK_KEYS
        assert 0.995 * budget < record["bytes"] <= budget == record["budget"]
        assert folder.artifact.stat().st_size == record["bytes"]
        assert folder.read_recipe().pack.budget_bytes == budget
    assert main(["pack", str(folder.path), "--bytes", "1000"]) == 2
    assert "a budget of 1,000 bytes is impossible for this model" in capsys.readouterr().err
    assert folder.artifact.stat().st_size == record["bytes"]  # the last good one stays


def test_packing_twice_gives_the_same_bytes(folder, dataset) -> None:
    first = pack_step(folder, recipe_of(folder), dataset, Ledger()).data
    folder.calibration.unlink()
    assert pack_step(folder, recipe_of(folder), dataset, Ledger()).data == first


def test_what_needs_inputs_needs_to_say_where_they_come_from(capsys) -> None:
    recipe = find_recipe("pr578", "tiny")
    with pytest.raises(ValueError, match=r"say where that is measured \(calibrate\)"):
        dataclasses.replace(recipe, calibrate=None)
    with pytest.raises(UserError, match=r"say where that is measured \(calibrate\)"):
        apply_settings(recipe, [("calibrate", "null")])
    pr693 = find_recipe("pr693", "tiny")
    plain = everywhere(MatrixQuant(grid=integer_grid(6)))
    for pack in (
        dataclasses.replace(pr693.pack, quant=plain, zero_ones=0.1),
        dataclasses.replace(pr693.pack, quant=everywhere(MatrixQuant(grid=integer_grid(6)), low_rank=LowRankConfig()), zero_ones=0.0),
        dataclasses.replace(pr693.pack, quant=everywhere(EQUAL), zero_ones=0.0),
    ):
        with pytest.raises(ValueError, match=r"say where that is measured \(calibrate\)"):
            dataclasses.replace(pr693, calibrate=None, pack=pack)
    assert dataclasses.replace(pr693, calibrate=None, pack=dataclasses.replace(pr693.pack, quant=plain, zero_ones=0.0)).calibrate is None
    assert main(["run", "pr578", "--size", "tiny", "--set", "calibrate=null"]) == 2
    err = capsys.readouterr().err
    assert "say where that is measured (calibrate)" in err
    assert len(err.strip().splitlines()) == 1


def test_calibration_text_that_is_not_there_is_one_clear_line(folder, dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nowhere.txt"):
        calibrate_step(folder, recipe_of(folder, source=OwnText(path="/nowhere.txt")), dataset, Ledger())
    assert not folder.calibration.exists()


@pytest.mark.parametrize(("choosing", "chosen_on_text", "batches"), [(0.0, True, 8), (60.0, True, 1), (60.0, False, 8)])
def test_calibration_has_what_choosing_leaves_of_the_reserve(folder, dataset, choosing, chosen_on_text, batches) -> None:
    """Both read training text after the loop, out of the same seconds; an average that is taken as it is reads none."""
    recipe = recipe_of(folder, windows=16)
    average = AverageConfig(ema_decay=0.9, use="held_out" if chosen_on_text else "ema", held_out_tokens=500)
    train = dataclasses.replace(recipe.train, steps=None, seconds=240.0, reserve_seconds=60.0, average=average)
    recipe = dataclasses.replace(recipe, train=train)
    ledger = Ledger({"average": choosing})
    with ledger.measure("calibrate"):
        found = list(_batches(trained_model(folder, recipe), recipe.calibrate, recipe, dataset, ledger))
    assert len(found) == batches


def test_the_clock_of_a_calibration_waits_for_the_gpu(folder, dataset, monkeypatch) -> None:
    """Here in its place something for which a batch takes 25 s of the 60 when it is waited for, and none before."""
    train = dataclasses.replace(folder.read_recipe().train, steps=None, seconds=240.0, reserve_seconds=60.0)
    recipe, ledger = dataclasses.replace(recipe_of(folder, windows=16), train=train), Ledger()
    monkeypatch.setattr(steps, "wait_for", lambda device: ledger.add({"calibrate": 25.0}))
    assert len(list(_batches(trained_model(folder, recipe), recipe.calibrate, recipe, dataset, ledger))) == 2


@pytest.mark.parametrize(("spent", "seconds", "windows"), [(239.9, 240.0, 4), (200.0, 240.0, 64), (239.9, None, 64)])
def test_a_calibration_that_finds_no_time_reads_little(folder, dataset, spent, seconds, windows) -> None:
    """Training went over its part of the clock, as on a busy machine: the one batch that is read is a small one. Without a clock, all."""
    recipe = recipe_of(folder, windows=64)
    train = dataclasses.replace(recipe.train, steps=None if seconds else 9, seconds=seconds, reserve_seconds=60.0)
    recipe = dataclasses.replace(recipe, train=train, calibrate=dataclasses.replace(recipe.calibrate, batch_windows=64))
    calibrate_step(folder, recipe, dataset, Ledger({"train": spent, "calibrate": 0.2}))
    text = _same_batches(trained_model(folder, recipe), folder, recipe, dataset)
    assert sum(map(len, text)) == windows
    assert {len(batch) for batch in text} == {4 if seconds else 64}


def test_text_that_is_read_again_block_by_block_has_its_share_of_the_clock(folder, dataset) -> None:
    """Five passes in all (two blocks, what stands around them, and the first one), over as much text as the first was given."""
    train = dataclasses.replace(folder.read_recipe().train, steps=None, seconds=240.0, reserve_seconds=60.0)
    for sequential, batches in ((False, 8), (True, 1)):
        recipe = dataclasses.replace(recipe_of(folder, windows=16, sequential=sequential), train=train)
        calibrate_step(folder, recipe, dataset, Ledger({"calibrate": 10.0}))  # that much was spent before
        text = _same_batches(trained_model(folder, recipe), folder, recipe, dataset)
        assert len(text) == batches


def test_calibration_takes_its_seconds_from_the_clock() -> None:
    """Of the training clock so much is left as was asked for, but never more than a quarter; a budget in steps has no clock."""
    train = find_recipe("pr578", "lab").train
    assert (train.seconds, train.reserved_seconds, train.loop_seconds) == (300.0, 7.0, 293.0)
    short = dataclasses.replace(train, seconds=8.0)
    assert (short.reserved_seconds, short.loop_seconds) == (2.0, 6.0)
    stepwise = dataclasses.replace(train, seconds=None, steps=10)
    assert (stepwise.reserved_seconds, stepwise.loop_seconds) == (0.0, None)
    with pytest.raises(ValueError, match="reserve_seconds -1 must not be negative"):
        dataclasses.replace(train, reserve_seconds=-1)
