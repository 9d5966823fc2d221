"""Both forms of a system, pair by pair: one seed and one dtype, and where there is a choice one kind of processor."""

from __future__ import annotations

from typing import Any

from bytefit.config import to_json
from bytefit.recipes import AS_SUBMITTED, find_recipe

STEPS = {"steps": {"pr693": 10, "pr693" + AS_SUBMITTED: 10}}


def row(name: str, seed: int, headline: float, dtype: str, cpu: str) -> dict[str, Any]:
    from record import digest

    scores = dict.fromkeys(("val_bpb_float", "val_bpb_full", "val_bpb"), headline)
    machine = {"cpu": cpu, "cpu_capability": "AVX512", "cpu_bf16": "none"}
    of = {"name": name, "seed": seed, "digest": digest(to_json(find_recipe(name))), "commit": "c0ffee", "machine": machine}
    return of | {"val_bpb_last": headline, "summary": {"steps": 10, "dtype": dtype} | scores}


def test_a_pair_has_one_dtype_and_one_kind_of_processor_where_there_is_a_choice() -> None:
    from render_forms import forms_section

    submitted = "pr693" + AS_SUBMITTED
    rows = [
        row("pr693", 1, 1.9, "float32", "Xeon"), row(submitted, 1, 1.8, "float32", "EPYC"),
        row("pr693", 2, 1.9, "float32", "Xeon"), row(submitted, 2, 1.85, "float32", "EPYC"),
        row("pr693", 3, 1.9, "float32", "Xeon"), row(submitted, 3, 1.5, "bfloat16", "EPYC"),
    ]  # fmt: skip
    lines = forms_section(rows, [row("pr693", 2, 1.95, "float32", "EPYC")], STEPS)
    assert "| pr693 | 1 | float32 | two kinds | -0.1000 | -0.1000 | -0.1000 | -0.1000 |" in lines
    assert "| pr693 | 2 | float32 | one kind | -0.1000 | -0.1000 | -0.1000 | -0.1000 |" in lines
    assert not any(line.startswith("| pr693 | 3") for line in lines)
    assert next(line for line in lines if line.startswith("Not paired")).endswith(": pr693, seed 3, bfloat16.")
