"""Runs that take as many steps as a clock allows on two idle cores: what ``systems.py`` and ``scaling.py`` have in common.

A shared machine's speed changes from minute to minute, so ``speed`` first finds out how many steps each entry takes a second: short runs by
the clock, all entries in turn, several rounds, nothing else running. An entry's speed is its share of the mean speed of a round, the median
of the rounds, times the mean of the fastest round: what changes from round to round is the machine's, the same for all. ``run`` then trains
for so many steps, which a busy machine cannot change. What reads training text after the loop is inside the clock. An entry may take the
steps of another one whose step costs the same: by its own speed it would get the noise of that measurement, and stop at other documents.

A run computes in what its machine is faster in, bf16 or fp32 (``record.dtype``), and says so; the steps are the same wherever it is made.

One line of JSON a run is appended to ``--out``; runs that are there already are left out, and a run that was stopped goes on where it was.
A row of another number of steps than ``speed`` says now, or of another recipe than it is now, is measured again and replaced.
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
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from record import arithmetic, audited, digest, dtype, provenance, put_row, read_lines, write

from bytefit.config import apply_settings, to_json
from bytefit.data.dataset import Dataset, open_dataset
from bytefit.files import read_json
from bytefit.recipes import find_recipe
from bytefit.run.folder import RunFolder
from bytefit.run.steps import new_model, val_tokens
from bytefit.score.scorer import score
from bytefit.score.windows import Full
from bytefit.train.checkpoint import load_checkpoint

SYSTEMS_STEPS = Path("benchmarks/results/systems_steps.json")


@dataclass(frozen=True)
class Entry:
    """What is trained, under which name, for how long by the clock, and whose steps it takes if not its own."""

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    seconds: float = 300.0
    paced_by: Entry | None = None

    @property
    def pace(self) -> Entry:
        return self.paced_by or self

    @property
    def training_seconds(self) -> float:
        """What is left of the clock for training: without what reads training text after it (choosing among averages, calibrating)."""
        return self.seconds - min(find_recipe(self.recipe).train.reserve_seconds, self.seconds / 4)

    @property
    def digest(self) -> str:
        pairs = [(path, value) for path, _, value in (setting.partition("=") for setting in self.settings)]
        return digest(to_json(apply_settings(find_recipe(self.recipe), pairs)))

    @property
    def words(self) -> list[str]:
        return [word for setting in (*arithmetic(), *self.settings) for word in ("--set", setting)]


def measure_speed(entries: list[Entry], beside: Entry | None, options: argparse.Namespace, made_by: dict[str, Any]) -> None:
    """Rounds of short runs, added to those in the file, and the steps that fit each entry's clock.

    What differs by its clock alone is measured once. ``beside`` is an entry of the table of systems: it is measured too, and the others are
    as much faster or slower than its steps there as they are than its speed here.
    """
    held = read_json(options.steps) if options.steps.exists() else {"rounds": [], "steps": {}}
    alike: dict[tuple[str, tuple[str, ...]], Entry] = {}
    for entry in [beside, *entries] if beside else entries:
        for measured in (entry, entry.pace):
            alike.setdefault((measured.recipe, measured.settings), measured)
    names = {entry.name for entry in alike.values()}
    for _ in range(options.rounds):
        held["rounds"].append(made_by | {"steps_per_second": {entry.name: steps_per_second(entry, options) for entry in alike.values()}})
        write(options.steps, held)
    speeds = undisturbed([turn["steps_per_second"] for turn in held["rounds"] if turn["steps_per_second"].keys() == names])
    scale = read_json(SYSTEMS_STEPS)["steps"][beside.name] / beside.training_seconds / speeds[beside.name] if beside else 1.0
    for entry in entries:
        speed = speeds[alike[entry.pace.recipe, entry.pace.settings].name]
        held["steps"][entry.name] = round(scale * speed * entry.pace.training_seconds)
    write(options.steps, held)


def steps_per_second(entry: Entry, options: argparse.Namespace) -> float:
    """Of a short run by the clock."""
    path = options.runs / f"{options.steps.stem}-speed"
    shutil.rmtree(path, ignore_errors=True)
    command = ["bytefit", "train", entry.recipe, "--seconds", str(options.seconds), "--set", "train.reserve_seconds=0", *entry.words]
    subprocess.run([sys.executable, "-m", *command, "--data", str(options.data), "--out", str(path)], check=True)
    state = read_json(path / "checkpoint" / "state.json")
    shutil.rmtree(path)
    rate: float = state["step"] / state["seconds"]["train"]
    print(f"{entry.name}: {rate:.3f} steps a second", file=sys.stderr, flush=True)
    return rate


def undisturbed(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Steps a second of every entry, from rounds that hold the same entries."""
    means = [statistics.geometric_mean(rates.values()) for rates in rounds]
    return {name: max(means) * statistics.median(r[name] / m for r, m in zip(rounds, means, strict=True)) for name in rounds[0]}


