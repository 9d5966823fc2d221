"""What PR #578 tried in training, beyond what it submitted: each is active, compiled too, resumes, and leaves nothing in the artifact."""

from __future__ import annotations

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bytefit.errors import Interrupted, UserError
from bytefit.ledger import Ledger
from bytefit.model.language_model import LanguageModel
from bytefit.model.loop_positions import LoopPositionsConfig
from bytefit.model.plan import looped_plan
from bytefit.optim.average import AverageConfig, SnapshotConfig
from bytefit.ranks import Ranks
from bytefit.run.steps import check_before_training
from bytefit.train.batches import Batches
from bytefit.train.config import BatchWarmupConfig, CadenceConfig, LengthStage, ReplayConfig
from bytefit.train.distil import DistilConfig
from bytefit.train.loop import train, typical_step
from bytefit.train.multi_token import MultiTokenConfig
from bytefit.train.step import Stepper
from tests.conftest import ONE_RANK
from tests.model.parts import CONFIGS, random_model, tokens
from tests.train.test_phases import on_ranks, records
from tests.train.test_train import RECIPE, config, load_checkpoint, losses, new_model, same, train_tiny

EMA = AverageConfig(ema_decay=0.8)
SNAPSHOTS = AverageConfig(ema_decay=0.8, swa=SnapshotConfig(every=1), use="swa")
STAGES = (LengthStage(until=0.25, seq_len=16), LengthStage(until=0.5, seq_len=32))
GROWING = {"batch_warmup": BatchWarmupConfig(tokens=256, steps=8), "micro_batch_tokens": 256}
DISTIL = DistilConfig(steps=4, lr_scale=0.2, share=0.9)
CADENCE_MODEL = dataclasses.replace(RECIPE.model, plan=looped_plan(2, (0, 1)), loop_positions=LoopPositionsConfig(count=3))
CADENCE = CadenceConfig(plan=looped_plan(2, (2,)), every=3)

EXPERIMENTS = {
    "lengths": {"lengths": STAGES},
    "batch warm-up": GROWING,
    "multi-token": {"multi_token": MultiTokenConfig()},
    "distillation": {"distil": DISTIL, "average": EMA},
}


def train_model(dataset, folder, model, settings):
    folder.mkdir()
    made = new_model(dataclasses.replace(RECIPE, model=dataclasses.replace(model, vocab_size=dataset.tokenizer.vocab_size)))
    train(made, settings, dataset.train, seed=5, folder=folder, ledger=Ledger(), ranks=ONE_RANK)
    return made


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_changes_the_weights_and_not_their_names(dataset, tmp_path, name) -> None:
    changes = EXPERIMENTS[name]
    without = {key: value for key, value in changes.items() if key in ("average", "micro_batch_tokens")}
    plain = train_tiny(dataset, tmp_path / "a", config(**without))
    changed = train_tiny(dataset, tmp_path / "b", config(**changes))
    assert plain.keys() == changed.keys()
    assert not same(plain, changed)
    assert losses(tmp_path / "b")[-1] < losses(tmp_path / "b")[0]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_compiled_experiments_follow_eager(dataset, tmp_path, name, traced) -> None:
    settings = config(steps=12, **EXPERIMENTS[name])
    train_tiny(dataset, tmp_path / "eager", settings)
    torch._dynamo.utils.counters.clear()
    train_tiny(dataset, tmp_path / "compiled", dataclasses.replace(settings, compile=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == {"lengths": 3, "distillation": 2}.get(name, 1)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), abs=2e-3)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_resume_bit_for_bit(dataset, tmp_path, monkeypatch, name) -> None:
    """Stopped one step before the end: within the last steps, and after the first ones that differ."""
    settings = config(steps=16, warmup_steps=0, **EXPERIMENTS[name])
    undisturbed = train_tiny(dataset, tmp_path / "a", settings)
    real, count = Stepper.step, []

    def step_then_signal(self, *arguments, **options):
        count.append(1)
        if len(count) in (3, 15):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Stepper, "step", step_then_signal)
    for at in (3, 15):
        with pytest.raises(Interrupted, match=f"step {at}"):
            train_tiny(dataset, tmp_path / "b", settings, resume=True)
    assert same(train_tiny(dataset, tmp_path / "b", settings, resume=True), undisturbed)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert [r["tokens"] for r in records(tmp_path / "a")] == [r["tokens"] for r in records(tmp_path / "b")]


