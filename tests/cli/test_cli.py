from __future__ import annotations

import argparse
import io
import json
import os

import pytest
import torch

from bytefit.artifact.load import load_artifact
from bytefit.cli import build_parser, main
from bytefit.cli.options import show_result
from bytefit.cli.verbs import VERBS
from bytefit.recipes import find_recipe

SUMMARY_KEYS = """
    recipe size seed val_bpb val_bpb_float val_bpb_full val_bpb_sliding val_bpb_adapted artifact_bytes budget_bytes bytes_by_part
    num_parameters steps tokens_seen train_seconds ledger proof_bytes_in proof_bytes_out proof_restored compressors_bpb tokenizer
    dataset_sha256 hardware versions
""".split()
RUN_FILES = """
    recipe.json env.json metrics.jsonl checkpoint model.bytefit score.json proof.json details.json summary.json report.html
""".split()


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_run_folder_holds_the_contract(tiny_run) -> None:
    names = {path.name for path in tiny_run.path.iterdir()}
    assert set(RUN_FILES) <= names
    summary = json.loads(tiny_run.summary.read_text())
    assert set(SUMMARY_KEYS) <= set(summary)
    assert summary["artifact_bytes"] == tiny_run.artifact.stat().st_size <= 20_000
    assert summary["proof_restored"] is True
    assert summary["val_bpb"] == summary["val_bpb_sliding"]
    assert summary["val_bpb_full"] == pytest.approx(summary["val_bpb_float"], rel=0.1)
    assert set(summary["compressors_bpb"]) == {"zlib-9", "bz2-9", "xz-9e", "zstd-22", "brotli-11"}
    assert sum(summary["bytes_by_part"].values()) == summary["artifact_bytes"]


def test_resume_of_a_finished_run_changes_nothing(tiny_run, dataset, capsys) -> None:
    before = {
        path.name: path.read_bytes() for path in tiny_run.path.glob("*.json") if path.name in ("score.json", "proof.json", "pack.json")
    }
    code, out, _ = run(capsys, "run", "pocket", "--size", "tiny", "--data", dataset.folder, "--out", tiny_run.path, "--resume")
    assert code == 0
    assert "val_bpb: " in out
    assert "it says:" in out
    assert all((tiny_run.path / name).read_bytes() == data for name, data in before.items())


def test_verbs_on_an_artifact(tiny_run, dataset, tmp_path, capsys) -> None:
    artifact = tiny_run.artifact
    code, out, _ = run(capsys, "score", artifact, "--data", dataset.folder, "--protocol", "full", "--json")
    assert code == 0
    score = json.loads(out.splitlines()[-1])
    assert score["bytes"] == dataset.record["splits"]["val"]["raw_bytes"]
    _, out, _ = run(capsys, "score", artifact, "--data", dataset.folder, "--protocol", "sliding", "--stride", "8", "--json")
    sliding = json.loads(out.splitlines()[-1])
    assert sliding["protocol"] == {"type": "Sliding", "window": 64, "stride": 8, "contest": False}
    assert sliding["bytes"] == score["bytes"]
    assert sliding["bits_per_byte"] != score["bits_per_byte"]
    code, out, _ = run(capsys, "prove", artifact, "--data", dataset.folder, "--bytes", "1500", "--json")
    assert code == 0
    assert json.loads(out)["restored"] is True
    texts = [tmp_path / "a.txt", tmp_path / "b.bin"]
    texts[0].write_bytes(b"The quiet river. " * 20)
    texts[1].write_bytes(bytes(range(256)))
    code, _, _ = run(capsys, "compress", artifact, *texts, "--out", tmp_path / "both.z")
    assert code == 0
    outs = [tmp_path / "a2", tmp_path / "b2"]
    assert run(capsys, "decompress", artifact, tmp_path / "both.z", "--out", *outs)[0] == 0
    assert [path.read_bytes() for path in outs] == [path.read_bytes() for path in texts]
    code, out, _ = run(capsys, "generate", artifact, "--prompt", "The", "--tokens", "12", "--json")
    assert code == 0
    assert json.loads(out)["text"].startswith("The")


