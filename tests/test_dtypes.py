"""Which arithmetic is the faster one."""

from __future__ import annotations

import pytest
import torch

from bytefit import dtypes


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_computes_in_bf16_where_it_has_it(monkeypatch, supported) -> None:
    """Emulated bf16 is slower than fp32, and torch compiles nothing in it."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: asked.append(including_emulation) or supported)
    assert dtypes.faster_dtype.__wrapped__("cuda") is (torch.bfloat16 if supported else torch.float32)
    assert asked == [False]
