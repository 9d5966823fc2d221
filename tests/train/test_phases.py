"""What changes along a run: replay, curriculum, averages and their choice, and the same run on several ranks."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time

import pytest
import torch

from bytefit.cli import main
from bytefit.config import apply_settings, to_json
from bytefit.data.loaders import ShuffledLoader
from bytefit.errors import Interrupted, UserError
from bytefit.ledger import Ledger
from bytefit.model.language_model import LanguageModel
from bytefit.model.plan import unet_plan
from bytefit.optim.average import AverageConfig, SnapshotConfig
from bytefit.optim.groups import Optimizers
from bytefit.optim.schedule import Moment, WarmdownConfig
from bytefit.recipes import find_recipe
from bytefit.run.steps import check_before_training
from bytefit.train.config import CurriculumConfig, ReplayConfig
from bytefit.train.loop import Position, next_step
from bytefit.train.metrics import read_metrics
from bytefit.train.step import Stepper
from tests.conftest import ONE_RANK
from tests.processes import Processes, run_ranks
from tests.train.test_train import RECIPE, config, load_checkpoint, losses, new_model, same, train, train_tiny

REPLAY = ReplayConfig(batches=2, epochs=2, lr_scale=0.1)


def records(folder):
    return read_metrics(folder / "metrics.jsonl")


# --- replay -------------------------------------------------------------------------------------------------------------------


def test_replay_goes_over_the_last_batches_inside_the_budget(dataset, tmp_path) -> None:
    train_tiny(dataset, tmp_path / "a", config(steps=20, replay=REPLAY))
    seen = records(tmp_path / "a")
    assert len(seen) == 20  # the budget; 16 steps and 2 x 2 replayed
    assert [record["batch"] for record in seen] == [*range(16), 14, 15, 14, 15]
    assert {record["lr_scale"] for record in seen[16:]} == {0.1}
    assert seen[15]["lr_scale"] < 0.2  # the schedule has come to its end before the replay


def test_a_replayed_batch_is_a_step_like_the_others_to_muon(dataset, tmp_path, monkeypatch) -> None:
    """Momentum is warmed up by the steps that were taken; the batch's number begins anew."""
    momenta, real = [], Optimizers.step

    def watched(self, **arguments):
        real(self, **arguments)
        momenta.append(self.muon.param_groups[0]["momentum"])

    monkeypatch.setattr(Optimizers, "step", watched)
    settings = config(steps=20, replay=REPLAY, warmup_steps=0)
    matrices = dataclasses.replace(settings.optimizer.matrices, momentum_start=0.5, momentum=0.9, momentum_warmup_steps=40)
    train_tiny(dataset, tmp_path / "a", dataclasses.replace(settings, optimizer=dataclasses.replace(settings.optimizer, matrices=matrices)))
    assert momenta == pytest.approx([0.5 + 0.4 * step / 40 for step in range(20)])


def test_replay_by_the_clock_ends_with_the_clock(dataset, tmp_path) -> None:
    ledger = Ledger()
    train_tiny(dataset, tmp_path / "a", config(steps=None, seconds=2.0, replay=dataclasses.replace(REPLAY, batches=10)), ledger=ledger)
    batches = [record["batch"] for record in records(tmp_path / "a")]
    first = next(i for i, batch in enumerate(batches) if batch != i)
    replayed = first - batches[first]
    assert 1 <= replayed <= 10  # fewer than ten where the machine slowed down
    assert batches[first:] == [first - replayed + i % replayed for i in range(len(batches) - first)]
    assert ledger.seconds["train"] < 4.0


def test_replay_is_left_when_the_clock_runs_out() -> None:
    position = Position(step=12, main_steps=10, replayed=2)
    settings = config(steps=None, seconds=10.0, replay=ReplayConfig(batches=2, epochs=3))
    assert next_step(settings, Moment(step=12, seconds=9.9, total_seconds=10.0), position) == (8, 0.1)
    assert next_step(settings, Moment(step=12, seconds=10.0, total_seconds=10.0), position) is None


@pytest.mark.parametrize("total", [4, 7, 20, 50, 100])
@pytest.mark.parametrize("replay", [ReplayConfig(batches=20, epochs=2), ReplayConfig(batches=3, epochs=3)])
def test_a_replay_takes_at_most_a_quarter_and_no_step_is_lost(total, replay) -> None:
    settings, position, batches = config(steps=total, replay=replay), Position(), []
    while True:
        moment = Moment(step=position.step, total_steps=total, reserved_steps=replay.steps)
        if position.main_steps is None and moment.fraction >= 1.0:
            position.begin_last_steps(settings, moment)
        todo = next_step(settings, moment, position)
        if todo is None:
            break
        batches.append(todo[0])
        position.step += 1
    assert len(batches) == total
    assert position.main_steps == total - min(total // 4, replay.steps)


def test_a_slow_first_step_neither_ends_the_run_nor_warms_it_down(dataset, tmp_path, monkeypatch) -> None:
    """The first step takes longer than the replay that its length would reserve: the run must go on to its end."""
    real, count = Stepper.step, []

    def slow_first(self, *arguments, **options):
        count.append(1)
        if len(count) == 1:
            time.sleep(0.5)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Stepper, "step", slow_first)
    schedule = WarmdownConfig(steps=5)
    train_tiny(dataset, tmp_path / "a", config(steps=None, seconds=4.0, warmup_steps=0, replay=REPLAY, schedule=schedule))
    seen = records(tmp_path / "a")
    assert len(seen) > 15
    assert [record["lr_scale"] for record in seen[:8]] == [1.0] * 8
    assert seen[-1]["batch"] < len(seen) - 1  # and the replay came in the end