def last_weights_bits_per_byte(folder: RunFolder, dataset: Dataset) -> float:
    """Of the last weights of training, before any averaging; non-overlapping windows, as ``val_bpb_float``."""
    recipe = folder.read_recipe()
    model = new_model(recipe)
    model.load_state_dict(load_checkpoint(folder.checkpoint).weights)
    tokens, scored_in = val_tokens(dataset, recipe.score.max_bytes), getattr(torch, read_json(folder.score)["float_full"]["dtype"])
    return score(model.eval(), tokens, dataset.byte_table, Full(window=recipe.score.window), scored_in).bits_per_byte


def measure(entry: Entry, seed: int, steps: int, options: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    path = options.runs / f"{options.out.stem}-{entry.name}-s{seed}"
    if RunFolder(path).recipe.exists():
        held = read_json(RunFolder(path).recipe)
        if (held["train"]["steps"], held["train"]["dtype"], digest(held)) != (steps, dtype(), entry.digest):
            shutil.rmtree(path)
    command = ["bytefit", "run", entry.recipe, "--steps", str(steps), "--seed", str(seed), "--set", "score.max_bytes=1000000", *entry.words]
    where = ["--data", str(options.data), "--out", str(path), "--resume", "--json"]
    done = subprocess.run([sys.executable, "-m", *command, *where], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{entry.name}, seed {seed}: {done.stderr[-500:]}")
    folder = RunFolder(path)
    row: dict[str, Any] = {"name": entry.name, "seed": seed, "seconds": entry.seconds, "command": shlex.join(command)}
    row |= {"digest": digest(read_json(folder.recipe)), "audit": audited(folder)}
    row["val_bpb_last"] = last_weights_bits_per_byte(folder, dataset)
    row["headline"] = folder.read_recipe().score.headline
    row["dial"] = read_json(folder.pack)["dial"]
    summary = json.loads(done.stdout)
    summary.pop("sample")
    return row | {"summary": summary}


def run_entries(entries: list[Entry], options: argparse.Namespace, made_by: dict[str, Any]) -> None:
    """Every entry with every seed, the seeds one after the other."""
    dataset, lock = open_dataset(options.data), Lock()
    steps = read_json(options.steps)["steps"]
    done = {(row["name"], row["seed"], row["summary"]["steps"], row["digest"]) for row in read_lines(options.out)}
    todo = [
        (entry, seed)
        for seed, entry in itertools.product(options.seeds, entries)
        if (entry.name, seed, steps[entry.name], entry.digest) not in done
    ]

    def do(pair: tuple[Entry, int]) -> None:
        entry, seed = pair
        row = measure(entry, seed, steps[entry.name], options, dataset) | {key: made_by[key] for key in ("commit", "machine")}
        with lock:
            put_row(options.out, row, key=("name", "seed"))
        summary = row["summary"]
        print(f"{entry.name}, seed {seed}: {summary['val_bpb']:.4f}, {summary['artifact_bytes']:,} bytes", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(options.workers) as pool:
        try:
            for _ in pool.map(do, todo[: options.most]):
                pass
        except (KeyboardInterrupt, RuntimeError) as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(f"{error or 'stopped'}\nwhat is finished is kept; start it again to go on")


def main(entries: list[Entry], name: str, description: str | None, beside: Entry | None = None) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "run"))
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of: {', '.join(entry.name for entry in entries)}")
    parser.add_argument("--rounds", type=int, default=3, help="of speed; 0 counts steps again from the rounds that are there")
    parser.add_argument("--seconds", type=float, default=15, help="of each short run of speed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--most", type=int, help="stop after so many runs")
    parser.add_argument("--workers", type=int, default=1, help="runs at once (give each one thread: OMP_NUM_THREADS=1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--steps", type=Path, default=Path(f"benchmarks/results/{name}_steps.json"))
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{name}.jsonl"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    chosen = [entry for entry in entries if options.only is None or entry.name in options.only]
    if options.what == "speed":
        measure_speed(chosen, beside, options, provenance())
    else:
        run_entries(chosen, options, provenance())
