"""What is said about the machine."""

from __future__ import annotations

import pytest

from bytefit.train.machine import bf16_instructions, describe_machine, hardware_of


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("fpu avx512_bf16 amx_int8 amx_bf16 avx512f", "amx_bf16"),
        ("fpu avx2 avx512f", "none"),
        ("fp asimd i8mm bf16", "bf16"),
        ("", "none"),
        (None, None),
    ],
)
def test_what_a_processor_has_for_bf16(flags: str | None, said: str | None) -> None:
    assert bf16_instructions(flags) == said


def test_machines_differ_by_what_they_have_for_bf16() -> None:
    """Two processors of the same name may differ three times in speed: one has matrix units, the other hides them from its guests."""
    here = describe_machine()
    assert here["cpu"]
    assert hardware_of(here) != hardware_of(here | {"cpu_bf16": "something else"})
