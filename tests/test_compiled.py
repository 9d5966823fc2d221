"""Compiled functions: kept on disk where they stand in a file, compiled by each process where they do not."""

from __future__ import annotations

import importlib.util
import warnings

SOURCE = """
from bytefit.compiled import compiled

@compiled(nogil=True)
def add(a, b):
    return a + b
"""


def test_a_function_in_a_file_is_cached(write) -> None:
    path = write("adding.py", SOURCE)
    spec = importlib.util.spec_from_file_location("adding", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.add(2, 3) == 5
    assert list(path.parent.glob("__pycache__/adding.add-*.nbi"))


def test_a_function_without_a_file_is_compiled_all_the_same() -> None:
    space: dict = {"__name__": "adding"}
    with warnings.catch_warnings(action="error"):
        exec(compile(SOURCE, "train_gpt.py/adding.py", "exec"), space)
        assert space["add"](2, 3) == 5
    assert space["add"].targetoptions["nogil"] is True
    assert not space["add"].stats.cache_path