# --- batches ------------------------------------------------------------------------------------------------------------------


def test_windows_lengthen_at_their_shares_of_the_budget(dataset, tmp_path, monkeypatch) -> None:
    """As many tokens in every step."""
    shapes, real = [], LanguageModel.forward

    def watched(self, ids, *arguments):
        shapes.append(tuple(ids.shape))
        return real(self, ids, *arguments)

    monkeypatch.setattr(LanguageModel, "forward", watched)
    train_tiny(dataset, tmp_path / "a", config(warmup_steps=0, lengths=STAGES))
    total, seq_len = config().batch_tokens, config().seq_len
    assert shapes == [(total // 16, 16)] * 5 + [(total // 32, 32)] * 5 + [(total // seq_len, seq_len)] * 10


def test_batches_grow_by_whole_forward_passes(dataset, tmp_path) -> None:
    settings = config(**GROWING)
    train_tiny(dataset, tmp_path / "a", settings)
    sizes = np.diff([0, *(record["tokens"] for record in records(tmp_path / "a"))]).tolist()
    linear = [256 + (settings.batch_tokens - 256) * step / 8 for step in range(8)]
    assert sizes == [int(size // 256) * 256 for size in linear] + [settings.batch_tokens] * 12
    assert sizes[0] == 256 < sizes[4] < settings.batch_tokens


def test_the_ranks_share_a_growing_batch(dataset) -> None:
    """Every rank has as many rows as the others, and together they have the batch, whatever its size."""
    settings = config(**GROWING | {"micro_batch_tokens": 128})
    for step in range(10):
        of_ranks = [Batches(settings, dataset.train, 0, Ranks(rank, 4, "cpu")) for rank in range(4)]
        shapes = {batches.shape(step=step, fraction=0.0) for batches in of_ranks}
        (shape,) = shapes
        rows = [row for batches in of_ranks for start, end in batches.micro_batches(shape) for row in range(start, end)]
        assert rows == list(range(shape.rows))
        assert all(end - start == 2 for batches in of_ranks for start, end in batches.micro_batches(shape))


def test_ranks_train_alike_while_windows_and_batches_grow(dataset, tmp_path) -> None:
    """As long as a forward pass of all ranks together is of one size: a growing batch is a number of them."""
    settings = ('train.lengths=[{"type": "LengthStage", "until": 0.5, "seq_len": 32}]',
                'train.batch_warmup={"type": "BatchWarmupConfig", "tokens": 512, "steps": 8}',
                'train.multi_token={"type": "MultiTokenConfig"}', "train.optimizer.clip_norm=null")  # fmt: skip
    for world in (1, 2):
        on_ranks(world, "pocket", dataset, tmp_path / str(world), "--steps=12", f"train.micro_batch_tokens={256 // world}", *settings)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), abs=2e-3)
    assert [r["tokens"] for r in records(tmp_path / "2")] == [r["tokens"] for r in records(tmp_path / "1")]


# --- more heads ---------------------------------------------------------------------------------------------------------------


def test_more_heads_equal_their_formula() -> None:
    model, ids, targets = random_model(CONFIGS["base"]), tokens(2, 16), tokens(2, 16, seed=1)
    loss = MultiTokenConfig(heads=2, weight=0.3).build(model)
    with torch.no_grad():
        for head in loss.heads:
            head.weight.normal_()
    value = loss(ids, targets, torch.float64)
    value.backward()
    grads = {name: p.grad.clone() for name, p in loss.named_parameters() if p.numel()}
    alone = model(ids, targets, torch.float64)  # what is logged is the next token's loss
    assert float(value.detach()) == pytest.approx(float(alone.detach()), abs=1e-12)
    loss.zero_grad()
    x = model.hidden(ids, torch.float64)
    cap = model.config.head.softcap
    own = F.cross_entropy(cap * torch.tanh(model.raw_logits(x) / cap).flatten(0, 1), targets.flatten())
    later = []
    for k, head in enumerate(loss.heads, 1):
        logits = cap * torch.tanh(x @ head.weight.double().T / cap)
        later.append(F.cross_entropy(logits[:, : 16 - k].flatten(0, 1), targets[:, k:].flatten()))
    (own + 0.3 * (later[0] + later[1]) / 2).backward()
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, loss.get_parameter(name).grad, rtol=1e-5, atol=1e-8)
        assert gradient.any()


# --- distillation -------------------------------------------------------------------------------------------------------------


def test_distillation_equals_its_formula() -> None:
    model, ids, targets = random_model(CONFIGS["base"]), tokens(2, 16), tokens(2, 16, seed=1)
    loss = DistilConfig(share=0.7, temperature=2.0).build(model)
    taught = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in model.named_parameters()}
    loss.teach(taught)
    value = loss(ids, targets, torch.float64)
    value.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.numel()}
    assert float(value.detach()) == pytest.approx(float(model(ids, targets, torch.float64).detach()), abs=1e-12)
    assert all(p.grad is None for p in loss.teacher.parameters())
    model.zero_grad()
    with torch.no_grad():
        p_BTV = (loss.teacher.logits(ids, torch.float64) / 2).softmax(-1)
    logits = model.logits(ids, torch.float64)
    kl = F.kl_div((logits / 2).log_softmax(-1).flatten(0, 1), p_BTV.flatten(0, 1), reduction="batchmean")
    (0.7 * 4 * kl + 0.3 * F.cross_entropy(logits.flatten(0, 1), targets.flatten())).backward()
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-5, atol=1e-8)


