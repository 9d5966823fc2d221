"""The table of systems: every recipe at lab size on the same text, with the same clock and the same cap.

    python benchmarks/systems.py speed --data web
    python benchmarks/systems.py run --data web --seeds 1 2 3 --workers 2

The clock is 300 s of training on two cores. A shared machine's speed changes from minute to minute, so ``speed`` first finds out how many
steps each recipe takes in that time: short runs by the clock, all recipes in turn, several rounds, nothing else running; the median round
counts. ``run`` then trains for so many steps, which a busy machine cannot change. Calibration on training text is inside the 300 s.

Each run is fitted to 1,000,000 bytes with everything inside, scored on the first MB of validation text (whole documents), proven and
audited. Where ``as_submitted`` differs from a recipe it has rows of its own.

One line of JSON a run is appended to ``--out``; runs that are there already are left out, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from record import provenance, write

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


def training_seconds(name: str) -> float:
    """What is left of the clock for training: without what calibrating on training text may take."""
    recipe = find_recipe(name)
    reserve = recipe.train.reserve_seconds
    if recipe.calibrate is not None and type(recipe.calibrate.source).__name__ == "TrainingText":
        reserve = reserve or CALIBRATION_SECONDS * SECONDS / FULL_SECONDS  # as_submitted forms leave nothing, which the rules forbid
    return SECONDS - reserve


def measure_speed(options: argparse.Namespace, made_by: dict[str, Any]) -> None:
    """Steps a second of every recipe, in turn, and the steps that fit the clock."""
    rates: dict[str, list[float]] = {name: [] for name in options.systems}
    for _, name in itertools.product(range(options.rounds), options.systems):
        path = options.runs / "systems-speed"
        shutil.rmtree(path, ignore_errors=True)
        command = ["bytefit", "train", name, "--seconds", str(options.seconds), "--set", "train.reserve_seconds=0"]
        subprocess.run([sys.executable, "-m", *command, "--data", str(options.data), "--out", str(path)], check=True)
        state = read_json(path / "checkpoint" / "state.json")
        rates[name].append(state["step"] / state["seconds"]["train"])
        print(f"{name}: {rates[name][-1]:.3f} steps a second", file=sys.stderr, flush=True)
        shutil.rmtree(path)
        steps = {name: round(statistics.median(found) * training_seconds(name)) for name, found in rates.items() if found}
        record = {"benchmark": "systems_steps", "seconds": SECONDS, "steps_per_second": rates, "steps": steps}
        write(options.steps, made_by | record)


def last_weights_bits_per_byte(folder: RunFolder, dataset: Dataset) -> float:
    """Of the last weights of training, before any averaging; non-overlapping windows, as ``val_bpb_float``."""
    recipe = folder.read_recipe()
    model = new_model(recipe)
    model.load_state_dict(load_checkpoint(folder.checkpoint).weights)
    tokens = val_tokens(dataset, recipe.score.max_bytes)
    return score(model.eval(), tokens, dataset.byte_table, Full(window=recipe.score.window), torch.float32).bits_per_byte


def measure(name: str, seed: int, steps: int, options: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    path = options.runs / f"systems-{name}-s{seed}"
    command = ["bytefit", "run", name, "--steps", str(steps), "--seed", str(seed), "--set", "score.max_bytes=1000000"]
    where = ["--data", str(options.data), "--out", str(path), "--resume", "--json"]
    done = subprocess.run([sys.executable, "-m", *command, *where], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}, seed {seed}: {done.stderr[-500:]}")
    subprocess.run([sys.executable, "-m", "bytefit", "audit", str(path)], capture_output=True)
    folder = RunFolder(path)
    findings = read_json(folder.audit)
    row: dict[str, Any] = {"system": name, "seed": seed, "command": shlex.join(command)}
    row["audit"] = {verdict: [f["class"] for f in findings if f["verdict"] == verdict] for verdict in ("pass", "fail")}
    row["val_bpb_last"] = last_weights_bits_per_byte(folder, dataset)
    row["headline"] = folder.read_recipe().score.headline
    summary = json.loads(done.stdout)
    summary.pop("sample")
    return row | {"summary": summary}


def run_systems(options: argparse.Namespace, made_by: dict[str, Any]) -> None:
    dataset, lock = open_dataset(options.data), Lock()
    steps = read_json(options.steps)["steps"]
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(row["system"], row["seed"]) for row in rows}
    todo = [(name, seed) for seed, name in itertools.product(options.seeds, options.systems) if (name, seed) not in done]

    def do(pair: tuple[str, int]) -> None:
        name, seed = pair
        row = measure(name, seed, steps[name], options, dataset) | {key: made_by[key] for key in ("commit", "machine")}
        with lock, open(options.out, "a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        summary = row["summary"]
        print(f"{name}, seed {seed}: {summary['val_bpb']:.4f}, {summary['artifact_bytes']:,} bytes", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(options.workers) as pool:
        try:
            for _ in pool.map(do, todo[: options.most]):
                pass
        except (KeyboardInterrupt, RuntimeError) as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(f"{error or 'stopped'}\nwhat is finished is kept; start it again to go on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "run"))
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--systems", nargs="+", default=ORDER, metavar="NAME", help="some of the recipes (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="of speed")
    parser.add_argument("--seconds", type=float, default=20, help="of each short run of speed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--most", type=int, help="stop after so many runs")
    parser.add_argument("--workers", type=int, default=1, help="runs at once (give each one thread: OMP_NUM_THREADS=1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--steps", type=Path, default=Path("benchmarks/results/systems_steps.json"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/systems.jsonl"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    (measure_speed if options.what == "speed" else run_systems)(options, provenance())


if __name__ == "__main__":
    main()