def test_snapshots_stop_where_the_replay_begins(dataset, tmp_path) -> None:
    """The EMA follows the replay, the snapshots do not."""
    every = AverageConfig(ema_decay=0.8, swa=SnapshotConfig(every=1, below=1.01), use="blend")
    train_tiny(dataset, tmp_path / "a", config(steps=20, replay=REPLAY, average=every))
    assert load_checkpoint(tmp_path / "a" / "checkpoint").progress["snapshots"] == 16


def test_what_could_never_show_is_refused(dataset) -> None:
    """Snapshots alone are packed without what a replay does; under a floor of the rate what waits for a lower one never begins."""
    with pytest.raises(ValueError, match="replay comes after the last snapshot"):
        config(steps=20, replay=REPLAY, average=AverageConfig(swa=SnapshotConfig(every=1, below=1.01), use="swa"))
    recipe = find_recipe("pr1171")
    for floor, name in ((0.15, "fake_quant"), (0.2, "fake_quant")):
        with pytest.raises(UserError, match=rf"train: {name} begins below 0\.15 .*floor {floor}"):
            apply_settings(recipe, [("train.schedule.floor", str(floor))])
    with pytest.raises(UserError, match=r"average\.swa begins below 0\.2"):
        apply_settings(recipe, [("train.schedule.floor", "0.2"), ("train.fake_quant", "null")])
    assert apply_settings(recipe, [("train.schedule.floor", "0.1")]).train.schedule.floor == 0.1


def test_resuming_a_finished_run_leaves_it_alone(dataset, tmp_path) -> None:
    settings = config(steps=8, average=AverageConfig(ema_decay=0.8))
    packed = train_tiny(dataset, tmp_path / "a", settings)
    before = (tmp_path / "a" / "checkpoint" / "state.json").read_bytes()
    assert same(train_tiny(dataset, tmp_path / "a", settings, resume=True), packed)
    assert (tmp_path / "a" / "checkpoint" / "state.json").read_bytes() == before


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


def test_compiled_curriculum_follows_eager(dataset, tmp_path, traced) -> None:
    """The switch must reach the compiled graph: losses agree before and after it, and differ from a run without the switch."""
    model, settings = looped()
    train_looped(dataset, tmp_path / "eager", settings, model)
    train_looped(dataset, tmp_path / "compiled", dataclasses.replace(settings, compile=True), model)
    train_looped(dataset, tmp_path / "without", dataclasses.replace(settings, curriculum=None), model)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), abs=2e-3)
    assert losses(tmp_path / "without")[5] != pytest.approx(losses(tmp_path / "eager")[5], abs=1e-5)


def test_impossible_curriculum(dataset) -> None:
    """Found before a run folder is made."""
    for plan, message in ((unet_plan(3), "has 3 steps, more than"), (unet_plan(1), "it has 1, not 2")):
        recipe = dataclasses.replace(RECIPE, train=config(curriculum=CurriculumConfig(plan=plan, until=0.5)))
        with pytest.raises(UserError, match=f"train.curriculum: .*{message}"):
            check_before_training(recipe, dataset, ONE_RANK)
    for plan, until, message in ((unet_plan(2), 1.0, r"until 1\.0"), ((), 0.5, "plan is empty")):
        with pytest.raises(ValueError, match=message):
            CurriculumConfig(plan=plan, until=until)


# --- averages -----------------------------------------------------------------------------------------------------------------

ALL = AverageConfig(ema_decay=0.8, swa=SnapshotConfig(every=2, below=0.8), use="blend", swa_share=0.5, held_out_tokens=1000)


@pytest.mark.parametrize("use", ["ema", "swa", "blend"])
def test_what_is_packed_is_the_average_that_was_asked_for(dataset, tmp_path, use, monkeypatch) -> None:
    """The weights after every step, averaged by hand."""
    history, real = [], Stepper.step

    def watched(self, optimizers, **options):
        loss = real(self, optimizers, **options)
        history.append((options["lr_scale"], self.loss_of.embedding.weight.detach().double().clone()))
        return loss

    monkeypatch.setattr(Stepper, "step", watched)
    packed = train_tiny(dataset, tmp_path / "a", config(steps=12, warmup_steps=0, average=dataclasses.replace(ALL, use=use)))
    torch.manual_seed(RECIPE.seed)
    recipe = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, vocab_size=dataset.tokenizer.vocab_size))
    ema = new_model(recipe).embedding.weight.detach().double()
    late = []
    for step, (scale, weights) in enumerate(history, 1):
        ema = 0.8 * ema + 0.2 * weights
        if scale < 0.8 and step % 2 == 0:
            late.append(weights)
    swa = sum(late) / len(late)
    assert len(late) >= 2
    expected = {"ema": ema, "swa": swa, "blend": (ema + swa) / 2}[use]
    assert torch.allclose(packed["embedding.weight"].double(), expected, atol=1e-6)


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
        check_before_training(dataclasses.replace(RECIPE, train=settings), dataset, ONE_RANK)


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