def test_distillation_takes_the_last_steps_on_new_batches_with_the_average_of_that_moment(dataset, tmp_path, monkeypatch) -> None:
    from bytefit.train.distil import Distillation

    taught, real = [], Distillation.teach

    def watched(self, weights):
        real(self, weights)
        taught.append({name: w.clone() for name, w in weights.items()})
        assert all(torch.equal(p, weights[name]) for name, p in self.teacher.named_parameters())

    monkeypatch.setattr(Distillation, "teach", watched)
    packed = train_tiny(dataset, tmp_path / "a", config(distil=DISTIL, average=EMA))
    seen = records(tmp_path / "a")
    assert [record["batch"] for record in seen] == list(range(20))
    assert [record["lr_scale"] for record in seen[16:]] == [0.2] * 4
    assert seen[15]["lr_scale"] < 0.2  # the schedule has come to its end before
    assert len(taught) == 4
    assert not same(taught[0], taught[3])  # the teacher follows the average
    assert not same(taught[3], packed)


def test_distillation_by_the_clock_ends_with_the_clock(dataset, tmp_path) -> None:
    ledger = Ledger()
    settings = config(steps=None, seconds=3.0, distil=dataclasses.replace(DISTIL, steps=8), average=EMA)
    train_tiny(dataset, tmp_path / "a", settings, ledger=ledger)
    scales = [record["lr_scale"] for record in records(tmp_path / "a")]
    last = next(i for i in range(len(scales)) if scales[i:] == [0.2] * (len(scales) - i))
    assert 1 <= len(scales) - last <= 8  # fewer than eight where their steps take longer
    assert ledger.seconds["train"] < 5.0


# --- cadence ------------------------------------------------------------------------------------------------------------------


def test_cadence_runs_the_whole_plan_at_every_third_step(dataset, tmp_path, monkeypatch) -> None:
    plans, real = [], LanguageModel.forward

    def watched(self, *arguments):
        plans.append(self.plan)
        return real(self, *arguments)

    monkeypatch.setattr(LanguageModel, "forward", watched)
    made = train_model(dataset, tmp_path / "a", CADENCE_MODEL, config(steps=8, warmup_steps=0, cadence=CADENCE))
    whole, short = CADENCE_MODEL.plan, CADENCE.plan
    assert plans == [whole, short, short, whole, short, short, whole, short]
    assert made.plan == whole


def test_with_a_cadence_a_step_takes_the_mean_over_a_cycle() -> None:
    """Two of three steps are short: what a schedule needs to know is what three take together."""
    durations = [0.3, 0.03, 0.03] * 4
    assert typical_step(durations, 3) == pytest.approx(0.12)
    assert typical_step(durations, 1) == pytest.approx(0.03)
    assert typical_step([9.0, 0.3, 0.03, 0.03, 0.3, 0.03, 0.03, 0.3], 3) == pytest.approx(0.12)  # a slow first step
    assert typical_step(durations[:4], 3) is None
    assert typical_step(durations[:6], 8) is None


