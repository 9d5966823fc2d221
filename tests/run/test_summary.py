"""What a run's summary says of itself."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal

import pytest
import torch

from bytefit.cli import main
from bytefit.errors import UserError
from bytefit.optim.schedule import lr_scale
from bytefit.ranks import Ranks
from bytefit.report.headline import figures
from bytefit.report.scoreboard import scoreboard
from bytefit.run import folder as folder_module
from bytefit.run import steps
from bytefit.run.folder import RunFolder, claimed, open_run
from bytefit.run.pipeline import run
from bytefit.train import loop
from bytefit.train.machine import describe_machine
from tests.conftest import ONE_RANK


def test_steps_one_by_one_leave_what_a_run_leaves(dataset, tmp_path, capsys) -> None:
    """`train`, `pack`, `score`, `prove`, `report`: every second has its entry, and the audit finds them."""
    out = tmp_path / "run"
    words = ("pocket", "--size", "tiny", "--steps", "12", "--data", str(dataset.folder), "--out", str(out))
    for verb in (["train", *words], ["pack", str(out)], ["score", str(out)], ["prove", str(out)], ["report", str(out)]):
        assert main(verb) == 0
    folder = RunFolder(out)
    before = folder.summary.read_bytes()
    assert main(["run", *words, "--resume"]) == 0  # finds nothing left to do
    assert folder.summary.read_bytes() == before
    first = json.loads(folder.summary.read_text())["ledger"]
    assert {"train", "calibrate", "fit", "score", "prove"} <= first.keys()
    assert main(["audit", str(out)]) == 0
    seconds = json.loads(folder.ledger.read_text())
    folder.ledger.write_text(json.dumps(seconds | {"fit": 1000.0, "prove": 1000.0, "score": 1000.0}))
    assert main(["pack", str(out), "--bytes", "15000"]) == 0
    assert main(["run", *words, "--resume", "--bytes", "15000"]) == 0
    assert "packing, scoring and proving again" not in capsys.readouterr().err
    again = json.loads(folder.summary.read_text())
    assert again["artifact_bytes"] <= 15_000
    assert again["ledger"]["train"] == first["train"]
    assert max(again["ledger"].values()) < 900  # of these steps, not of those before


def test_scoring_a_run_again_brings_its_summary_up_to_date(tiny_run, tmp_path) -> None:
    folder = RunFolder(shutil.copytree(tiny_run.path, tmp_path / "run"))
    assert main(["audit", str(folder.path)]) == 0
    assert main(["report", str(folder.path)]) == 0
    audited = re.compile(r"\d+ pass")
    assert audited.search(folder.report.read_text())
    summary = json.loads(folder.summary.read_text())
    folder.summary.write_text(json.dumps(summary | {"val_bpb_full": 9.0, "proof_restored": False}))
    assert main(["score", str(folder.path)]) == 0
    assert json.loads(folder.summary.read_text())["val_bpb_full"] == summary["val_bpb_full"]
    assert not folder.audit.exists()
    assert not audited.search(folder.report.read_text())  # it was of the files before
    assert main(["prove", str(folder.path)]) == 0
    assert json.loads(folder.summary.read_text())["proof_restored"] is True


def test_a_score_aside_leaves_the_progress_of_the_runs_own_alone(tiny_run, tmp_path) -> None:
    folder = RunFolder(shutil.copytree(tiny_run.path, tmp_path / "run"))
    own, aside = folder.path / ".score_full.12345678.progress", folder.path / ".aside_full.12345678.progress"
    for path in (own, aside):
        path.write_bytes(b"of an earlier process")
    assert main(["score", str(folder.path), "--bytes", "1000"]) == 0
    assert own.exists()
    assert not list(folder.path.glob(".aside_*"))
    assert main(["score", str(folder.path)]) == 0
    assert not list(folder.path.glob(".*.progress"))


def test_a_score_is_in_the_dtype_that_training_found(tiny_run, tmp_path, monkeypatch) -> None:
    """Timed anew, a score that was stopped might find the other one, and begin again. On other hardware it is timed."""
    folder = RunFolder(shutil.copytree(tiny_run.path, tmp_path / "run"))
    state_path = folder.checkpoint / "state.json"
    state = json.loads(state_path.read_text())
    found = getattr(torch, state["dtype"])
    other = torch.float32 if found is torch.bfloat16 else torch.bfloat16
    monkeypatch.setattr(steps, "resolve_dtype", lambda name, device: other)
    assert main(["score", str(folder.path), "--bytes", "1000"]) == 0
    recipe = folder.read_recipe()
    assert recipe.train.dtype == "auto"
    assert steps._scoring_dtype(folder, recipe, ONE_RANK) is found

    class BesideAnotherMachine(Ranks):
        """Of two ranks the one whose machine trained: what the other one measures it takes part in."""

        def any(self, flag: bool) -> bool:
            return True

    assert steps._scoring_dtype(folder, recipe, BesideAnotherMachine(0, 1, "cpu")) is other
    state_path.write_text(json.dumps(state | {"machine": state["machine"] | {"cpu": "another"}}))
    assert steps._scoring_dtype(folder, recipe, ONE_RANK) is other


def test_a_proof_that_does_not_hold_is_shown_and_ends_with_1(tiny_run, dataset, tmp_path, capsys) -> None:
    folder = RunFolder(shutil.copytree(tiny_run.path, tmp_path / "run"))
    proof = json.loads(folder.proof.read_text())
    folder.proof.write_text(json.dumps(proof | {"holds": False, "restored": False}))
    words = ["run", "pocket", "--size", "tiny", "--data", str(dataset.folder), "--out", str(folder.path), "--resume", "--json"]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["proof_restored"] is False
    assert "the proof did not hold" in shown.err


def test_a_folder_has_one_run_at_a_time(tiny_run, dataset, tmp_path, capsys) -> None:
    out = shutil.copytree(tiny_run.path, tmp_path / "run")
    words = ["pocket", "--size", "tiny", "--data", str(dataset.folder), "--out", str(out), "--resume"]
    with claimed(out):
        for verb in ("run", "train"):
            assert main([verb, *words]) == 2
            assert f"another process is at work in {out}" in capsys.readouterr().err
    assert main(["train", *words]) == 0


def test_asked_to_end_it_ends_as_by_ctrl_c(dataset, tmp_path, capsys, monkeypatch) -> None:
    """Wherever it is: a score keeps its progress on KeyboardInterrupt."""
    before = signal.getsignal(signal.SIGTERM)

    def asked(*arguments, **options) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr("bytefit.cli.runs.run", asked)
    assert main(["run", "pocket", "--size", "tiny", "--data", str(dataset.folder), "--out", str(tmp_path / "run")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_of_an_earlier_version_goes_on(tiny_run, dataset, tmp_path) -> None:
    """Its files lack the settings that have come since, which are off, and the count of tokens."""
    folder = RunFolder(shutil.copytree(tiny_run.path, tmp_path / "run"))
    recipe, state_path = json.loads(folder.recipe.read_text()), folder.checkpoint / "state.json"
    for name in ("trigram", "loop_positions"):
        assert recipe["model"].pop(name) is None
    for name in ("lengths", "batch_warmup", "multi_token", "distil", "cadence"):
        assert recipe["train"].pop(name) is None
    assert [step.pop("position") for step in recipe["model"]["plan"]] == [None] * len(recipe["model"]["plan"])
    folder.recipe.write_text(json.dumps(recipe))
    state = json.loads(state_path.read_text())
    tokens = state["position"].pop("tokens")
    state_path.write_text(json.dumps(state))
    folder.summary.unlink()
    words = ["run", "pocket", "--size", "tiny", "--data", str(dataset.folder), "--out", str(folder.path), "--resume"]
    assert main(words) == 0
    assert json.loads(folder.summary.read_text())["tokens_seen"] == tokens == state["step"] * recipe["train"]["batch_tokens"]
    assert main([*words, "--set", "model.dim=24"]) == 2


def test_a_run_that_went_on_elsewhere_names_both_machines(dataset, tmp_path) -> None:
    out = tmp_path / "run"
    words = ["run", "pocket", "--size", "tiny", "--steps", "12", "--data", str(dataset.folder), "--out", str(out)]
    here, calls = describe_machine(), []

    def stop_at_5(*arguments) -> float:
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return lr_scale(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "lr_scale", stop_at_5)
        assert main(words) == 130
    elsewhere = here | {"gpu": "a large one", "ranks": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "describe_machine", lambda ranks: elsewhere)
        assert main([*words, "--resume"]) == 0
    summary = json.loads(RunFolder(out).summary.read_text())
    assert (summary["hardware"]["gpu"], summary["hardware"]["ranks"]) == ("a large one", 8)
    (earlier,) = summary["earlier_hardware"]
    assert (earlier["gpu"], earlier["ranks"]) == (here["gpu"], 1)
    assert 5 <= earlier["until_step"] <= 7
    assert main(["audit", str(out)]) == 0
    assert "before that on" in RunFolder(out).audit.read_text()


def test_the_hardware_is_what_trained(tiny_run, tmp_path) -> None:
    """A model trained on a GPU may be packed and scored on a laptop; its seconds are the GPU's."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(tiny_run.path, folder.path)
    state = folder.checkpoint / "state.json"
    record = json.loads(state.read_text())
    record["machine"] |= {"gpu": "a large one", "threads": 7}
    state.write_text(json.dumps(record))
    run(tiny_run.read_recipe(), data=None, out=folder.path, resume=True, ranks=ONE_RANK)
    summary = json.loads(folder.summary.read_text())
    assert (summary["hardware"]["gpu"], summary["hardware"]["threads"]) == ("a large one", 7)
    assert (summary["dtype"], summary["muon_dtype"]) == (record["dtype"], record["muon_dtype"])


def test_a_run_that_was_stopped_while_its_folder_was_made_goes_on(tiny_run, dataset, tmp_path, monkeypatch) -> None:
    recipe, out, real, written = tiny_run.read_recipe(), tmp_path / "run", folder_module.write_json, []

    def full(path, record) -> None:
        if written:
            raise UserError("no space left")
        written.append(path.name)
        real(path, record)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "write_json", full)
        with pytest.raises(UserError, match="no space left"):
            open_run(out, recipe, dataset, resume=False)
    folder = open_run(out, recipe, dataset, resume=True)
    assert written == ["recipe.json"]
    assert json.loads(folder.env.read_text())["dataset_sha256"] == dataset.sha256


def test_a_run_taken_up_with_another_budget_says_what_it_makes_again(tiny_run, dataset, tmp_path, capsys) -> None:
    folder = RunFolder(shutil.copytree(tiny_run.path, tmp_path / "run"))
    recipe = folder.read_recipe()
    other = dataclasses.replace(recipe, pack=dataclasses.replace(recipe.pack, budget_bytes=15_000))
    open_run(folder.path, other, dataset, resume=True)
    said = capsys.readouterr().err
    assert f"pack.budget_bytes is {recipe.pack.budget_bytes}, not 15000: packing, scoring and proving again" in said
    assert not folder.pack.exists()


def test_a_scoreboard_counts_the_code_and_rings_no_bell(tiny_run) -> None:
    summary = json.loads(tiny_run.summary.read_text())
    text = scoreboard(summary | {"code_bytes": 1000, "artifact_bytes": 5000, "budget_bytes": 8000, "sample": "a\x07b\x0bc\nd"})
    assert "bytes: 5,000 and 1,000 for the code of 8,000 (75.00%, 2,000 left)" in text
    assert "  | a\ufffdb\ufffdc\n  | d\n" in text
    assert "bytes, and 1,000 for the code, of 8,000 (75.00%)" in [
        what
        for _, what in figures(
            summary
            | {
                "code_bytes": 1000,
                "artifact_bytes": 5000,
                "budget_bytes": 8000,
            }
        )
    ]
