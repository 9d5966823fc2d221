"""What a user names by mistake, and what an output may not take with it: one clear line, before the work and not after it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bytefit.artifact import load
from bytefit.artifact.load import load_artifact
from bytefit.cli import main
from bytefit.cli.options import artifact_of
from bytefit.files import is_stream, write_bytes
from bytefit.run.folder import claimed


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_stream_keeps_what_was_in_it(tmp_path) -> None:
    """Redirected into a file it is not ours to replace: other text stands there, and more comes."""
    script = """
import sys
from pathlib import Path
from bytefit.files import write_bytes
print("before")
write_bytes(Path("/dev/stdout"), b"the output\\n")
write_bytes(Path("/dev/fd/1"), b"and more\\n")
print("after")
"""
    path = tmp_path / "all.log"
    path.write_text("kept\n")
    with open(path, "a") as file:
        subprocess.run([sys.executable, "-c", script], stdout=file, check=True)
    assert path.read_text() == "kept\nbefore\nthe output\nand more\nafter\n"


@pytest.mark.parametrize(("name", "expected"), [
    ("/dev/stdout", True), ("/dev/fd/7", True), ("/proc/self/fd/1", True), ("/dev/null", True), ("/dev/fd/x", False), (__file__, False),
    ("/nowhere/at/all", False), ("/", False),
])  # fmt: skip
def test_streams_are_known(name, expected) -> None:
    assert is_stream(Path(name)) is expected


def test_outputs_are_checked_before_the_work(tiny_run, tmp_path, monkeypatch, capsys) -> None:
    def never(*arguments, **others):
        raise AssertionError("the work began")

    monkeypatch.setattr("bytefit.cli.use.compress", never)
    text = tmp_path / "text"
    text.write_text("text")
    for out, said in ((text / "x.bytefitz", f"{text} is not a folder"), (tmp_path, "is a folder; name a file")):
        assert main(["compress", str(tiny_run.artifact), str(text), "--out", str(out)]) == 2
        assert said in last_line(capsys)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # what it says to a user without rights; the tests may be root's
    assert main(["compress", str(tiny_run.artifact), str(text), "--out", str(tmp_path / "new" / "x")]) == 2
    assert f"nothing can be written in {tmp_path}" in last_line(capsys)
    assert main(["compress", str(tiny_run.artifact), "/dev/stdin"]) == 2
    assert "say where the compressed text goes: --out FILE" in last_line(capsys)


@pytest.mark.parametrize("verb", [["pack"], ["score"], ["score", "--bytes", "500"], ["prove"]])
def test_what_changes_a_run_waits_for_nobody(tiny_run, capsys, verb) -> None:
    """Another process may be scoring what this one would replace."""
    before = {path.name: path.read_bytes() for path in tiny_run.path.glob("*.*") if path.is_file()}
    with claimed(tiny_run.path):
        assert main([verb[0], str(tiny_run.path), *verb[1:]]) == 2
        assert f"another process is at work in {tiny_run.path}" in last_line(capsys)
    assert {path.name: path.read_bytes() for path in tiny_run.path.glob("*.*") if path.is_file()} == before


@pytest.mark.parametrize(("words", "said"), [
    (["run", "pocket", "--size", "tiny", "--data", "DATA", "--set", "tokenizer.vocab_size=777"], "=777: the dataset has its tokenizer"),
    (["generate", "MODEL", "--repl", "--prompt", "a"], "--repl asks for texts; leave out --prompt"),
    (["generate", "MODEL", "--repl", "--prompt-file", "a"], "--repl asks for texts; leave out --prompt-file"),
    (["compare", "RUN", "--published", "3,4", "--equivalence", "inf"], "--equivalence inf must be above 0, and finite"),
    (["metrics", "RUN", "--to", "trackio", "--out", "x"], "--out is TensorBoard's"),
    (["metrics", "RUN", "--to", "tensorboard", "--project", "x"], "--project is Trackio's"),
    (["data", "build", "README.md", "--out", "/tmp/never", "--document-bytes", "-1"], "--document-bytes -1 must not be negative"),
    (["generate", "a" * 300], "cannot read"),
])  # fmt: skip
def test_what_cannot_be_meant_is_one_line(tiny_run, dataset, capsys, words, said) -> None:
    names = {"DATA": dataset.folder, "MODEL": tiny_run.artifact, "RUN": tiny_run.path}
    assert main([str(names.get(word, word)) for word in words]) == 2
    assert said in last_line(capsys)


def test_a_page_of_a_folder_without_a_model(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["page", "."]) == 2
    assert last_line(capsys) == "bytefit: cannot read .: Is a directory"


def test_a_folder_that_may_not_be_looked_into(monkeypatch, capsys) -> None:
    """Whether it holds a model nobody can say; reading it says why."""

    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refused)
    monkeypatch.setattr(Path, "read_bytes", refused)
    assert artifact_of("private") == Path("private")
    assert main(["generate", "private"]) == 2
    assert last_line(capsys) == "bytefit: cannot read private: Permission denied"
    monkeypatch.setattr("bytefit.cli.show.recipe_of", lambda _: refused(Path("private/recipe.json")))
    assert main(["show", "pocket"]) == 2
    assert last_line(capsys) == "bytefit: private/recipe.json: Permission denied"


def test_a_name_that_is_not_utf8_is_no_reason_to_end(tiny_run, tmp_path, capsys) -> None:
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    strange.symlink_to(tiny_run.path)
    assert main(["report", str(strange), "--out", str(tmp_path / "page.html")]) == 0
    assert "caf\\udce9" in (tmp_path / "page.html").read_text()


def test_a_report_to_a_stream_is_the_report_alone(tiny_run, tmp_path) -> None:
    with open(tmp_path / "page.html", "wb") as file:
        words = [sys.executable, "-m", "bytefit", "report", str(tiny_run.path), "--out", "/dev/stdout", "--json"]
        done = subprocess.run(words, stdout=file, stderr=subprocess.PIPE, check=True)
    assert (tmp_path / "page.html").read_text().rstrip().endswith("</html>")
    assert json.loads(done.stderr) == {"report": "/dev/stdout"}


def test_ctrl_c_while_a_verb_is_imported_is_one_line(monkeypatch, capsys) -> None:
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("bytefit.cli.import_module", interrupted)
    assert main(["generate", "x"]) == 130
    assert last_line(capsys) == "bytefit: interrupted"


def test_ctrl_c_is_not_a_damaged_model(tiny_run, monkeypatch) -> None:
    """Where a class is being made Python wraps it in an error of its own."""

    def interrupted(config):
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr(load, "cost_by_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_artifact(tiny_run.artifact)


def test_writing_to_a_stream_that_is_closed_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(Exception, match=r"cannot write /dev/fd/999: Bad file descriptor"):
        write_bytes(Path("/dev/fd/999"), b"")