def test_a_checkpoint_that_did_not_count_tokens_goes_on(dataset, tmp_path, monkeypatch) -> None:
    real, count = Stepper.step, []

    def step_then_signal(self, *arguments, **options):
        count.append(1)
        if len(count) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments, **options)

    settings = config(steps=8, warmup_steps=0)
    monkeypatch.setattr(Stepper, "step", step_then_signal)
    with pytest.raises(Interrupted):
        train_tiny(dataset, tmp_path / "a", settings)
    path = tmp_path / "a" / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    assert state["position"].pop("tokens") == 5 * settings.batch_tokens
    path.write_text(json.dumps(state))
    train_tiny(dataset, tmp_path / "a", settings, resume=True)
    assert [record["tokens"] for record in records(tmp_path / "a")] == [settings.batch_tokens * step for step in range(1, 9)]


# --- ranks --------------------------------------------------------------------------------------------------------------------


def arguments_of(recipe: str, dataset, out, *settings: str) -> list[str]:
    arguments = ["train", recipe, "--size", "tiny", "--data", str(dataset.folder), "--out", str(out)]
    settings = ("train.dtype=float32", "train.optimizer.matrices.dtype=float32", "train.optimizer.matrices.state_dtype=float32", *settings)
    for setting in settings:
        arguments += [setting] if setting.startswith("--") else ["--set", setting]
    return arguments


def on_ranks(world: int, recipe: str, dataset, out, *settings: str) -> None:
    run_ranks(world, main, arguments_of(recipe, dataset, out, *settings))


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


CHANGES_RANKS = ("--steps=60", "train.checkpoint_seconds=0.01", "train.optimizer.clip_norm=null", "train.fake_quant=null")


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "a"
    on_ranks(1, "pr578", dataset, out, *CHANGES_RANKS)
    return out


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(dataset, undisturbed, tmp_path, first, then) -> None:
    """Stopped on two ranks, resumed on one (and the other way round), a run ends like one that was never disturbed. Ranks sum in another
    order; rounding to a grid would make more of that: a weight at a threshold falls to the other side."""
    stopped_early = Processes(first, main, arguments_of("pr578", dataset, tmp_path / "b", *CHANGES_RANKS))
    state = tmp_path / "b" / "checkpoint" / "state.json"
    while stopped_early.running and not (state.exists() and json.loads(state.read_text())["step"] >= 5):
        time.sleep(0.02)
    stopped_early.send(signal.SIGTERM)
    codes, said = stopped_early.wait()
    assert codes == [130] * first, said
    stopped = load_checkpoint(tmp_path / "b" / "checkpoint").progress
    assert 5 <= stopped["step"] < 60
    on_ranks(then, "pr578", dataset, tmp_path / "b", *CHANGES_RANKS, "--resume")
    assert losses(tmp_path / "b") == pytest.approx(losses(undisturbed), abs=3e-3)
    one, other = (load_checkpoint(run / "checkpoint") for run in (undisturbed, tmp_path / "b"))
    names = [name for name in one.optimizer if name.startswith("muon")]
    assert names
    assert all((one.optimizer[n] - other.optimizer[n]).norm() < 0.05 * one.optimizer[n].norm() for n in names)


def test_a_compiled_system_follows_eager_in_bf16(dataset, tmp_path) -> None:
    """All the parts of PR #693 at once, in two blocks (the compiler takes a minute for four), in the precision that systems train in."""
    recipe = find_recipe("pr693", "tiny")
    parts = [("plan", to_json(unet_plan(2))), ("attention.exclusive.blocks", [1]), ("value_embedding.blocks", [1])]
    recipe = apply_settings(recipe, [(f"model.{path}", json.dumps(value)) for path, value in parts])
    for mode in ("eager", "compiled"):
        model = dataclasses.replace(recipe.model, vocab_size=dataset.tokenizer.vocab_size)
        training = dataclasses.replace(recipe.train, steps=6, dtype="bfloat16", compile=mode == "compiled", replay=None)
        (tmp_path / mode).mkdir()
        ledger = Ledger()
        made = new_model(dataclasses.replace(recipe, model=model))
        train(made, training, dataset.train, seed=5, folder=tmp_path / mode, ledger=ledger, ranks=ONE_RANK)
        assert (ledger.seconds["compile"] > 0) == (mode == "compiled")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), abs=2e-2)
