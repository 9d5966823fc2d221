"""The page's modules under node, and small artifacts for them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bytefit
from tests.threads import one_thread

MODULES = Path(bytefit.__file__).parent / "page" / "js"
NODE = shutil.which("node")


@pytest.fixture(scope="package", autouse=True)
def _one_thread(_few_threads: None):
    with one_thread():
        yield


@pytest.fixture(scope="session")
def node() -> Callable[[str, Any], Any]:
    """Runs one task of ``examine.mjs``: (task, argument) to its answer."""
    if NODE is None:
        pytest.skip("node is not installed; it runs the page's modules outside a browser")

    def ask(task: str, argument: Any) -> Any:
        command = [NODE, str(Path(__file__).with_name("examine.mjs")), MODULES.as_uri(), task]
        done = subprocess.run(command, input=json.dumps(argument), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask
