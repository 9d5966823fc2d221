"""Which floating-point type to compute in."""

from __future__ import annotations

import functools
import time
from typing import Literal

import torch

DtypeName = Literal["auto", "bfloat16", "float32"]


def resolve_dtype(name: DtypeName, device: str) -> torch.dtype:
    """What was asked for, or with ``auto`` the faster of bf16 and fp32 on this device."""
    if name == "auto":
        return faster_dtype(torch.device(device).type)
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def faster_dtype(device: str) -> torch.dtype:
    """bf16 or fp32, whichever multiplies a batch of matrices faster here (timed once, about 50 ms).

    bf16 wins where the processor has matrix units for it and loses where it is emulated, as on GPUs older than Ampere, for which nothing
    in it is compiled either.
    """
    if device != "cpu":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    best: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(4, 192, 384, dtype=dtype)
        x @ x.mT
        times = []
        for _ in range(5):
            start = time.perf_counter()
            x @ x.mT
            times.append(time.perf_counter() - start)
        best[dtype] = min(times)
    return min(best, key=lambda dtype: best[dtype])
