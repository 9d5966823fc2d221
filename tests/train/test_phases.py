"""What changes along a run: replay, curriculum, averages and their choice, and the same run on several ranks."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys

import pytest
import torch

from bytefit.data.loaders import ShuffledLoader
from bytefit.errors import UserError
from bytefit.ledger import Ledger
from bytefit.model.language_model import LanguageModel
from bytefit.model.plan import unet_plan
from bytefit.optim.average import AverageConfig, SnapshotConfig
from bytefit.optim.schedule import Moment
from bytefit.recipes import find_recipe
from bytefit.train.choose import hold_out
from bytefit.train.config import CurriculumConfig, ReplayConfig
from bytefit.train.loop import Interrupted, Position, next_step
from bytefit.train.metrics import read_metrics
from bytefit.train.step import Stepper
from tests.conftest import ONE_RANK
from tests.train.test_train import RECIPE, config, load_checkpoint, losses, new_model, same, train, train_tiny

REPLAY = ReplayConfig(batches=3, epochs=2, below=0.6, lr_scale=0.1)


def records(folder):
    return read_metrics(folder / "metrics.jsonl")


# --- replay -------------------------------------------------------------------------------------------------------------------


def test_replay_goes_over_the_last_batches_inside_the_budget(dataset, tmp_path) -> None:
    train_tiny(dataset, tmp_path / "a", config(steps=20, replay=REPLAY))
    seen = records(tmp_path / "a")
    assert len(seen) == 20  # the budget; 14 steps and 2 x 3 replayed
    assert [record["batch"] for record in seen] == [*range(14), 11, 12, 13, 11, 12, 13]
    assert {record["lr_scale"] for record in seen[14:]} == {0.1}
    assert seen[13]["lr_scale"] < 0.2  # the schedule has come to its end before the replay


def test_replay_by_the_clock_ends_with_the_clock(dataset, tmp_path) -> None:
    ledger = Ledger()
    train_tiny(dataset, tmp_path / "a", config(steps=None, seconds=2.0, replay=dataclasses.replace(REPLAY, batches=10)), ledger=ledger)
    batches = [record["batch"] for record in records(tmp_path / "a")]
    first = next(i for i, batch in enumerate(batches) if batch != i)
    assert batches[first:][:10] == batches[first - 10 : first]
    assert ledger.seconds["train"] < 3.0


def test_replay_is_left_when_the_clock_runs_out() -> None:
    position = Position(step=12, main_steps=10, recent=[8, 9])
    settings = config(steps=None, seconds=10.0, replay=ReplayConfig(batches=2, epochs=3))
    assert next_step(settings, Moment(step=12, seconds=9.9, total_seconds=10.0), position) == (8, 0.1)
    assert next_step(settings, Moment(step=12, seconds=10.0, total_seconds=10.0), position) is None


def test_only_late_batches_are_replayed(dataset, tmp_path) -> None:
    """With a threshold that two steps pass, two batches come back, not three."""
    train_tiny(dataset, tmp_path / "a", config(steps=20, replay=dataclasses.replace(REPLAY, below=0.3)))
    assert [record["batch"] for record in records(tmp_path / "a")][14:] == [12, 13, 12, 13]


# --- curriculum ---------------------------------------------------------------------------------------------------------------


def looped(**changes):
    """The recipe with its first block run twice, from half of the budget on."""
    model = dataclasses.replace(RECIPE.model, plan=unet_plan((0, 0, 1)))
    return model, config(steps=12, curriculum=CurriculumConfig(plan=unet_plan(2), until=0.5), **changes)


def train_looped(dataset, folder, settings, model):
    folder.mkdir()
    model = dataclasses.replace(model, vocab_size=dataset.tokenizer.vocab_size)
    made = new_model(dataclasses.replace(RECIPE, model=model))
    train(made, settings, dataset.train, seed=5, folder=folder, ledger=Ledger(), ranks=ONE_RANK)
    return made


def test_curriculum_changes_the_plan_at_its_share_of_the_budget(dataset, tmp_path, monkeypatch) -> None:
    model, settings = looped(warmup_steps=0)
    plans, real = [], LanguageModel.forward

    def watched(self, *arguments):
        plans.append(self.plan)
        return real(self, *arguments)

    monkeypatch.setattr(LanguageModel, "forward", watched)
    made = train_looped(dataset, tmp_path / "a", settings, model)
    assert plans == [unet_plan(2)] * 6 + [model.plan] * 6
    assert made.plan == model.plan


def test_compiled_curriculum_follows_eager(dataset, tmp_path) -> None:
    """The switch must reach the compiled graph: losses agree before and after it, and differ from a run without the switch."""
    model, settings = looped()
    train_looped(dataset, tmp_path / "eager", settings, model)
    train_looped(dataset, tmp_path / "compiled", dataclasses.replace(settings, compile=True), model)
    train_looped(dataset, tmp_path / "without", dataclasses.replace(settings, curriculum=None), model)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), abs=2e-3)
    assert losses(tmp_path / "without")[5] != pytest.approx(losses(tmp_path / "eager")[5], abs=1e-5)


def test_impossible_curriculum(dataset, tmp_path) -> None:
    with pytest.raises(UserError, match=r"more than model\.plan|same blocks"):
        train_tiny(dataset, tmp_path / "a", config(curriculum=CurriculumConfig(plan=unet_plan(3), until=0.5)))
    with pytest.raises(ValueError, match=r"until 1\.0"):
        CurriculumConfig(plan=unet_plan(2), until=1.0)


# --- averages -----------------------------------------------------------------------------------------------------------------

ALL = AverageConfig(ema_decay=0.8, swa=SnapshotConfig(every=2, below=0.8), use="blend", swa_share=0.5, held_out_tokens=1000)


@pytest.mark.parametrize("use", ["ema", "swa", "blend"])
def test_what_is_packed_is_the_average_that_was_asked_for(dataset, tmp_path, use, monkeypatch) -> None:
    """The weights after every step, averaged by hand."""
    history, real = [], Stepper.step

    def watched(self, optimizers, **options):
        loss = real(self, optimizers, **options)
        history.append((options["lr_scale"], self.loss_of.embedding.detach().double().clone()))
        return loss

    monkeypatch.setattr(Stepper, "step", watched)
    packed = train_tiny(dataset, tmp_path / "a", config(steps=12, warmup_steps=0, average=dataclasses.replace(ALL, use=use)))
    torch.manual_seed(RECIPE.seed)
    recipe = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, vocab_size=dataset.tokenizer.vocab_size))
    ema = new_model(recipe).embedding.detach().double()
    late = []
    for step, (scale, weights) in enumerate(history, 1):
        ema = 0.8 * ema + 0.2 * weights
        if scale < 0.8 and step % 2 == 0:
            late.append(weights)
    swa = sum(late) / len(late)
    assert len(late) >= 2
    expected = {"ema": ema, "swa": swa, "blend": (ema + swa) / 2}[use]
    assert torch.allclose(packed["embedding"].double(), expected, atol=1e-6)


def test_held_out_training_text_decides_and_is_not_trained_on(dataset, tmp_path, monkeypatch) -> None:
    read, real = [], ShuffledLoader.rows

    def watched(self, *arguments):
        rows = real(self, *arguments)
        read.append((len(self._stream), rows))
        return rows

    monkeypatch.setattr(ShuffledLoader, "rows", watched)
    settings = config(steps=30, average=dataclasses.replace(ALL, use="held_out", ema_decay=0.99))
    packed = train_tiny(dataset, tmp_path / "a", settings)
    assert {length for length, _ in read} == {len(dataset.train) - 1000}
    state = load_checkpoint(tmp_path / "a" / "checkpoint")
    found = state.progress["average"]["held_out_loss"]
    assert set(found) == {"last", "ema", "swa", "blend"}
    assert state.progress["average"]["used"] == min(found, key=found.get)
    # The loss that decided is that of the end of the split, with those weights.
    recipe = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, vocab_size=dataset.tokenizer.vocab_size))
    model = new_model(recipe)
    model.load_state_dict(packed)
    tail = torch.from_numpy(dataset.train.all()[-1000:])
    windows = [tail[start : start + 65] for start in range(0, 1000 - 64, 64)]
    with torch.no_grad():
        mean = sum(float(model(w[None, :-1], w[None, 1:])) for w in windows) / len(windows)
    assert min(found.values()) == pytest.approx(mean, abs=1e-4)


def test_holding_out_too_much_is_refused(dataset) -> None:
    settings = config(average=dataclasses.replace(ALL, use="held_out", held_out_tokens=len(dataset.train)))
    with pytest.raises(UserError, match=r"lower train\.average\.held_out_tokens"):
        hold_out(settings, dataset.train)


def test_without_snapshots_the_choice_falls_back_and_says_so(dataset, tmp_path, capsys) -> None:
    late = SnapshotConfig(every=1000)
    train_tiny(dataset, tmp_path / "a", config(steps=5, average=AverageConfig(ema_decay=0.9, swa=late, use="blend")))
    assert "no snapshot was taken" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "a" / "checkpoint").progress["average"]["used"] == "ema"


@pytest.mark.parametrize("interrupt_at", [9, 17])
def test_everything_resumes_bit_for_bit(dataset, tmp_path, monkeypatch, interrupt_at) -> None:
    """Averages, snapshots and the replay, interrupted before and within the replay."""
    settings = config(steps=20, replay=REPLAY, average=ALL)
    undisturbed = train_tiny(dataset, tmp_path / "a", settings)
    real, count = Stepper.step, []

    def step_then_signal(self, *arguments, **options):
        count.append(1)
        if len(count) == settings.warmup_steps + interrupt_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Stepper, "step", step_then_signal)
    with pytest.raises(Interrupted, match=f"step {interrupt_at}"):
        train_tiny(dataset, tmp_path / "b", settings)
    monkeypatch.setattr(Stepper, "step", real)
    assert same(train_tiny(dataset, tmp_path / "b", settings, resume=True), undisturbed)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


# --- ranks --------------------------------------------------------------------------------------------------------------------


def on_ranks(world: int, recipe: str, dataset, out, *settings: str) -> None:
    arguments = ["train", recipe, "--size", "tiny", "--data", str(dataset.folder), "--out", str(out)]
    settings = ("train.dtype=float32", "train.optimizer.matrices.dtype=float32", "train.optimizer.matrices.state_dtype=float32", *settings)
    for setting in settings:
        arguments += [setting] if setting.startswith("--") else ["--set", setting]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), "-m", "bytefit"]
    command = torchrun if world > 1 else [sys.executable, "-m", "bytefit"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [("pr693", ()), ("pr1171", ("train.optimizer.clip_norm=null",))],  # PR #1171 clips each rank's own gradients, which depend on the ranks
    ids=["pr693", "pr1171"],
)
def test_a_system_trains_alike_on_one_and_four_ranks(dataset, tmp_path, recipe, settings) -> None:
    held_out = "train.average.held_out_tokens=1000"
    for world in (1, 4):
        on_ranks(world, recipe, dataset, tmp_path / str(world), "--steps=16", held_out, *settings)
    assert losses(tmp_path / "4") == pytest.approx(losses(tmp_path / "1"), abs=1e-3)
    assert [r["batch"] for r in records(tmp_path / "4")] == [r["batch"] for r in records(tmp_path / "1")]
    one, four = (load_checkpoint(tmp_path / world / "checkpoint") for world in "14")
    assert one.progress["average"]["used"] == four.progress["average"]["used"]
    assert all(torch.allclose(one.weights[name], four.weights[name], atol=2e-2) for name in one.weights)


def test_a_run_on_two_ranks_goes_on_on_one(dataset, tmp_path) -> None:
    """The checkpoint of two ranks holds the whole momentum; one rank takes the run up where it stood."""
    average = "train.average.held_out_tokens=1000"
    on_ranks(2, "pr578", dataset, tmp_path / "a", "--steps=8", average)
    on_ranks(1, "pr578", dataset, tmp_path / "b", "--steps=8", average)
    two, one = (load_checkpoint(tmp_path / run / "checkpoint").optimizer for run in "ab")
    assert two.keys() == one.keys()
    assert {name: t.shape for name, t in two.items()} == {name: t.shape for name, t in one.items()}
    assert all(torch.allclose(two[name], one[name], atol=1e-3) for name in one if name.startswith("muon"))


def test_tiny_systems_are_found() -> None:
    assert find_recipe("pr1171", "tiny").train.loader.shard_tokens == 4096
