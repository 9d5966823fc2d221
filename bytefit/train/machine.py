"""What the machine is, and settings that make it fast without changing a result."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import resource
import sys
from typing import Any

import torch

# mallopt(3) parameters of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Tell glibc to keep what a step frees instead of handing it back to the kernel.

    A training step allocates the same large temporaries again and again. By default each is mapped afresh and every page
    of it faults, which on a virtual machine costs more than the arithmetic. Does nothing where the C library is another.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 1 << 28)


def wait_for(device: torch.device) -> None:
    """A GPU returns at once from what it is asked to do; wait until it is done, before a clock is read. Does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_bytes(device: str) -> int:
    """The most memory that was held so far: by PyTorch on a GPU, else by the process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest  # macOS counts bytes, Linux kilobytes


def describe_machine(ranks: int = 1) -> dict[str, Any]:
    """Hardware and versions, as recorded with every result; ``ranks`` is how many processes work together, a GPU each."""
    told = _cpuinfo()
    return {
        "cpu": told.get("model name") or platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_bf16": bf16_instructions(told.get("flags", told.get("Features"))),
        "threads": torch.get_num_threads(),
        "ranks": ranks,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: installed_version(name) for name in ("torch", "numpy", "sentencepiece", "constriction")},
        **_gpu_versions(),
    }


def _gpu_versions() -> dict[str, str]:
    """Which attention kernel PyTorch prefers depends on cuDNN's version; nothing without a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]


def _cpuinfo() -> dict[str, str]:
    """What Linux says about the first core; nothing elsewhere."""
    if sys.platform != "linux":
        return {}
    with open("/proc/cpuinfo") as file:
        first = file.read().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def bf16_instructions(flags: str | None) -> str | None:
    """The best that a processor has for bf16, among its flags: matrix units (``amx_bf16``) make it several times as fast as fp32, vectors
    (``avx512_bf16``, ARM's ``bf16``) gain less, and with ``none`` it is emulated. None where nobody says."""
    if flags is None:
        return None
    return min((flag for flag in flags.split() if "bf16" in flag), default="none")  # best first is also the order of the alphabet


HARDWARE = ("cpu", "cpu_capability", "cpu_bf16", "threads", "ranks", "gpu", "system")


def hardware_of(machine: dict[str, Any]) -> dict[str, Any]:
    """What was described, without the versions."""
    return {key: machine.get(key) for key in HARDWARE}


def installed_version(package: str) -> str | None:
    """None where it is not installed: a submission's script runs without what it does not need."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
