"""Tokens a second of a recipe's training step against a plain spelling of the same network (plain.py), in one run.

The rows between change one thing each. Variants are timed in turns (A B C … A B C …), so that a machine that slows down slows all of
them; medians are quoted.

    python benchmarks/throughput.py --out benchmarks/results/throughput.json
    python benchmarks/throughput.py --recipe pr1171 --out benchmarks/results/throughput_pr1171.json
    python benchmarks/throughput.py --no-bf16 --out benchmarks/results/throughput_fp32.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from plain import PlainMuon, plain_loss
from record import provenance, write
from torch import Tensor

import bytefit.model.attention as attention_module
from bytefit.dtypes import faster_dtype
from bytefit.model.inspect import num_parameters
from bytefit.optim.groups import Optimizers
from bytefit.recipes import find_recipe
from bytefit.recipes.recipe import Recipe
from bytefit.train.machine import keep_freed_memory


def make_step(
    recipe: Recipe, *, package_model: bool, package_muon: bool, dtype: torch.dtype, compiled: bool, explicit: bool
) -> Callable[[], float]:
    """A training step on random tokens; returns its loss."""
    torch.manual_seed(0)
    model = recipe.model.build()
    optimizers = Optimizers(recipe.train.optimizer, model.parameter_infos(), faster_dtype("cpu"))
    plain_muon = PlainMuon([p for bank in optimizers.muon.banks for p in bank.parameters], 0.02)
    loss_of: Callable[..., Tensor] = model if package_model else lambda ids, targets, dtype: plain_loss(model, ids, targets, dtype)
    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)
    generator = torch.Generator().manual_seed(1)
    seq_len = recipe.train.seq_len

    def step() -> float:
        attention_module.EXPLICIT_MAX_TOKENS = {dtype: 512} if explicit else {}
        tokens = torch.randint(0, recipe.model.vocab_size, (recipe.train.batch_tokens // seq_len, seq_len + 1), generator=generator)
        loss = loss_of(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), dtype)
        loss.backward()
        if package_muon:
            optimizers.step(lr_scale=1.0, step=0)
        else:
            plain_muon.step()
            optimizers.adam.step()
            optimizers.zero_grad()
        return float(loss.detach())

    return step


FP32, BF16 = torch.float32, torch.bfloat16
VARIANTS: dict[str, dict[str, Any]] = {
    "plain spelling (fp32, eager)": {"package_model": False, "package_muon": False, "dtype": FP32, "compiled": False, "explicit": False},
    "plain spelling, compiled": {"package_model": False, "package_muon": False, "dtype": FP32, "compiled": True, "explicit": False},
    "bytefit, fp32, eager": {"package_model": True, "package_muon": True, "dtype": FP32, "compiled": False, "explicit": True},
    "bytefit, bf16, eager, SDPA": {"package_model": True, "package_muon": True, "dtype": BF16, "compiled": False, "explicit": False},
    "bytefit, bf16, eager": {"package_model": True, "package_muon": True, "dtype": BF16, "compiled": False, "explicit": True},
    "bytefit, fp32, compiled": {"package_model": True, "package_muon": True, "dtype": FP32, "compiled": True, "explicit": True},
    "bytefit, fp32, compiled, SDPA": {
        "package_model": True, "package_muon": True, "dtype": FP32, "compiled": True, "explicit": False,
    },
    "bytefit, bf16, compiled, plain Muon": {
        "package_model": True, "package_muon": False, "dtype": BF16, "compiled": True, "explicit": True,
    },
    "bytefit, bf16, compiled": {"package_model": True, "package_muon": True, "dtype": BF16, "compiled": True, "explicit": True},
}  # fmt: skip


def measure(recipe: Recipe, variants: dict[str, dict[str, Any]], rounds: int, steps: int) -> list[dict[str, object]]:
    runs: dict[str, Callable[[], float]] = {}
    first: dict[str, float] = {}
    for name, settings in variants.items():
        runs[name] = make_step(recipe, **settings)
        start = time.perf_counter()
        runs[name]()
        first[name] = time.perf_counter() - start
        runs[name]()
        print(f"{name}: first step {first[name]:.1f} s", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, step in runs.items():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            times[name].append((time.perf_counter() - start) / steps)
    plain = statistics.median(times["plain spelling (fp32, eager)"])
    return [
        {
            "variant": name,
            "milliseconds": round(1e3 * statistics.median(values), 2),
            "milliseconds_all": [round(1e3 * value, 2) for value in values],
            "tokens_per_second": round(recipe.train.batch_tokens / statistics.median(values)),
            "speedup": round(plain / statistics.median(values), 3),
            "first_step_seconds": round(first[name], 2),
        }
        for name, values in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="pocket", help="at its lab size")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--no-bf16", action="store_true", help="leave out what computes in bf16, which takes minutes where it is emulated")
    parser.add_argument("--default-allocator", action="store_true", help="leave glibc's allocator as it is")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not options.default_allocator:
        keep_freed_memory()
    torch._dynamo.config.recompile_limit = 64
    recipe = find_recipe(options.recipe, "lab")
    variants = {name: settings for name, settings in VARIANTS.items() if settings["dtype"] is FP32 or not options.no_bf16}
    rows = measure(recipe, variants, options.rounds, options.steps)
    record = provenance() | {
        "benchmark": "throughput", "recipe": recipe.name, "num_parameters": num_parameters(recipe.model),
        "allocator": "default" if options.default_allocator else "keep_freed_memory",
        "seq_len": recipe.train.seq_len, "batch_tokens": recipe.train.batch_tokens, "rows": rows,
    }  # fmt: skip
    for row in rows:
        print(f"{row['variant']:<38} {row['milliseconds']:>8} ms  {row['tokens_per_second']:>7,} tokens/s  {row['speedup']:.2f}x")
    if options.out:
        write(options.out, record)


if __name__ == "__main__":
    main()
