"""The table of systems: every recipe at lab size, on the same machine, text, clock and cap, all seeds of one after the other.

    python benchmarks/systems.py --data web --seeds 1 2 3

Each run trains for 300 s, is fitted to 1,000,000 bytes with everything inside, scored on the first MB of validation text (whole documents),
proven and audited. Where ``as_submitted`` differs from a recipe it has rows of its own. Systems that calibrated on training text after the
clock do so within it here in both forms, because the rules say so and the audit asks for it.

One line of JSON a run is appended to ``--out``; runs that are there already are left out, and a run that was stopped goes on where it was.
Nothing else should run meanwhile: training is by the clock.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from record import provenance

from bytefit.data.dataset import Dataset, open_dataset
from bytefit.files import read_json
from bytefit.recipes import AS_SUBMITTED, RECIPES, find_recipe
from bytefit.recipes.eleven import CALIBRATION_SECONDS
from bytefit.run.folder import RunFolder
from bytefit.run.steps import new_model, val_tokens
from bytefit.score.scorer import score
from bytefit.score.windows import Full
from bytefit.train.checkpoint import load_checkpoint

SECONDS, FULL_SECONDS = 300, 600
ORDER = sorted(RECIPES, key=lambda name: (name.endswith(AS_SUBMITTED), list(RECIPES).index(name)))


def settings_of(name: str) -> list[str]:
    """What is asked of every recipe here, beyond its seconds."""
    recipe = find_recipe(name)
    settings = ["score.max_bytes=1000000"]
    calibrates_on_training_text = recipe.calibrate is not None and type(recipe.calibrate.source).__name__ == "TrainingText"
    if calibrates_on_training_text and not recipe.train.reserve_seconds:
        settings.append(f"train.reserve_seconds={CALIBRATION_SECONDS * SECONDS / FULL_SECONDS}")
    return settings


def last_weights_bits_per_byte(folder: RunFolder, dataset: Dataset) -> float:
    """Of the last weights of training, before any averaging; non-overlapping windows, as ``val_bpb_float``."""
    recipe = folder.read_recipe()
    model = new_model(recipe)
    model.load_state_dict(load_checkpoint(folder.checkpoint).weights)
    tokens = val_tokens(dataset, recipe.score.max_bytes)
    window = Full(window=recipe.score.window)
    return score(model.eval(), tokens, dataset.byte_table, window, torch.float32).bits_per_byte


def measure(name: str, seed: int, options: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    path = options.runs / f"systems-{name}-s{seed}"
    sets = [word for setting in settings_of(name) for word in ("--set", setting)]
    command = ["bytefit", "run", name, "--seconds", str(SECONDS), "--seed", str(seed), *sets]
    where = ["--data", str(options.data), "--out", str(path), "--resume", "--json"]
    done = subprocess.run([sys.executable, "-m", *command, *where], stdout=subprocess.PIPE, text=True, check=True)
    subprocess.run([sys.executable, "-m", "bytefit", "audit", str(path)], stdout=subprocess.DEVNULL)
    folder = RunFolder(path)
    findings = read_json(folder.audit)
    row: dict[str, Any] = {"system": name, "seed": seed, "command": shlex.join(command)}
    row["audit"] = {verdict: [f["class"] for f in findings if f["verdict"] == verdict] for verdict in ("pass", "fail")}
    row["val_bpb_last"] = last_weights_bits_per_byte(folder, dataset)
    row["headline"] = folder.read_recipe().score.headline
    summary = json.loads(done.stdout)
    summary.pop("sample")
    return row | {"summary": summary}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--systems", nargs="+", default=ORDER, metavar="NAME", help="some of the recipes (default: all)")
    parser.add_argument("--most", type=int, help="stop after so many runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/systems.jsonl"))
    options = parser.parse_args()
    made_by = {key: value for key, value in provenance().items() if key != "command"}
    dataset = open_dataset(options.data)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(row["system"], row["seed"]) for row in rows}
    todo = [pair for pair in itertools.product(options.seeds, options.systems) if (pair[1], pair[0]) not in done]
    for seed, name in todo[: options.most]:
        row = measure(name, seed, options, dataset) | made_by
        with open(options.out, "a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        summary = row["summary"]
        print(f"{name}, seed {seed}: {summary['val_bpb']:.4f}, {summary['artifact_bytes']:,} bytes", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
