from __future__ import annotations

import pytest
import torch


@pytest.fixture
def traced(monkeypatch):
    """What is compiled is traced, with all its guards, and not turned into C++, which takes most of the time."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **options: real(module, backend="aot_eager", **options))
