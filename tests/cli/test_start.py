"""The process that a command starts: what it imports, and what it says where it cannot go on."""

from __future__ import annotations

import os
import subprocess
import sys

from bytefit import __version__
from bytefit.cli.verbs import VERBS


def test_ctrl_c_while_it_starts_is_one_line() -> None:
    """Importing takes seconds, in which it may come."""
    script = """
import sys
class Ctrl:
    def find_spec(self, name, *rest):
        if name == "bytefit.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Ctrl())
from bytefit.__main__ import start
start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "bytefit: interrupted\n")


def test_what_needs_no_verb_is_said_without_torch() -> None:
    """Importing it takes seconds."""
    without = "import sys; sys.modules['torch'] = None; sys.argv[1:] = {!r}; from bytefit.__main__ import start; start()"
    said = {}
    for word in ("--version", "--help", "rum"):
        done = subprocess.run([sys.executable, "-c", without.format([word])], capture_output=True, text=True)
        said[word] = done.returncode, done.stdout, done.stderr
    assert said["--version"] == (0, f"bytefit {__version__}\n", "")
    code, out, err = said["--help"]
    assert (code, err) == (0, "")
    assert all(verb in out and summary.split()[0] in out for verb, (_, summary) in VERBS.items())
    code, out, err = said["rum"]
    assert (code, out) == (2, "")
    assert "rum" in err
    assert all(verb in err for verb in VERBS)
    as_module = subprocess.run([sys.executable, "-m", "bytefit", "--version"], capture_output=True, text=True)
    assert (as_module.returncode, as_module.stdout) == (0, f"bytefit {__version__}\n")


def test_a_terminal_without_unicode_is_no_reason_to_end(tiny_run) -> None:
    """A comparison of one run has a dash where its spread would be."""
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "bytefit", "compare", tiny_run.path], capture_output=True, text=True, env=ascii_only)
    assert done.returncode == 0
    assert "\\u2013" in done.stdout
    assert not done.stderr


def test_a_start_imports_neither_the_compiler_nor_statistics() -> None:
    """They would take most of its time; here every verb's module is imported."""
    look = (
        "import sys; from bytefit.cli import VERBS, build_parser; build_parser(VERBS.keys()); "
        "print({'torch', 'torch._dynamo', 'scipy.stats'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.strip() == "{'torch'}"
