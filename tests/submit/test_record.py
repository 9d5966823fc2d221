"""The record folder: its files and figures, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest

from bytefit.audit.checklist import audit
from bytefit.cli import main
from bytefit.data.build import build_dataset, split_documents
from bytefit.data.tokenizer import TokenizerConfig
from bytefit.errors import CheckFailed
from bytefit.run import pipeline
from bytefit.run.folder import RunFolder
from bytefit.submit.bundle import script_for, settings_of
from bytefit.submit.record import check_starts_alone
from tests.conftest import ONE_RANK
from tests.submit.conftest import AUTHOR, CAP, SEEDS

KEYS = """
    author github_id name blurb date val_loss val_bpb val_bpb_std pre_quant_val_loss pre_quant_val_bpb step_stop wallclock_seconds
    eval_seconds bytes_total bytes_code bytes_model bytes_cap seeds seed_results recipe size num_parameters protocol score_dtype
    dataset_sha256 tokenizer hardware packages
""".split()


def edit(path: Path, change) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.fixture
def copies(runs, tmp_path) -> list[RunFolder]:
    """The two runs, to be changed."""
    return [RunFolder(Path(shutil.copytree(run.path, tmp_path / run.path.name))) for run in runs]


def refused(runs, tmp_path, capsys) -> tuple[int, str]:
    """Exit code and message of a submission that must not be made."""
    out = tmp_path / "record"
    code = main(["submit", *(str(run.path) for run in runs), "--out", str(out), *AUTHOR])
    assert [path for path in tmp_path.iterdir() if "record" in path.name] == []
    return code, capsys.readouterr().err.strip().splitlines()[-1]


def test_the_folder(record) -> None:
    models, logs = ({f"{kind}_seed{seed}.{end}" for seed in SEEDS} for kind, end in (("model", "bytefit"), ("train", "log")))
    others = {"train_gpt.py", "submission.json", "recipe.json", "requirements.txt", "README.md"}
    assert {path.name for path in record.folder.iterdir()} == models | logs | others
    packages = dict(line.split("==") for line in (record.folder / "requirements.txt").read_text().splitlines())
    assert record.submission["packages"].keys() == packages.keys()


def test_bytes_are_those_of_the_files(record, runs) -> None:
    sizes = {path.name: path.stat().st_size for path in record.folder.iterdir()}
    found = record.submission
    assert found["bytes_code"] == sizes["train_gpt.py"]
    for seed, run in zip(SEEDS, runs, strict=True):
        mine = found["seed_results"][str(seed)]
        assert mine["bytes_model"] == sizes[mine["artifact"]] == run.artifact.stat().st_size
        assert mine["bytes_total"] == sizes["train_gpt.py"] + mine["bytes_model"] <= CAP
    assert found["bytes_total"] == max(mine["bytes_total"] for mine in found["seed_results"].values())
    assert 0.995 * CAP < found["bytes_total"] <= found["bytes_cap"] == CAP
    assert (record.folder / "train_gpt.py").read_bytes() == script_for(runs[0].read_recipe(), "float32")


def test_submission_json(record, runs) -> None:
    found = record.submission
    assert list(found) == KEYS
    scores = [json.loads(run.score.read_text()) for run in runs]
    bpb = [score["sliding"]["bits_per_byte"] for score in scores]
    assert found["val_bpb"] == pytest.approx(fmean(bpb), rel=1e-12)
    assert found["val_bpb_std"] == pytest.approx(stdev(bpb), rel=1e-9)
    assert found["val_loss"] == pytest.approx(fmean(s["sliding"]["nats"] / s["sliding"]["targets"] for s in scores), rel=1e-12)
    assert found["pre_quant_val_bpb"] == pytest.approx(fmean(s["float_full"]["bits_per_byte"] for s in scores), rel=1e-12)
    assert (found["author"], found["github_id"], found["name"]) == ("A. Name", "aname", "A tiny record")
    assert found["seeds"] == list(SEEDS)
    for seed, score in zip(SEEDS, scores, strict=True):
        mine = found["seed_results"][str(seed)]
        assert mine["eval_seconds"] == score["sliding"]["seconds"]
        assert mine["artifact_sha256"] == score["artifact_sha256"]
        assert mine["audit"]["fail"] == []
        assert sum(map(len, mine["audit"].values())) == 40
        assert mine["proof"]["restored"] is True
    assert json.loads((record.folder / "recipe.json").read_text()) == settings_of(runs[0].read_recipe())


def test_readme_and_logs(record, runs) -> None:
    page, found = (record.folder / "README.md").read_text(), record.submission
    assert page.startswith("# A tiny record\n")
    assert f"**{found['val_bpb']:.5f} bits per byte** (mean of 2 seeds, sample standard deviation {found['val_bpb_std']:.5f})" in page
    for seed, run in zip(SEEDS, runs, strict=True):
        mine = found["seed_results"][str(seed)]
        assert f"| {seed} | {mine['val_bpb']:.5f} | {mine['val_loss']:.5f} |" in page
        assert f"--evaluate model_seed{seed}.bytefit" in page
        assert f"train_gpt.py --data DIR --seed {seed} " in page
        log = (record.folder / f"train_seed{seed}.log").read_text().splitlines()
        steps = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        assert [line for line in log if line.startswith("step:")] == [
            " ".join(f"{key}:{value}" for key, value in step.items()) for step in steps
        ]
        assert sum("  pass  " in line for line in log) == len(mine["audit"]["pass"])
        assert any(line.startswith(f"score sliding bits_per_byte:{mine['val_bpb']}") for line in log)
    assert f"{found['bytes_code']:,} (`train_gpt.py`" in page
    assert "| `model.mlp` | `ReluSquaredConfig(width=2.0, slope=0.0)` |" in page
    assert "| `pack.quant.mlp` | as `pack.quant.table` |" in page
    assert page.count("29 pass, 0 fail, 11 not applicable") == len(SEEDS)
    for package, version in found["packages"].items():
        assert f"- `{package}` {version}: " in page


def test_an_existing_folder_is_not_overwritten(runs, tmp_path, capsys) -> None:
    (tmp_path / "taken").mkdir()
    assert main(["submit", str(runs[0].path), "--out", str(tmp_path / "taken"), *AUTHOR]) == 2
    assert "taken exists; choose another --out" in capsys.readouterr().err
    assert list((tmp_path / "taken").iterdir()) == []


def test_over_the_cap(copies, tmp_path, capsys) -> None:
    """The code's bytes count, and the message says how many are too many, and what an artifact may take."""
    sizes = [run.artifact.stat().st_size for run in copies]
    cap = 90_001
    for copy in copies:
        edit(copy.recipe, lambda recipe: recipe["pack"].update(budget_bytes=cap, code_bytes=0))
    code_bytes = len(script_for(copies[0].read_recipe(), "float32"))
    code, said = refused(copies, tmp_path, capsys)
    assert code == 1
    for seed, size in zip(SEEDS, sizes, strict=True):
        assert f"seed {seed} is {code_bytes + size - cap:,} bytes over ({code_bytes:,} of code + {size:,} of artifact)" in said
    assert f"an artifact may take {cap - code_bytes:,}: give the run's own command again with --resume --count-code" in said
    for copy in copies:
        edit(copy.recipe, lambda recipe: recipe["pack"].update(budget_bytes=30_000))
    code, said = refused(copies, tmp_path, capsys)
    assert code == 1
    assert said.endswith("the code alone takes more than that: choose a larger --bytes")


