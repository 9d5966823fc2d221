"""The benchmark of GPUs, as far as it can be tried without one: what its check of arithmetic catches, how it starts runs, what it keeps."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bytefit.model import attention
from bytefit.recipes import SYSTEMS, find_recipe
from bytefit.run.steps import fit_recipe_to

ATTEND = attention.attend


def to_the_future_too(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.size(1) != k.size(1)).transpose(1, 2)


BROKEN = {
    "none": lambda q, k, v: 0 * ATTEND(q, k, v),
    "to the future": to_the_future_too,
    "random": lambda q, k, v: 0 * ATTEND(q, k, v) + 0.1 * torch.randn_like(q),
    "another scale": lambda q, k, v: ATTEND(0.8 * q, k, v),
    "nothing at the last position": lambda q, k, v: torch.cat([ATTEND(q, k, v)[:, :-1], torch.zeros_like(q[:, -1:])], dim=1),
}


@pytest.fixture
def case():
    """A model whose every part matters, tokens, and what it computes in fp32."""
    from agreement import model_that_matters, outputs

    def of(name: str):
        recipe = find_recipe(name, "tiny")
        model = model_that_matters(recipe)
        tokens = torch.randint(recipe.model.vocab_size, (2, recipe.train.seq_len + 1))
        return model, tokens, outputs(model, tokens, torch.float32)

    return of


@pytest.mark.parametrize("name", SYSTEMS)
def test_other_arithmetic_passes(case, monkeypatch, name) -> None:
    from agreement import LIMITS, agrees, outputs

    model, tokens, reference = case(name)
    in_bf16 = outputs(model, tokens, torch.bfloat16).errors(reference)
    assert all(0 < error < LIMITS["bfloat16"] / 2 for error in in_bf16.values()), in_bf16
    monkeypatch.setattr(attention, "attend", attention.attend_explicit)  # which fp32 does not take by itself
    in_fp32 = outputs(model, tokens, torch.float32).errors(reference)
    assert all(0 < error < LIMITS["float32"] / 10 for error in in_fp32.values()), in_fp32
    assert agrees({"float32": in_fp32, "bfloat16": in_bf16, "bfloat16 compiled": in_bf16})


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", ["baseline", "pr693", "pr1171"])
def test_a_broken_model_is_caught_in_any_arithmetic(case, monkeypatch, name, how) -> None:
    from agreement import LIMITS, outputs

    model, tokens, reference = case(name)
    monkeypatch.setattr(attention, "attend", BROKEN[how])
    for dtype in (torch.float32, torch.bfloat16):
        errors = outputs(model, tokens, dtype).errors(reference)
        assert all(error > LIMITS["bfloat16"] for error in errors.values()), errors


def test_a_wrong_backward_pass_is_caught(case, monkeypatch) -> None:
    from agreement import LIMITS, outputs

    model, tokens, reference = case("pr578")
    monkeypatch.setattr(attention, "attend", lambda q, k, v: ATTEND(q, k.detach(), v))
    errors = outputs(model, tokens, torch.float32).errors(reference)
    assert errors["logits"] < LIMITS["float32"]
    assert errors["gradient"] > LIMITS["bfloat16"]


def test_where_nothing_compiles_the_rest_is_compared(dataset, monkeypatch, capsys) -> None:
    import agreement
    from torch._inductor.exc import InductorError

    real = agreement.outputs

    def outputs(model, tokens, dtype, *, compiled=False):
        if compiled:
            raise InductorError(RuntimeError("no compiler here"), None)
        return real(model, tokens, dtype)

    monkeypatch.setattr(agreement, "outputs", outputs)
    recipe = fit_recipe_to(find_recipe("pr578", "tiny"), dataset, tell=False)
    found = agreement.agreement(recipe, dataset, "cpu")
    assert found.keys() == {"float32", "bfloat16"}
    assert agreement.agrees(found)
    assert "no compiler here" in capsys.readouterr().err


def test_what_is_no_number_does_not_agree() -> None:
    from agreement import agrees

    assert agrees({"bfloat16": {"logits": 0.01, "gradient": 0.01}})
    assert not agrees({"bfloat16": {"logits": 0.01, "gradient": float("nan")}})


class Runs:
    """In place of ``python -m bytefit``: writes what the benchmark reads; ``fails`` leaves no summary."""

    def __init__(self):
        self.commands, self.fails, self.trained = [], False, []

    def __call__(self, command, **_):
        self.commands.append(command)
        path = Path(command[command.index("--out") + 1])
        (path / "checkpoint").mkdir(parents=True, exist_ok=True)
        if "train" in command:
            lines = [json.dumps({"step": step, "seconds": 0.5 * step}) for step in range(1, 4)]
            (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
            return None
        if not (path / "model.bytefit").exists():
            self.trained.append(path.name)
            (path / "model.bytefit").touch()
        (path / "checkpoint" / "state.json").write_text('{"peak_memory_bytes": 1024, "compiled": true}')
        if not self.fails:
            (path / "summary.json").write_text(json.dumps({"val_bpb": 2.0, "artifact_bytes": 7, "at": len(self.commands)}))
        return subprocess.CompletedProcess(command, self.fails)


@pytest.fixture
def runs(monkeypatch):
    import gpu

    made = Runs()
    monkeypatch.setattr(gpu.subprocess, "run", made)
    monkeypatch.setattr(gpu, "agreement", lambda *_: {"float32": {"logits": 0.0}})
    monkeypatch.setattr(gpu, "apart", lambda do, *arguments: do(*arguments))
    monkeypatch.setattr(gpu, "audited", lambda folder: {"fail": []})
    return made


@pytest.fixture
def measure(dataset, tmp_path):
    import gpu

    def one(**changed):
        settings = {"size": "tiny", "seed": 1, "gpus": 1, "resume": False, "set": [], "runs": tmp_path, "data": dataset.folder}
        settings |= {"seconds": 60.0, "timed_steps": 2, "max_bytes": 9, "proof_bytes": 0}
        options = argparse.Namespace(**settings | changed)
        return gpu.measure("pr578", options, dataset, "cpu", {"commit": "c" * 40})

    return one


def test_several_gpus_are_several_processes(runs, measure) -> None:
    row = measure(gpus=8)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "8", "-m", "bytefit"]
    assert [command[: len(torchrun) + 1] for command in runs.commands] == [[*torchrun, "train"], [*torchrun, "run"]]
    assert row["gpus"] == 8
    assert row["command"].startswith("python -m torch.distributed.run --standalone --nproc-per-node 8 -m bytefit run pr578 ")
    measure()
    assert [command[:4] for command in runs.commands[2:]] == [[sys.executable, "-m", "bytefit", verb] for verb in ("train", "run")]


def test_a_resumed_call_keeps_runs_and_their_lengths(runs, measure) -> None:
    first, second, third = measure(), measure(resume=True), measure()
    verbs = [command[3] for command in runs.commands]
    assert verbs == ["train", "run", "run", "train", "run"]  # the second call takes the first one's milliseconds
    assert len(runs.trained) == 2
    assert first["command"] == second["command"] == third["command"]
    assert [row["summary"]["at"] for row in (first, second, third)] == [2, 3, 5]


def test_a_run_that_failed_does_not_hand_on_an_earlier_summary(runs, measure) -> None:
    measure()
    runs.fails = True
    with pytest.raises(RuntimeError, match="before it had a summary"):
        measure(resume=True)


def test_nothing_is_trained_where_the_arithmetic_is_wrong(runs, measure, monkeypatch) -> None:
    import gpu

    monkeypatch.setattr(gpu, "agreement", lambda *_: {"bfloat16": {"logits": 0.3}})
    with pytest.raises(RuntimeError, match="does not compute what the CPU does"):
        measure()
    assert not runs.commands


def test_torchrun_is_refused(monkeypatch) -> None:
    import gpu

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--data", "web", "--anywhere"])
    with pytest.raises(SystemExit, match=r"^start this without torchrun: --gpus N .*$"):
        gpu.main()


def test_calls_for_one_recipe_share_a_file(dataset, tmp_path, monkeypatch, capsys) -> None:
    import gpu

    def measured(name, options, *_):
        row = {"recipe": name, "size": options.size, "seed": options.seed, "gpus": options.gpus, "mfu": None, "seconds": options.seconds}
        assert name != "pr128", "a fault that nobody foresaw"
        row |= {"tokens_per_second": 1e6, "milliseconds_a_step": 5.0, "peak_memory_bytes": 2**30, "compiled": name == "pr693"}
        return row | {"summary": {"val_bpb": 2.0, "artifact_bytes": 7}}

    monkeypatch.setattr(gpu, "measure", measured)
    out = tmp_path / "gpu.jsonl"
    for recipe, seconds, others in (("pr578", 1, []), ("pr693", 2, []), ("pr578", 3, []), ("pr578", 4, ["--gpus", "8"])):
        words = ["--data", str(dataset.folder), "--anywhere", "--out", str(out), "--recipes", recipe, "--seconds", str(seconds), *others]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
        gpu.main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["recipe"], row["gpus"], row["seconds"]) for row in rows] == [("pr693", 1, 2), ("pr578", 1, 3), ("pr578", 8, 4)]
    said = capsys.readouterr().err
    assert "MFU unknown" in said  # of a GPU whose name says no rate
    assert said.count("trained eagerly") == 3
    words = ["--data", str(dataset.folder), "--anywhere", "--out", str(out), "--recipes", "pr128", "pr693"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    with pytest.raises(SystemExit, match=r"^not measured: pr128$"):
        gpu.main()
    assert len(out.read_text().splitlines()) == 3  # pr693 anew, after pr128


def test_what_comes_before_training_is_measured_apart() -> None:
    import gpu

    assert gpu.apart(os.getpid) != os.getpid()
