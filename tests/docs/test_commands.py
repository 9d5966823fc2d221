"""Every command in README and docs is run: as it stands where it is small, with fewer steps and a smaller model where it is not.

Commands of ``benchmarks/`` have their arguments read and stop there; what they measure is in their results. What another test runs is named
in ``ELSEWHERE``.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from bytefit.cli import build_parser, main
from bytefit.cli.verbs import VERBS
from bytefit.hub.published import PUBLISHED
from tests.docs.pages import PAGES, ROOT, benchmarks_of, blocks_of, commands_of, mentioned
from tests.hub.conftest import NAME, contest_hub, fake_hub  # noqa: F401
from tests.hub.fake_hub import FakeHub

# Twelve steps: the last of them have less than a fifth of the learning rate, where snapshots are taken.
QUICK = ["--steps", "12", "--set", "score.max_bytes=1500", "--set", "score.proof_bytes=100"]
SIZES = {"--size", "--seconds", "--steps", "--bytes"}  # options of run and train that say how large it gets
SHELL = {"|", ">", "&&"}
ELSEWHERE = {
    'python -m pytest tests/model -k "final"': "tests/docs/test_guide.py",
    "bytefit run pocket --size tiny --data mydata --set 'model.final_gain={}' --out runs/final-gain": "tests/docs/test_guide.py",
    "bytefit compare runs/plain runs/final-gain": "tests/docs/test_guide.py",
    "python train_gpt.py --data DIR --evaluate model_seed1.bytefit": "tests/submit/test_record.py",
    "python train_gpt.py --data DIR --seed 1": "tests/submit/test_record.py",
    "torchrun --standalone --nproc-per-node 8 train_gpt.py --data DIR": "tests/submit/test_alone.py",
}


@pytest.fixture(scope="module")
def desk(dataset, tiny_run, tmp_path_factory) -> Path:
    """A reader's folder: the clone's pages, a dataset and an artifact, and what ``make demo`` leaves."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(ROOT / "README.md", folder)
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("pictures"))
    (folder / "DIR").symlink_to(dataset.folder)
    shutil.copytree(tiny_run.path, folder / "runs" / "demo")
    shutil.copy(tiny_run.artifact, folder / "model.bytefit")
    return folder


@pytest.fixture(scope="module")
def after_readme(desk) -> Path:
    """The folder once the README's commands were run in it: every other page starts from there."""
    for command in commands_of(ROOT / "README.md"):
        run_one(command, desk, None)
    return desk


def quick(words: list[str]) -> list[str]:
    """A command of bytefit that takes seconds."""
    if words[0] not in ("run", "train"):
        return words
    kept, i = [], 0
    counts_code = "--count-code" in words
    while i < len(words):
        if words[i] in SIZES and not (counts_code and words[i] == "--bytes"):
            i += 1
        else:
            kept.append(words[i])
        i += 1
    size = [] if words[1].endswith(".json") else ["--size", "tiny"]  # a file has its own
    return [*kept, *size, *QUICK, *([] if "--bytes" in kept or not counts_code else ["--bytes", "110000"])]


def run_one(command: str, folder: Path, hub: str | None) -> None:
    """Run it in the folder; an exception or a wrong exit code is a failure of the page."""
    if command in ELSEWHERE:
        assert (ROOT / ELSEWHERE[command]).exists()
        return
    words = shlex.split(command)
    if words[0] == "bytefit":
        run_bytefit(words[1:], folder, hub)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), command
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert all(extra in extras for word in words[2:] for extra in re.findall(r"\[(\w[\w-]*)\]", word)), command
    elif words[0] != ".":
        if "bytefit" in words:
            at = words.index("bytefit") + 1
            words = words[:at] + quick(words[at:])
            clear(words, folder)
        record = next(folder.glob("record*/train_gpt.py"), None)
        where = record.parent if record and "train_gpt.py" in words else folder
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        line = command if set(words) & SHELL else shlex.join(words)
        done = subprocess.run(["bash", "-c", line], cwd=where, env=environment, capture_output=True)
        assert done.returncode == 0, (command, done.stderr[-1500:].decode())


