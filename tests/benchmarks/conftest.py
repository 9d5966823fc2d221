from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def among_benchmarks(monkeypatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