def test_mistakes_with_an_artifact_are_said_before_the_work(tiny_run, tmp_path, capsys, monkeypatch) -> None:
    artifact, text, out = tiny_run.artifact, tmp_path / "a.txt", tmp_path / "both.z"
    text.write_bytes(b"The quiet river. ")
    assert run(capsys, "compress", artifact, text, text, "--out", out)[0] == 0

    def too_late(*arguments: object) -> None:
        raise AssertionError("it should have been said before")

    for name in ("compress", "decompress"):
        monkeypatch.setattr(f"bytefit.cli.use.{name}", too_late)
    (tmp_path / "cut.z").write_bytes(out.read_bytes()[:-1])
    other = tmp_path / "other.bytefit"
    other.write_bytes(artifact.read_bytes())
    for words, message in (
        (("compress", artifact, text, "--out", tmp_path), "is a folder; name a file"),
        (("decompress", artifact, out, "--out", tmp_path / "one"), "holds 2 documents; --out names 1"),
        (("decompress", artifact, out, "--out", tmp_path / "one", tmp_path), "is a folder; name a file"),
        (("decompress", artifact, out, "--out", tmp_path / "one", tmp_path / "one"), "names a file twice"),
        (("decompress", artifact, tmp_path / "cut.z", "--out", tmp_path / "one"), "damaged or cut short"),
        (("compress", artifact, text, "--out", text), "is a file that is read here and would be lost"),
        (("compress", artifact, text, "--out", artifact), "is a file that is read here"),
        (("compress", artifact, text, "--out", other), "holds a model, which would be lost"),
        (("decompress", artifact, out, "--out", tmp_path / "one", out), "is a file that is read here"),
        (("decompress", artifact, out, "--out", tmp_path / "one", other), "holds a model"),
        (("page", artifact, "--out", artifact), "is a file that is read here"),
        (("report", tiny_run.path, "--out", artifact), "holds a model"),
        (("compare", tiny_run.path, "--published", "3.5,3.6", "--plot", other), "--plot"),
        (("generate", artifact, "--prompt", "a", "--prompt-file", text), "give --prompt or --prompt-file, not both"),
        (("generate", artifact, "--temperature", "inf"), "temperature inf must be 0 or lie in"),
        (("generate", artifact, "--temperature", "1e-40"), "temperature 1e-40 must be 0 or lie in"),
        (("generate", artifact, "--seed", str(1 << 64)), "must lie in 0..2^63 - 1"),
    ):
        code, _, err = run(capsys, *words)
        assert code == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1
    assert load_artifact(artifact).sha256 == load_artifact(other).sha256


def test_what_is_said_does_not_mix_with_what_is_piped(tiny_run, tmp_path, capsys) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(b"The quiet river. ")
    code, out, err = run(capsys, "compress", tiny_run.artifact, text, "--out", os.devnull)
    assert (code, out) == (0, "")
    assert "17 -> " in err


def test_repl_continues_line_after_line(tiny_run, capsysbinary, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The river\n\nA quiet")))
    assert main(["generate", str(tiny_run.artifact), "--repl", "--tokens", "5"]) == 0
    out, err = capsysbinary.readouterr()
    assert err.count(b"tokens/s") == 3
    first = out[: out.index(b"\n", len(b"The river"))]
    assert first.startswith(b"The river")
    rest = out[len(first) + 1 :]
    assert rest.startswith(first)  # an empty line goes on with the text so far
    assert b"A quiet" in rest[len(first) :]


def test_compress_by_another_protocol(tiny_run, tmp_path, capsys) -> None:
    text, sizes = tmp_path / "a.txt", {}
    text.write_bytes(b"The quiet river runs by the old mill. " * 40)
    for protocol in (None, "sliding", "documents"):
        words = ["--protocol", protocol] if protocol else []
        code, out, _ = run(capsys, "compress", tiny_run.artifact, text, "--out", tmp_path / "z", "--json", *words)
        assert code == 0
        sizes[protocol] = json.loads(out)["bytes_out"]
        assert run(capsys, "decompress", tiny_run.artifact, tmp_path / "z", "--out", tmp_path / "back")[0] == 0
        assert (tmp_path / "back").read_bytes() == text.read_bytes()
    assert sizes["documents"] < sizes["sliding"]  # it learns what repeats


def test_pack_again_into_fewer_bytes(dataset, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    assert run(capsys, "train", "pocket", "--size", "tiny", "--steps", "5", "--data", dataset.folder, "--out", out)[0] == 0
    for budget in (15_000, 9_000):
        code, text, _ = run(capsys, "pack", out, "--bytes", budget, "--json")
        assert code == 0
        assert 0.85 * budget < json.loads(text)["bytes"] <= budget
    code, _, err = run(capsys, "report", out)
    assert code == 2
    assert "no summary.json yet" in err
    assert run(capsys, "score", out)[0] == 0
    assert run(capsys, "prove", out, "--bytes", "500")[0] == 0  # not the run's own proof, which the report makes
    assert run(capsys, "report", out)[0] == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["artifact_bytes"] <= 9000
    assert summary["proof_restored"]


@pytest.mark.parametrize(
    ("recipe", "count"),
    [
        ("baseline", 17_059_912), ("pr128", 21_778_504), ("pr578", 26_993_756), ("pr693", 27_124_848), ("pr606", 33_580_124),
        ("pr1171", 33_317_980),
    ],
)  # fmt: skip
def test_show_counts_without_training(capsys, recipe, count) -> None:
    code, out, _ = run(capsys, "show", recipe, "--size", "full", "--json")
    assert code == 0
    record = json.loads(out)
    assert record["num_parameters"] == count
    assert sum(part["parameters"] for part in record["parts"]) == count
    code, out, _ = run(capsys, "show", recipe, "--size", "full")
    assert f"num_parameters: {count}" in out


@pytest.mark.parametrize("recipe", ["pr693", "pr578", "pr1171_as_submitted"])
def test_a_system_runs_to_its_proof(recipe, dataset, tmp_path, capsys) -> None:
    settings = ["score.max_bytes=3000", "score.proof_bytes=400", "train.average.held_out_tokens=1000"]
    sets = [word for setting in settings for word in ("--set", setting)]
    out = tmp_path / "run"
    code, _, _ = run(capsys, "run", recipe, "--size", "tiny", "--steps", "12", "--data", dataset.folder, "--out", out, *sets)
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["proof_restored"] is True
    assert summary["artifact_bytes"] <= summary["budget_bytes"]
    adapts = find_recipe(recipe, "tiny").score.adapt is not None
    assert adapts == (recipe != "pr693")
    scores, proof = (json.loads((out / name).read_text()) for name in ("score.json", "proof.json"))
    assert summary["val_bpb"] == summary["val_bpb_adapted" if adapts else "val_bpb_sliding"] is not None
    assert (summary["val_bpb_adapted"] is not None) == adapts
    assert proof["protocol"]["type"] == ("Adapt" if adapts else "Sliding")
    if adapts:
        assert scores["adapt"]["learned_steps"] > 0
        assert scores["adapt"]["nats"] != scores["sliding"]["nats"]
        assert "learning from what it has scored" in (out / "report.html").read_text()


def test_data_build_and_its_record(write, tmp_path, capsys, documents) -> None:
    source = write("docs.jsonl", "".join(json.dumps({"text": document}) + "\n" for document in documents))
    code, out, _ = run(capsys, "data", "build", source, "--out", tmp_path / "d", "--vocab", "320", "--json")
    assert code == 0
    record = json.loads(out)
    for side in record["splits"].values():
        assert side["raw_bytes"] == side["counted_bytes"]
    code, out, _ = run(capsys, "data", "build", source, "--out", tmp_path / "b", "--tokenizer", "bytes", "--val", source)
    assert code == 2  # every training document stands in the validation text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing"], "unknown recipe 'nothing'; known recipes: pocket"),
        (["run", "pocket", "--size", "huge"], "has no size 'huge'"),
        (["run", "/nowhere/recipe.json"], "cannot read /nowhere/recipe.json"),
        (["run", "mine.json", "--size", "tiny"], "mine.json holds a recipe of one size; leave out --size tiny"),
        (["run", "pocket", "--set", "model.dmi=3"], "has no field 'dmi'"),
        (["run", "pocket", "--set", "model.dim=wide"], "expected int, got 'wide'"),
        (["run", "pocket", "--set", "model.dim"], "write PATH=VALUE"),
        (["run", "pocket", "--set", "train.seq_len=100000"], "must be a multiple of seq_len"),
        (["run", "pocket", "--seed", "1180591620717411303424"], "must lie in 0..2^63"),
        (["run", "baseline", "--set", "train.loader.num_spans=0"], "num_spans 0"),
        (["run", "pocket", "--set", 'train.loader={"type":[]}'], "is not one of"),
        (["data", "build", "x", "--out", "/tmp/never", "--tokenizer", "bytes", "--vocab", "9"], "has its own"),
        (["run", "pocket", "--set", "score.window=4096"], "model.context"),
        (["run", "pocket", "--seconds", "1", "--steps", "1"], "not both"),
        (["run", "pocket", "--set", "size=lab"], "--set size=lab: write --size lab"),
        (["run", "pocket", "--set", "name=mine"], "--set name=mine: name the recipe itself"),
        (["run", "pocket", "--seconds", "-1"], "must be above 0"),
        (["run", "pocket", "--bytes", "0"], "budget_bytes 0"),
        (["run", "pocket", "--set", "pack.quant.gain_step=1e-7"], "gain_step 1e-07 must lie in"),
        (["score", "/nowhere.bytefit", "--data", "x", "--bytes", "0"], "--bytes 0 must be at least 1"),
        (["prove", "/nowhere.bytefit", "--data", "x", "--bytes", "-5"], "--bytes -5 must be at least 1"),
        (["run", "pocket", "--data", "/nowhere"], "is not a folder"),
        (["score", "/nowhere.bytefit", "--data", "x"], "cannot read /nowhere.bytefit"),
        (["generate", "/nowhere.bytefit"], "cannot read /nowhere.bytefit"),
        (["data", "build", "/nowhere", "--out", "/tmp/never"], "does not exist"),
        (["data", "build", "/dev/null", "--out", "/tmp/never", "--tokenizer", "nope.model"], "give bpe, bytes or an existing"),
        (["report", "/nowhere"], "is not a run folder"),
    ],
)
def test_mistakes_are_one_clear_line(capsys, arguments, message) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_out_that_is_taken(tiny_run, dataset, tmp_path, capsys) -> None:
    code, _, err = run(capsys, "run", "pocket", "--size", "tiny", "--data", dataset.folder, "--out", tiny_run.path)
    assert code == 2
    assert "already holds a run" in err
    code, _, err = run(
        capsys, "run", "pocket", "--size", "tiny", "--seed", "9", "--data", dataset.folder, "--out", tiny_run.path, "--resume"
    )
    assert code == 2
    assert "seed is 1337, not 9" in err
    (tmp_path / "mine.txt").write_text("x")
    code, _, err = run(capsys, "run", "pocket", "--size", "tiny", "--data", dataset.folder, "--out", tmp_path)
    assert code == 2
    assert "is not a run folder" in err