def clear(words: list[str], folder: Path) -> None:
    """A run's folder must be new."""
    if "--out" in words and words[words.index("--out") + 1].startswith(("runs/", "record")):
        shutil.rmtree(folder / words[words.index("--out") + 1], ignore_errors=True)


def run_bytefit(words: list[str], folder: Path, hub: str | None) -> None:
    for mark in SHELL & set(words):
        words = words[: words.index(mark)]
    if words[:2] == ["data", "get"] and hub is not None:
        words += ["--endpoint", hub, *([] if "--shards" in words else ["--shards", "1"])]
    clear(words, folder)
    assert main(quick(words)) == 0, words


class ArgumentsRead(Exception):
    """Raised in place of the work that the arguments ask for."""


def read_arguments(words: list[str]) -> None:
    read = argparse.ArgumentParser.parse_args

    def stop(self, *arguments, **named):
        read(self, *arguments, **named)
        raise ArgumentsRead

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        patch.syspath_prepend(ROOT / "benchmarks")
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(ArgumentsRead):
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")


@pytest.fixture
def folder(after_readme, tmp_path, monkeypatch) -> Path:
    shutil.copytree(after_readme, tmp_path / "desk", symlinks=True)
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


@pytest.fixture(autouse=True, scope="module")
def _in_the_desk(desk):
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(desk)
    yield
    os.chdir(before)
    torch.set_num_threads(threads)


def test_the_readmes_commands(after_readme) -> None:
    assert (after_readme / "record" / "train_gpt.py").exists()
    assert (after_readme / "restored.md").read_bytes() == (after_readme / "README.md").read_bytes()


@pytest.mark.parametrize("page", [p for p in PAGES[1:] if commands_of(p)], ids=lambda page: page.stem)
def test_the_commands_of_a_page(page, folder, request) -> None:
    hub = None
    if any("data get" in command for command in commands_of(page)):
        hub = all_datasets(request.getfixturevalue("contest_hub")).url
    for command in commands_of(page):
        run_one(command, folder, hub)


def all_datasets(hub: FakeHub) -> FakeHub:
    """The one that the hub has, under the names of the others too."""
    held = PUBLISHED[NAME]
    for name, other in PUBLISHED.items():
        if name != NAME:
            named = {held.shards: other.shards, held.tokenizer: other.tokenizer}
            tree = {
                re.sub("|".join(named), lambda found, named=named: named[found[0]], path): data
                for path, data in hub.files[held.repo].items()
            }
            hub.files.setdefault(other.repo, {}).update(tree)
    return hub


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_verbs_and_options_within_sentences_exist(page) -> None:
    verbs = next(action for action in build_parser(VERBS.keys())._actions if action.choices).choices
    for words in mentioned(page):
        at = words.index("bytefit") + 1
        verb = verbs.get(words[at])
        assert verb is not None or words[at] == "VERB", words
        known = {option for action in (verb._actions if verb else []) for option in action.option_strings} | {"--help", "--json"}
        if words[at] == "data":
            actions = next(action for action in verb._actions if action.choices).choices
            known |= {option for action in actions.values() for one in action._actions for option in one.option_strings}
        assert {word for word in words if word.startswith("--") and at <= words.index(word)} <= known, words


@pytest.mark.parametrize("page", [p for p in PAGES if benchmarks_of(p)], ids=lambda page: page.stem)
def test_the_benchmarks_that_a_page_names_take_its_arguments(page) -> None:
    for words in benchmarks_of(page):
        read_arguments(words[1:])


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.info == "python" for b in blocks_of(p))], ids=lambda page: page.stem)
def test_the_pages_python_runs(page, folder, monkeypatch) -> None:
    import bytefit.hub

    pushed: list[tuple[str, str]] = []
    monkeypatch.setattr(bytefit.hub, "push_to_hub", lambda path, repo: pushed.append((path, repo)))
    for block in blocks_of(page):
        if block.info != "python":
            continue
        if "lm_eval" in block.text:
            lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
            monkeypatch.setattr(lm_eval, "simple_evaluate", lambda model, tasks: model.loglikelihood_rolling([]))
        exec(compile(block.text, page.name, "exec"), {"ids": torch.zeros(1, 4, dtype=torch.int64), "__name__": page.stem})
    if "push_to_hub(" in page.read_text():
        assert pushed == [("runs/demo/model.bytefit", "owner/name")]
