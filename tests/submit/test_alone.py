"""The script in an empty folder, where bytefit cannot be imported and only the record's own packages are there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bytefit.errors import CheckFailed, UserError
from bytefit.submit import alone as program
from bytefit.submit.bundle import settings_of
from bytefit.submit.closure import closure
from bytefit.submit.record import check_starts_alone
from tests.submit.conftest import CAP, SEEDS


def test_it_evaluates_to_the_same_score(record, runs, dataset, alone, tmp_path) -> None:
    for_seed = record.submission["seed_results"][str(SEEDS[0])]
    done = alone(record.script, "--evaluate", record.folder / for_seed["artifact"], "--data", dataset.folder, "--json")
    assert done.code == 0, done.err
    got, scored = json.loads(done.out), json.loads(runs[0].score.read_text())["sliding"]
    assert got["val_bpb"] == pytest.approx(scored["bits_per_byte"], rel=1e-9)
    assert got["val_bpb"] == pytest.approx(for_seed["val_bpb"], rel=1e-9)
    assert (got["score"]["targets"], got["score"]["bytes"]) == (scored["targets"], scored["bytes"])
    assert (got["bytes_code"], got["bytes_model"]) == (record.script.stat().st_size, runs[0].artifact.stat().st_size)
    assert list((tmp_path / "empty").iterdir()) == []  # nothing is written to disk
    # Every module in the script was imported, so none is there for nothing, and without any of them this would have failed.
    needed = closure("bytefit.submit.alone").sources
    places = {name.rpartition(".")[0] for name in needed} | {"bytefit"}
    assert set(done.loaded) == set(needed) | places


def test_it_trains_to_the_same_artifact(record, runs, dataset, alone, tmp_path) -> None:
    done = alone(record.script, "--data", dataset.folder, "--seed", SEEDS[1])
    assert done.code == 0, done.err
    folder = tmp_path / "empty" / f"run_seed{SEEDS[1]}"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 8
    assert (folder / "model.bytefit").read_bytes() == runs[1].artifact.read_bytes()
    assert f"val_bpb: {record.submission['seed_results'][str(SEEDS[1])]['val_bpb']:.8f}" in done.out


def test_nothing_is_taken_from_anywhere_else(record, tmp_path) -> None:
    """A script that lacks a module does not start, even where bytefit is installed, as it is here."""
    unpacked = tmp_path / "unpacked"
    *lines, last = record.script.read_text().splitlines(keepends=True)
    assert last == "start(__file__, payload)\n"
    space: dict = {"__name__": "test"}
    exec("".join(lines), space)
    packed = json.loads(space["bz2"].decompress(space["base64"].b85decode(space["payload"])))
    memory = space["Memory"](record.script, packed["sources"])
    memory.unpack(unpacked)
    files = {str(path.relative_to(unpacked)): path.read_text() for path in unpacked.rglob("*.py")}
    assert files == {memory.place(name): text for name, text in packed["sources"].items()}
    del memory.sources["bytefit.score.windows"]
    for missing in ("bytefit.score.windows", "bytefit.cli", "bytefit.nowhere"):
        with pytest.raises(ModuleNotFoundError, match=f"train_gpt.py holds no module {missing}"):
            memory.find_spec(missing, None)
    assert memory.find_spec("numpy", None) is None
    assert memory.find_spec("bytefit.score.tape", None).loader is memory
    assert memory.get_source("bytefit.score") == ""
    less = tmp_path / "train_gpt.py"
    payload = space["base64"].b85encode(space["bz2"].compress(json.dumps(packed).encode())).decode()
    less.write_text("".join([*lines[:-1], f'payload = "{payload}"\n', last]))
    with pytest.raises(CheckFailed, match=r"it says: ModuleNotFoundError: train_gpt\.py holds no module bytefit\.score\.windows"):
        check_starts_alone(less)


def test_unpacking_needs_no_package(record, tmp_path) -> None:
    """What a reviewer does first; torch need not be there."""
    subprocess.run([sys.executable, "-I", "-S", str(record.script), "--unpack", str(tmp_path / "code")], check=True)
    names = {str(path.relative_to(tmp_path / "code")) for path in (tmp_path / "code").rglob("*.py")}
    assert {"bytefit/submit/alone.py", "bytefit/train/loop.py", "bytefit/score/scorer.py"} <= names


def test_its_own_errors(runs, dataset, tmp_path, capsys) -> None:
    recipe = runs[0].read_recipe()
    script = tmp_path / "train_gpt.py"
    settings = {"recipe": settings_of(recipe), "score_dtype": "float32"}
    arguments = ["--evaluate", str(runs[0].artifact), "--data", str(dataset.folder)]
    script.write_bytes(b"#" * (CAP - runs[0].artifact.stat().st_size + 7))
    with pytest.raises(CheckFailed, match=r"^7 bytes over the cap of 100,000$"):
        program.main(script, settings, arguments)
    assert "100,007 of 100,000" in capsys.readouterr().out
    script.write_bytes(b"#" * CAP)
    with pytest.raises(UserError, match="100,352 of code leave nothing of budget_bytes 100,000"):
        program.main(script, settings, ["--data", str(dataset.folder), "--out", str(tmp_path / "run")])
    with pytest.raises(UserError, match="data/datasets/fineweb10B_sp1024 is not a folder"):
        program.main(script, settings, [])