def test_compiled_cadence_follows_eager(dataset, tmp_path, traced) -> None:
    """The plan changes at every step or so: the compiled graphs must be the right ones."""
    settings = config(steps=8, cadence=CADENCE)
    train_model(dataset, tmp_path / "eager", CADENCE_MODEL, settings)
    torch._dynamo.utils.counters.clear()
    train_model(dataset, tmp_path / "compiled", CADENCE_MODEL, dataclasses.replace(settings, compile=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    train_model(dataset, tmp_path / "without", CADENCE_MODEL, dataclasses.replace(settings, cadence=None))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), abs=2e-3)
    assert losses(tmp_path / "without")[2] != pytest.approx(losses(tmp_path / "eager")[2], abs=1e-5)


# --- what cannot work ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"distil": DISTIL, "average": None}, "train.distil follows the EMA"),
        ({"distil": DISTIL, "average": SNAPSHOTS}, "train.distil comes after the last snapshot"),
        ({"batch_warmup": BatchWarmupConfig(tokens=256, steps=20)}, "batch_warmup steps 20 must be fewer than train.steps 20"),
        ({"distil": DISTIL, "average": EMA, "replay": ReplayConfig()}, "train.replay and train.distil do not go together"),
        ({"distil": DISTIL, "average": EMA, "multi_token": MultiTokenConfig()}, "train.multi_token and train.distil"),
        ({"multi_token": MultiTokenConfig(heads=64)}, "multi_token heads 64 must be fewer than a window's tokens"),
        ({"lengths": (LengthStage(until=0.5, seq_len=24),)}, "seq_len 24 must lie in 2..64 and divide"),
        ({"lengths": (LengthStage(until=0.5, seq_len=128),)}, "seq_len 128 must"),
        ({"lengths": (LengthStage(until=0.5, seq_len=32), LengthStage(until=0.4, seq_len=16))}, "until 0.4 must lie between 0.5 and 1"),
        ({"lengths": (LengthStage(until=1.0, seq_len=32),)}, "until 1.0 must"),
        ({"batch_warmup": BatchWarmupConfig(tokens=10**6, steps=2)}, "batch_warmup tokens 1000000 must be below"),
    ],
)
def test_impossible_settings(changes, says) -> None:
    with pytest.raises(ValueError, match=says):
        config(**changes)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MultiTokenConfig(heads=0), "multi_token heads 0"),
        (lambda: MultiTokenConfig(weight=-1.0), "multi_token weight -1.0"),
        (lambda: DistilConfig(steps=0), "distil steps 0"),
        (lambda: DistilConfig(lr_scale=-0.1), "distil lr_scale -0.1"),
        (lambda: DistilConfig(share=1.5), "distil share 1.5"),
        (lambda: DistilConfig(temperature=0.0), "distil temperature 0.0"),
        (lambda: CadenceConfig(plan=looped_plan(2, (0,)), every=1), "cadence every 1"),
        (lambda: BatchWarmupConfig(tokens=0, steps=5), "batch_warmup tokens 0"),
    ],
)
def test_impossible_parts(make, says) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_what_only_data_and_ranks_can_tell_is_found_before_training(dataset) -> None:
    stuck = config(batch_warmup=BatchWarmupConfig(tokens=256, steps=8))  # the batch is one forward pass
    lost = config(cadence=CadenceConfig(plan=looped_plan(1, (0,))))
    for settings, says in ((stuck, "lower train.micro_batch_tokens"), (lost, "train.cadence: the plan asks for 1 loop positions")):
        with pytest.raises(UserError, match=says):
            check_before_training(dataclasses.replace(RECIPE, train=settings), dataset, ONE_RANK)


def test_the_heads_are_saved_beside_the_weights(dataset, tmp_path) -> None:
    train_tiny(dataset, tmp_path / "a", config(multi_token=MultiTokenConfig(heads=3)))
    checkpoint = load_checkpoint(tmp_path / "a" / "checkpoint")
    assert sum(name.startswith("beside.heads.") for name in checkpoint.optimizer) == 3
    assert all(tensor.any() for name, tensor in checkpoint.optimizer.items() if name.startswith("beside."))
    assert not any("heads" in name for name in checkpoint.weights)
