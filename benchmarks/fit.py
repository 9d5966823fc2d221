"""The byte solver: does it land within a thousandth under any budget, how long does it take, and does the file decode alike twice?

python benchmarks/fit.py --data web --runs runs/benchmark/fit

Three recipes are trained for a few steps at lab size (kept in --runs and taken up again); then twenty random budgets, spread between the
least and the finest packing of each. The full-size recipes are packed with the weights they start from, and normal numbers where they
start at zero: what counts there is the time. Their second moments come from a few real windows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import provenance, write

from bytefit.artifact.fit import MAX_LOG, MIN_LOG
from bytefit.artifact.load import parse_artifact
from bytefit.artifact.pack import Packed, Packer, pack
from bytefit.data.dataset import Dataset, open_dataset
from bytefit.ledger import Ledger
from bytefit.quant.calibrate import CalibrationConfig, TrainingText, calibration_batches, collect
from bytefit.recipes import find_recipe
from bytefit.recipes.recipe import Recipe
from bytefit.run.folder import RunFolder
from bytefit.run.steps import calibrate_step, fit_recipe_to, new_model, trained_model

LAB = ("pocket", "pr578", "pr1171")
FULL = ("pr578", "pr1171")


def decoded_alike(packed: Packed) -> bool:
    """Two readings of the file give the same tensors, and those that were quantised."""
    first, second = (dict(parse_artifact(packed.data).model.named_parameters()) for _ in range(2))
    wanted = packed.quantised
    return all(
        torch.equal(first[n], second[n]) and np.array_equal(first[n].detach().numpy().ravel(), wanted.weights(n).ravel()) for n in first
    )


def lab(options: argparse.Namespace, name: str, dataset: Dataset, budgets: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    folder = RunFolder(options.runs / name)
    command = [str(Path(sys.executable).with_name("bytefit")), "train", name, "--steps", str(options.steps), "--data", str(options.data)]
    subprocess.run([*command, "--out", str(folder.path), "--resume", "--json"], check=True, stdout=subprocess.DEVNULL)
    recipe = folder.read_recipe()
    statistics = calibrate_step(folder, recipe, dataset, Ledger())
    model = trained_model(folder, recipe)
    weights, infos = {n: p.detach() for n, p in model.named_parameters()}, list(model.parameter_infos())
    packer = Packer(weights, infos, recipe.model, dataset.tokenizer, recipe.pack, statistics=statistics)
    least, most = (len(packer.at(2.0**log).data) for log in (MIN_LOG, MAX_LOG))
    rows = []
    for budget in np.exp(generator.uniform(np.log(least * 1.02), np.log(most * 0.98), budgets)).astype(int):
        config = replace(recipe.pack, budget_bytes=int(budget))
        started = time.perf_counter()
        packed = pack(weights, infos, recipe.model, dataset.tokenizer, config, statistics=statistics)
        seconds = time.perf_counter() - started
        row = {"recipe": name, "size": "lab", "least": least, "most": most, "budget": int(budget), "bytes": len(packed.data)}
        row |= {"share": len(packed.data) / budget, "attempts": packed.attempts, "seconds": seconds, "decoded_alike": decoded_alike(packed)}
        rows.append(row)
        print(row, file=sys.stderr)
    return rows


def full_recipe(name: str, dataset: Dataset) -> Recipe:
    """At full size with the dataset's vocabulary, calibrated on a few windows."""
    recipe = fit_recipe_to(find_recipe(name, "full"), dataset)
    return replace(recipe, calibrate=CalibrationConfig(source=TrainingText(), windows=4, batch_windows=1))


def full(name: str, dataset: Dataset, quant_of: str | None) -> dict[str, Any]:
    """One fit to the contest's 16,000,000 bytes."""
    recipe = full_recipe(name, dataset)
    pack_config = recipe.pack if quant_of is None else replace(find_recipe(quant_of).pack, budget_bytes=recipe.pack.budget_bytes)
    model = new_model(recipe).eval()
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2 and not p.any():
                p.copy_(torch.randn(p.shape, generator=generator) * p.size(1) ** -0.5)
    assert recipe.calibrate is not None
    started = time.perf_counter()
    batches = calibration_batches(
        recipe.calibrate, model, train=dataset.train, tokenizer=dataset.tokenizer, seq_len=recipe.train.seq_len, seed=recipe.seed
    )
    statistics = collect(model, batches, gradients=pack_config.quant.needs_gradients)
    calibrated = time.perf_counter()
    weights, infos = {n: p.detach() for n, p in model.named_parameters()}, list(model.parameter_infos())
    packed = pack(weights, infos, recipe.model, dataset.tokenizer, pack_config, statistics=statistics)
    seconds = time.perf_counter() - calibrated
    row = {"recipe": name, "size": "full", "quant": quant_of or name, "budget": pack_config.budget_bytes, "bytes": len(packed.data)}
    row |= {"share": len(packed.data) / pack_config.budget_bytes, "attempts": packed.attempts, "seconds": seconds}
    row |= {"calibration_seconds": calibrated - started, "decoded_alike": decoded_alike(packed)}
    print(row, file=sys.stderr)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--steps", type=int, default=60, help="of training at lab size")
    parser.add_argument("--budgets", type=int, default=20, help="random budgets in all")
    parser.add_argument("--full", choices=("yes", "no", "only"), default="yes")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark/fit"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fit.json"))
    options = parser.parse_args()
    dataset, generator = open_dataset(options.data), np.random.default_rng(1)
    record = provenance() | {"benchmark": "fit", "dataset_sha256": dataset.sha256, "rows": []}
    if options.full != "only":
        shares = np.diff(np.linspace(0, options.budgets, len(LAB) + 1).round().astype(int))
        for name, budgets in zip(LAB, shares, strict=True):
            record["rows"] += lab(options, name, dataset, int(budgets), generator)
            write(options.out, record)
    if options.full != "no":
        for name in FULL:
            for quant_of in (None, "pocket"):
                record["rows"].append(full(name, dataset, quant_of))
                write(options.out, record)
    landed = [0.999 < row["share"] <= 1 and row["decoded_alike"] for row in record["rows"]]
    slowest = {size: max((r["seconds"] for r in record["rows"] if r["size"] == size), default=0.0) for size in ("lab", "full")}
    print(f"{sum(landed)} of {len(landed)} landed in (99.9 %, 100 %] and decoded alike; slowest: {slowest}")


if __name__ == "__main__":
    main()
