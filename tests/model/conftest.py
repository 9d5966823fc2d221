"""The models here are so small that a second thread only waits for the first."""

from __future__ import annotations

import pytest

from tests.threads import one_thread


@pytest.fixture(scope="package", autouse=True)
def _one_thread(_few_threads: None):
    with one_thread():
        yield