def test_room_is_made_in_a_finished_run(copies, dataset) -> None:
    """Packed, scored and proven again, not trained again; its audit holds."""
    folder = copies[0]
    before, recipe = json.loads(folder.ledger.read_text()), folder.read_recipe()
    smaller = replace(recipe, pack=replace(recipe.pack, code_bytes=recipe.pack.code_bytes + 1000))
    summary = pipeline.run(smaller, data=None, out=folder.path, resume=True, ranks=ONE_RANK)
    assert summary["artifact_bytes"] == folder.artifact.stat().st_size <= smaller.pack.artifact_bytes
    after = json.loads(folder.ledger.read_text())
    assert (after["train"], after["calibrate"]) == (before["train"], before["calibrate"])
    assert [finding for finding in audit(folder, dataset) if finding.verdict == "fail"] == []


def test_a_run_whose_audit_fails(copies, tmp_path, capsys) -> None:
    edit(copies[1].score, lambda score: score.update(artifact_sha256="0" * 64))
    code, said = refused(copies[1:], tmp_path, capsys)
    assert code == 1
    assert f"the audit of {copies[1].path} fails (30: other bytes counted than those that are executed)" in said


def another_stride(run: RunFolder) -> None:
    edit(run.recipe, lambda recipe: recipe["score"].update(stride=16))


def another_dtype(run: RunFolder) -> None:
    edit(run.score, lambda score: score["sliding"].update(dtype="bfloat16"))


def the_first_seed(run: RunFolder) -> None:
    edit(run.recipe, lambda recipe: recipe.update(seed=SEEDS[0]))


def without_a_summary(run: RunFolder) -> None:
    run.summary.unlink()


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (another_stride, "a record is one recipe with several seeds; .*: score.stride is 16, not 32"),
        (another_dtype, "made in one dtype; .*: bfloat16, not float32"),
        (the_first_seed, "a record's seeds differ; seed 1 is there 2 times"),
        (without_a_summary, "has no summary.json yet; finish it with: bytefit run"),
    ],
)
def test_runs_that_are_no_record(copies, plant, message, tmp_path, capsys) -> None:
    plant(copies[1])
    code, said = refused(copies, tmp_path, capsys)
    assert code == 2
    assert re.search(message, said)


def test_runs_on_two_datasets(copies, documents, tmp_path, capsys) -> None:
    other = build_dataset(split_documents(documents[:100], 0.1, None), tmp_path / "other", TokenizerConfig(vocab_size=320))
    edit(copies[1].env, lambda env: env.update(data=str(other)))
    code, said = refused(copies, tmp_path, capsys)
    assert code == 2
    assert "a record is on one dataset" in said


def test_a_script_that_does_not_start_is_seen(write) -> None:
    with pytest.raises(CheckFailed, match="does not start alone; it says: ModuleNotFoundError: No module named 'nowhere'"):
        check_starts_alone(write("train_gpt.py", "import nowhere\n"))
