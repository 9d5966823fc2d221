from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from bytefit.cli import main
from bytefit.errors import Interrupted, UserError
from bytefit.ledger import Ledger
from bytefit.optim.average import AverageConfig
from bytefit.recipes import find_recipe
from bytefit.run.steps import new_model
from bytefit.train import step
from bytefit.train.checkpoint import load_checkpoint
from bytefit.train.config import TrainConfig
from bytefit.train.loop import train
from bytefit.train.metrics import read_metrics
from bytefit.train.step import Stepper
from tests.conftest import ONE_RANK
from tests.processes import Processes, run_ranks
from tests.train import rank_worker

RECIPE = find_recipe("pocket", "tiny")


def config(**changes) -> TrainConfig:
    muon = dataclasses.replace(RECIPE.train.optimizer.matrices, dtype="float32")
    optimizer = dataclasses.replace(RECIPE.train.optimizer, matrices=muon)
    base = dataclasses.replace(RECIPE.train, steps=20, dtype="float32", optimizer=optimizer, checkpoint_seconds=1e9)
    return dataclasses.replace(base, **changes)


def train_tiny(dataset, folder, settings: TrainConfig, *, resume=False, ledger=None):
    recipe = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, vocab_size=dataset.tokenizer.vocab_size))
    folder.mkdir(exist_ok=True)
    ledger = ledger or Ledger()
    train(new_model(recipe), settings, dataset.train, seed=5, folder=folder, ledger=ledger, ranks=ONE_RANK, resume=resume)
    checkpoint = load_checkpoint(folder / "checkpoint")
    assert checkpoint.progress["finished"]
    assert checkpoint.progress["peak_memory_bytes"] > 10_000_000  # Python and torch alone take more
    return checkpoint.final or checkpoint.weights


def losses(folder) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_learns_and_repeats_itself(dataset, tmp_path) -> None:
    first = train_tiny(dataset, tmp_path / "a", config(steps=60))
    assert losses(tmp_path / "a")[-1] < 0.75 * losses(tmp_path / "a")[0]
    assert same(first, train_tiny(dataset, tmp_path / "b", config(steps=60)))


def test_warmup_leaves_no_trace(dataset, tmp_path) -> None:
    with_warmup = train_tiny(dataset, tmp_path / "a", config(warmup_steps=3))
    without = train_tiny(dataset, tmp_path / "b", config(warmup_steps=0))
    assert same(with_warmup, without)


def test_gradient_accumulation_is_the_same_batch(dataset, tmp_path, monkeypatch) -> None:
    from bytefit.model.language_model import LanguageModel

    train_tiny(dataset, tmp_path / "a", config())
    real, rows = LanguageModel.forward, set()

    def watched(self, ids, *arguments):
        rows.add(len(ids))
        return real(self, ids, *arguments)

    monkeypatch.setattr(LanguageModel, "forward", watched)
    train_tiny(dataset, tmp_path / "b", config(micro_batch_tokens=256))
    assert rows == {4}  # 256 tokens in windows of 64
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), abs=1e-4)


def optimizer(**changes):
    """The recipe's optimizer in fp32 with other settings for the matrices."""
    base = RECIPE.train.optimizer
    return dataclasses.replace(base, matrices=dataclasses.replace(base.matrices, dtype="float32", **changes))


def optimizer_with(**changes):
    return dataclasses.replace(optimizer(), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"average": AverageConfig(ema_decay=0.9)},
        {"optimizer": optimizer_with(clip_norm=0.05)},
        {"optimizer": optimizer(momentum_start=0.0)},
        {"optimizer": optimizer(momentum_warmup_steps=2)},
        {"optimizer": optimizer(weight_decay=0.5)},
        {"optimizer": optimizer(iterations=3)},
        {"optimizer": optimizer(coefficients="polar_express")},
        {"optimizer": optimizer(row_normalise=True)},
        {"optimizer": optimizer(state_dtype="bfloat16")},
        {"schedule": dataclasses.replace(RECIPE.train.schedule, floor=0.5)},
        {"schedule": dataclasses.replace(RECIPE.train.schedule, ramp_steps=5)},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_options_are_active(dataset, tmp_path, changes) -> None:
    plain = train_tiny(dataset, tmp_path / "a", config())
    changed = train_tiny(dataset, tmp_path / "b", config(**changes))
    assert not same(plain, changed)
    if "average" in changes:
        assert losses(tmp_path / "a") == losses(tmp_path / "b")  # an average watches, it does not steer