def test_resume_keeps_its_dataset_and_takes_other_budgets(dataset, write, tmp_path, capsys, documents) -> None:
    """--resume alone goes on with the run's own dataset; another dataset is refused; pack and score settings may change."""
    out = tmp_path / "run"
    base = ("run", "pocket", "--size", "tiny", "--steps", "6", "--out", out)
    assert run(capsys, *base, "--data", dataset.folder)[0] == 0
    first = json.loads((out / "summary.json").read_text())
    code, text, _ = run(capsys, *base, "--resume", "--bytes", "9000", "--json")
    assert code == 0
    second = json.loads(text)
    assert second["dataset_sha256"] == first["dataset_sha256"]
    assert second["steps"] == 6
    assert second["artifact_bytes"] <= 9000 < first["artifact_bytes"]
    source = write("other.jsonl", "".join(json.dumps({"text": document + "!"}) + "\n" for document in documents))
    assert run(capsys, "data", "build", source, "--out", tmp_path / "other", "--vocab", "320")[0] == 0
    code, _, err = run(capsys, *base, "--resume", "--data", tmp_path / "other")
    assert code == 2
    assert "another dataset" in err or "vocab_size" in err


def test_what_is_impossible_is_said_before_training(dataset, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    base = ("run", "pocket", "--size", "tiny", "--data", dataset.folder, "--out", out)
    for wrong, message in (
        (("--bytes", "500"), "a budget of 500 bytes is impossible"),
        (("--set", 'train.loader={"type": "SequentialConfig", "num_spans": 7}'), "does not divide into 7 spans"),
        (("--set", "model.dim=33"), "num_heads 2 must divide dim 33"),
        (("--set", 'calibrate.source={"type": "OwnText", "path": "/nowhere.txt"}'), "cannot read /nowhere.txt"),
    ):
        code, _, err = run(capsys, *base, *wrong)
        assert code == 2
        assert message in err
        assert not out.exists()


def test_artifact_on_a_foreign_dataset(tiny_run, write, tmp_path, capsys, documents) -> None:
    source = write("other.jsonl", "".join(json.dumps({"text": document[::-1]}) + "\n" for document in documents))
    assert run(capsys, "data", "build", source, "--out", tmp_path / "other", "--vocab", "320")[0] == 0
    code, _, err = run(capsys, "score", tiny_run.artifact, "--data", tmp_path / "other")
    assert code == 2
    assert "tokenizer is not the one of" in err


NO_ROOM = {
    "CUDA out of memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 23.6 GiB"),
    "can't allocate memory: you tried to allocate 6400000000 bytes": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 6400000000 bytes. "
        "Error code 12 (Cannot allocate memory)"
    ),
    "Unable to allocate 5.96 GiB for an array": MemoryError("Unable to allocate 5.96 GiB for an array"),
    "out of memory": MemoryError(),
}


@pytest.mark.parametrize("said", NO_ROOM)
def test_a_machine_without_room_is_one_clear_line(dataset, tmp_path, capsys, monkeypatch, said) -> None:
    def no_room(*arguments, **others):
        raise NO_ROOM[said]

    monkeypatch.setattr("bytefit.run.pipeline.train_step", no_room)
    code, _, err = run(capsys, "run", "pocket", "--size", "tiny", "--data", dataset.folder, "--out", tmp_path / "run")
    assert code == 2
    fix = "compute less at once (in training: a smaller --set train.micro_batch_tokens=N, or a smaller model)"
    assert err.strip().splitlines()[-1] == f"bytefit: {said}; {fix}"


def test_another_error_of_torch_keeps_its_traceback(dataset, tmp_path, monkeypatch) -> None:
    def broken(*arguments, **others):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("bytefit.run.pipeline.train_step", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(["run", "pocket", "--size", "tiny", "--data", str(dataset.folder), "--out", str(tmp_path / "run")])


def test_help_shows_examples(capsys) -> None:
    verbs = "run train pack report score prove audit compare submit compress decompress show generate page".split()
    for verb in ([], ["data", "build"], *([name] for name in verbs)):
        with pytest.raises(SystemExit) as stop:
            main([*verb, "--help"])
        assert stop.value.code == 0
        assert "examples:\n  bytefit" in capsys.readouterr().out


def test_a_json_document_is_ascii_and_keeps_every_character(capsys) -> None:
    """So that it is one wherever stdout goes."""
    show_result(argparse.Namespace(json=True), {"text": "naïve – 語"}, "")
    said = capsys.readouterr().out
    assert said.isascii()
    assert json.loads(said) == {"text": "naïve – 語"}


def test_a_runs_folder_stands_for_its_artifact(tiny_run, tmp_path, capsys) -> None:
    """Wherever an artifact is asked for; of a folder without one the message names the folder."""
    spoken = [run(capsys, "generate", path, "--tokens", 5, "--json") for path in (tiny_run.path, tiny_run.artifact)]
    assert [code for code, *_ in spoken] == [0, 0]
    assert len({json.loads(out)["text"] for _, out, _ in spoken}) == 1
    code, _, err = run(capsys, "generate", tmp_path)
    assert code == 2
    assert str(tmp_path) in err


def test_a_verb_is_parsed_alike_with_and_without_the_others() -> None:
    """One module's parser knows of its verbs what all modules' parser knows; and what it says of the others is the same line."""
    whole = build_parser(VERBS.keys())
    everything = next(action for action in whole._actions if action.choices).choices
    assert list(VERBS) == list(everything)
    for verb, (module, _) in VERBS.items():
        parser = build_parser({verb})
        alone = next(action for action in parser._actions if action.choices).choices
        assert alone[verb].format_help() == everything[verb].format_help()
        assert {name for name in alone if len(alone[name]._actions) > 1} == {name for name in VERBS if VERBS[name].module == module}
        assert parser.format_help() == whole.format_help() == build_parser(set()).format_help()
