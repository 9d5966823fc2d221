from __future__ import annotations

import time

import pytest

from bytefit.ledger import Ledger


def test_each_second_stands_in_one_entry() -> None:
    ledger, start = Ledger(), time.perf_counter()
    with ledger.measure("train"):
        time.sleep(0.05)
        with ledger.measure("score"):
            time.sleep(0.1)
        time.sleep(0.05)
    spent = time.perf_counter() - start
    assert ledger.seconds["train"] == pytest.approx(0.1, abs=0.08)
    assert ledger.seconds["score"] == pytest.approx(0.1, abs=0.08)
    assert sum(ledger.seconds.values()) == pytest.approx(spent, abs=0.05)


def test_totals() -> None:
    ledger = Ledger({"train": 10.0, "compile": 2.0, "prove": 1.0, "data": 50.0})
    assert ledger.strict == 13.0
    assert ledger.customary == 10.0
    assert ledger.to_json()["strict"] == 13.0