def test_compiled_training_follows_eager(dataset, tmp_path) -> None:
    train_tiny(dataset, tmp_path / "a", config(steps=8))
    ledger = Ledger()
    train_tiny(dataset, tmp_path / "b", config(steps=8, compile=True), ledger=ledger)
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), abs=2e-3)
    assert ledger.seconds["compile"] > 0


def test_clock_budget_is_kept(dataset, tmp_path) -> None:
    ledger = Ledger()
    start = time.perf_counter()
    train_tiny(dataset, tmp_path / "a", config(steps=None, seconds=4.0, reserve_seconds=9.0), ledger=ledger)
    assert 3.0 <= ledger.seconds["train"] < 4.0  # a quarter, the most that can be reserved, is left
    assert sum(ledger.seconds.values()) <= time.perf_counter() - start
    assert read_metrics(tmp_path / "a" / "metrics.jsonl")[-1]["lr_scale"] < 0.5  # a machine under load takes few steps


def test_a_finished_run_that_is_resumed_keeps_its_seconds(dataset, tmp_path) -> None:
    """Who packs after a kill must know what training took of the clock."""
    first, again = Ledger(), Ledger()
    train_tiny(dataset, tmp_path / "a", config(average=AverageConfig(ema_decay=0.9)), ledger=first)
    train_tiny(dataset, tmp_path / "a", config(average=AverageConfig(ema_decay=0.9)), ledger=again, resume=True)
    for entry in ("train", "warmup"):
        assert again.seconds[entry] == pytest.approx(first.seconds[entry], rel=0.2)
    assert again.seconds["average"] > 0


def test_a_kill_between_the_files_of_the_last_state_keeps_the_averages(dataset, tmp_path, monkeypatch) -> None:
    """The finished state follows one of the same step, which has averages to choose among; until it is whole that one counts."""
    from bytefit.train import checkpoint

    settings = config(average=AverageConfig(ema_decay=0.9, use="held_out", held_out_tokens=500))
    undisturbed = train_tiny(dataset, tmp_path / "a", settings)
    real = checkpoint.write_json

    def killed(path, value) -> None:
        if value["finished"]:
            raise KeyboardInterrupt
        real(path, value)

    monkeypatch.setattr(checkpoint, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(dataset, tmp_path / "b", settings)
    monkeypatch.setattr(checkpoint, "write_json", real)
    assert load_checkpoint(tmp_path / "b" / "checkpoint").average.keys() == {f"ema/{name}" for name in undisturbed}
    assert same(train_tiny(dataset, tmp_path / "b", settings, resume=True), undisturbed)
    assert len(list((tmp_path / "b" / "checkpoint").glob("*.safetensors"))) == 1


def test_signal_saves_and_resume_goes_on_bit_for_bit(dataset, tmp_path, monkeypatch) -> None:
    undisturbed = train_tiny(dataset, tmp_path / "a", config(average=AverageConfig(ema_decay=0.9)))
    real, count = Stepper.step, []

    def step_then_signal(self, *arguments, **options):
        count.append(1)
        if len(count) == 2 + 7:  # two warm-up steps, then seven real ones
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Stepper, "step", step_then_signal)
    with pytest.raises(Interrupted, match="step 7"):
        train_tiny(dataset, tmp_path / "b", config(average=AverageConfig(ema_decay=0.9)))
    monkeypatch.setattr(Stepper, "step", real)
    assert load_checkpoint(tmp_path / "b" / "checkpoint").progress["finished"] is False
    resumed = train_tiny(dataset, tmp_path / "b", config(average=AverageConfig(ema_decay=0.9)), resume=True)
    assert same(resumed, undisturbed)
    assert losses(tmp_path / "b") == losses(tmp_path / "a")


def test_sigkill_at_a_random_moment_loses_nothing(dataset, tmp_path) -> None:
    """`bytefit run` killed twice without warning, then resumed, ends with the weights of an undisturbed run."""

    def start(out, *more):
        arguments = ["run", "pocket", "--size", "tiny", "--steps", "150", "--data", str(dataset.folder), "--out", str(out)]
        settings = ["--set", "train.checkpoint_seconds=0.05", "--set", "score.max_bytes=2000", "--set", "score.proof_bytes=300"]
        settings += ["--set", "train.dtype=float32", "--set", "train.optimizer.matrices.dtype=float32"]  # "auto" is timed, and may differ
        return Processes(1, main, [*arguments, *settings, *more])

    codes, said = start(tmp_path / "a").wait()
    assert codes == [0], said
    generator = random.Random()
    for _ in range(2):
        process = start(tmp_path / "b", "--resume")
        metrics = tmp_path / "b" / "metrics.jsonl"
        before = len(read_metrics(metrics))
        while len(read_metrics(metrics)) <= before + 3 and process.running:
            time.sleep(0.02)
        time.sleep(generator.uniform(0, 0.5))
        process.send(signal.SIGKILL)
        process.wait()
    codes, said = start(tmp_path / "b", "--resume").wait()
    assert codes == [0], said
    weights = [load_checkpoint(tmp_path / run / "checkpoint").weights for run in "ab"]
    assert same(*weights)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    artifacts = [(tmp_path / run / "model.bytefit").read_bytes() for run in "ab"]
    assert artifacts[0] == artifacts[1]


def test_two_ranks_and_one_give_the_same_curve(dataset, tmp_path) -> None:
    arguments = ["train", "pocket", "--size", "tiny", "--steps", "25", "--data", str(dataset.folder)]
    arguments += ["--set", "train.dtype=float32", "--set", "train.optimizer.matrices.dtype=float32"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bytefit"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command, out in ((torchrun, "two"), ([sys.executable, "-m", "bytefit"], "one")):
        done = subprocess.run([*command, *arguments, "--out", str(tmp_path / out)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "one")) == 25
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    one, two = (load_checkpoint(tmp_path / out / "checkpoint").weights for out in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=2e-2) for name in one)


def test_without_a_compiler_training_goes_on_eagerly(dataset, tmp_path, no_compiler, capsys) -> None:
    with no_compiler():
        train_tiny(dataset, tmp_path / "a", config(steps=4, compile=True))
    message = capsys.readouterr().err
    assert "torch.compile does not work here" in message
    assert "C++ compiler" in message
    train_tiny(dataset, tmp_path / "b", config(steps=4))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def half_done(dataset, folder) -> None:
    """A run that is to go on after three steps."""
    train_tiny(dataset, folder, config(steps=3))
    state = folder / "checkpoint" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"finished": False}))


def test_damaged_and_foreign_checkpoints(dataset, tmp_path) -> None:
    folder = tmp_path / "a"
    half_done(dataset, folder)
    state = json.loads((folder / "checkpoint" / "state.json").read_text())
    tensors = folder / "checkpoint" / state["tensors"]
    good = tensors.read_bytes()
    tensors.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="damaged"):
        train_tiny(dataset, folder, config(steps=6), resume=True)
    held = safetensors.torch.load(good)
    held["weights/embedding.weight"] = held["weights/embedding.weight"][:, :4].contiguous()
    tensors.write_bytes(safetensors.torch.save(held))
    with pytest.raises(UserError, match="belong to another model"):
        train_tiny(dataset, folder, config(steps=6), resume=True)


def test_a_full_disk_keeps_the_last_checkpoint(dataset, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "a"
    half_done(dataset, folder)
    import bytefit.files as files

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        train_tiny(dataset, folder, config(steps=6), resume=True)
    monkeypatch.undo()
    assert load_checkpoint(folder / "checkpoint").progress["step"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "exactly one of train.seconds and train.steps"),
        ({"batch_tokens": 100}, "multiple of seq_len 64"),
        ({"steps": 0}, "must be above 0"),
    ],
)
def test_impossible_settings(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_diverged_run_says_so(dataset, tmp_path) -> None:
    optimizer = dataclasses.replace(RECIPE.train.optimizer, gains=dataclasses.replace(RECIPE.train.optimizer.gains, lr=1e38))
    with pytest.raises(UserError, match="loss became NaN"):
        train_tiny(dataset, tmp_path / "a", config(optimizer=optimizer, warmup_steps=0))


def test_all_ranks_begin_with_the_first_ones_weights(dataset, tmp_path) -> None:
    run_ranks(2, rank_worker.start_unequal, dataset.folder, tmp_path)


def test_whether_it_was_compiled_is_written_down(dataset, tmp_path, monkeypatch) -> None:
    """A figure of a GPU says nothing where the step ran eagerly."""
    monkeypatch.setattr(step, "_compiled", lambda model, config, eager: dataclasses.replace(eager, compiled=True))
    for compile_it in (False, True):
        folder = tmp_path / str(compile_it)
        train_tiny(dataset, folder, config(steps=1, compile=compile_it))
        assert load_checkpoint(folder / "checkpoint").progress["compiled"] is compile_it
