"""The process that a command starts: what it imports, and what it says where it cannot go on."""

from __future__ import annotations

import os
import subprocess
import sys

from bytefit import __version__


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


def test_the_version_is_said_by_the_module_too_and_without_torch() -> None:
    """Importing it takes seconds."""
    without = "import sys; sys.modules['torch'] = None; sys.argv[1:] = ['--version']; from bytefit.__main__ import start; start()"
    for words in (["-m", "bytefit", "--version"], ["-c", without]):
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"bytefit {__version__}\n", "")


def test_a_terminal_without_unicode_is_no_reason_to_end(tiny_run) -> None:
    """A comparison of one run has a dash where its spread would be."""
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "bytefit", "compare", tiny_run.path], capture_output=True, text=True, env=ascii_only)
    assert done.returncode == 0
    assert "\\u2013" in done.stdout
    assert not done.stderr


def test_a_start_imports_neither_the_compiler_nor_statistics() -> None:
    """They would take most of its time; ``build_parser()`` is what ``--help`` starts, and knows every verb."""
    look = "import sys; from bytefit.cli import build_parser; build_parser(); print({'torch._dynamo', 'scipy.stats'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.strip() == "set()"
