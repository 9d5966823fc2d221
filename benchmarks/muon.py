"""Muon's step against ``torch.optim.Muon`` on the matrices of a recipe, in one run.

Both take the same weights and gradients. Three forms are timed in turns (A B C A B C …): torch's; ours in bf16, as torch computes and
as ``auto`` picks where that is faster; ours in fp32. Medians are quoted. How near the first update of each is to one computed in
float64 says whether they are the same up to rounding: the largest distance over all matrices, relative to the update.

    python benchmarks/muon.py --out benchmarks/results/muon.json
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
from record import provenance, write
from torch import Tensor, nn

from bytefit.model.inspect import cost_by_part
from bytefit.model.roles import MATRIX_ROLES
from bytefit.optim.muon import Muon
from bytefit.optim.newton_schulz import coefficients_of, orthogonalise
from bytefit.recipes import find_recipe
from bytefit.train.machine import keep_freed_memory

SEED = 0
CASES = [("pocket", "lab"), ("pr578", "lab"), ("pr1171", "lab"), ("pr578", "full"), ("pr1171", "full")]
SETTINGS = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.04}


def shapes_of(recipe: str, size: str) -> list[tuple[int, ...]]:
    """The shapes of a recipe's hidden matrices."""
    return [row.shape for row in cost_by_part(find_recipe(recipe, size).model) if row.role in MATRIX_ROLES]


def fresh(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(SEED)
    return [nn.Parameter(torch.randn(shape, generator=generator) * shape[1] ** -0.5) for shape in shapes]


def gradients_of(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(SEED + 1)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def ours(parameters: list[nn.Parameter], dtype: torch.dtype) -> torch.optim.Optimizer:
    return Muon(parameters, dtype=dtype, **SETTINGS)


def torchs(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon(parameters, nesterov=True, adjust_lr_fn="original", **SETTINGS)


def in_float64(parameters: list[nn.Parameter], gradients: list[Tensor]) -> list[Tensor]:
    """The first update, by the formula."""
    lr, momentum, decay = SETTINGS["lr"], SETTINGS["momentum"], SETTINGS["weight_decay"]
    updates = []
    for p, g in zip(parameters, gradients, strict=True):
        u = (1 + momentum) * g.double()  # the first step of Nesterov's momentum
        direction = orthogonalise([u[None]], coefficients_of("quintic", 5), torch.float64)[0][0]
        rows, cols = p.shape
        updates.append(-lr * decay * p.detach().double() - lr * max(1, rows / cols) ** 0.5 * direction)
    return updates


def compare(shapes: list[tuple[int, ...]], repeats: int) -> dict[str, Any]:
    makers: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "torch.optim.Muon": torchs,
        "bytefit, bf16": lambda parameters: ours(parameters, torch.bfloat16),
        "bytefit, fp32": lambda parameters: ours(parameters, torch.float32),
    }
    gradients = gradients_of(shapes)
    steppers: dict[str, Callable[[], None]] = {}
    first_updates: dict[str, list[Tensor]] = {}
    for name, make in makers.items():
        parameters = fresh(shapes)
        before = [p.detach().clone() for p in parameters]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        optimizer = make(parameters)
        optimizer.step()
        first_updates[name] = [p.detach() - b for p, b in zip(parameters, before, strict=True)]
        steppers[name] = optimizer.step
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(repeats):
        for name, step in steppers.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    reference = in_float64(fresh(shapes), gradients)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {
            "median_ms": round(1000 * medians[name], 3),
            "times_torchs_speed": round(medians["torch.optim.Muon"] / medians[name], 3),
            "distance_from_float64": round(
                max(float((a.double() - b).norm() / b.norm()) for a, b in zip(updates, reference, strict=True)), 5
            ),
        }
        for name, updates in first_updates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    for recipe, size in CASES:
        shapes = shapes_of(recipe, size)
        found = compare(shapes, options.repeats if size == "full" else 10 * options.repeats)
        rows.append({"recipe": recipe, "size": size, "matrices": len(shapes), "forms": found})
        print(recipe, size, {name: (form["median_ms"], form["times_torchs_speed"]) for name, form in found.items()}, file=sys.stderr)
    repeats = {"full": options.repeats, "lab": 10 * options.repeats}
    write(options.out, provenance() | {"benchmark": "muon", "seed": SEED, "repeats": repeats, "rows": rows})


if __name__ == "__main__":
    main()
