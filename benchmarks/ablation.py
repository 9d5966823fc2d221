"""What each technique of the systems is worth: left out of its system, and put into the baseline.

    python benchmarks/ablation.py train --data web --seeds 1 2 3
    python benchmarks/ablation.py lengths --data web --seeds 1
    python benchmarks/ablation.py pack --data web --seeds 1 2 3

A run and its base share the seed, so that differences are paired, and have the same steps; what a recipe counts in steps (momentum warm-up,
averages, annealing, replay) is shortened with them. For differences at equal time ``lengths`` trains every system half and twice as long,
which says what the time that a technique takes would have been worth; ``step_times.py`` measures how much that is. ``pack`` repeats what
comes after training on the weights of the systems' table (``systems.py``), as often as there are seeds. A machine computes in what it is
faster in (``record.dtype``); one kind of processor makes both runs of a pair (``record.computed_by``).

One line of JSON a run is appended to ``--out``; runs that are there already, with the same settings, are left out, so it may be stopped and
started at any time.
``benchmarks/techniques.py`` holds the techniques.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from lengths import settings_for
from record import arithmetic, computed_by, digest, dtype, provenance, read_lines
from techniques import TECHNIQUES, Technique

from bytefit.artifact.load import load_artifact
from bytefit.config import apply_settings, to_json
from bytefit.data.dataset import Dataset, open_dataset
from bytefit.files import read_json
from bytefit.ledger import Ledger
from bytefit.recipes import find_recipe
from bytefit.run.folder import RunFolder
from bytefit.run.steps import pack_step, trained_model, val_tokens
from bytefit.score.scorer import score
from bytefit.score.windows import Full
from bytefit.train.machine import describe_machine

LENGTHS = {"half": 0.5, "double": 2.0}  # of the steps that everything else has


@dataclass(frozen=True)
class Job:
    """One run: a recipe, what is changed in it, and what for."""

    recipe: str
    technique: str | None  # None: the base that others are compared with
    way: str  # base, out or in
    settings: tuple[str, ...]
    packed: bool
    seed: int
    steps: int
    match: str  # steps; weights, for what is packed anew; or one of LENGTHS

    @property
    def key(self) -> tuple[Any, ...]:
        return self.recipe, self.technique, self.way, self.seed, self.match


class Lines:
    """The results so far: a line of JSON a run, appended as they come."""

    def __init__(self, path: Path, max_bytes: int, dataset: Dataset, lab_steps: dict[str, int]):
        self.path, self.lock, self.lab_steps = path, Lock(), lab_steps
        self.here = computed_by({"dtype": dtype(), "machine": describe_machine()})
        self.same = {"bytes": max_bytes, "dataset_sha256": dataset.sha256, "dtype": dtype()}  # in every row that is made here
        self.rows = read_lines(path)

    def lengths(self, job: Job) -> list[str]:
        """What is shortened with the steps of a run that is trained anew."""
        changed = apply_settings(find_recipe(job.recipe), pairs_of(job.settings))
        return settings_for(changed, job.steps / self.lab_steps[job.recipe])

    def find(self, job: Job, by: tuple[Any, ...], weights: str | None = None) -> dict[str, Any] | None:
        """The row that was computed ``by`` this kind of processor, in this dtype.

        Raises SystemExit where a row of this name is of another recipe or other weights: its differences would be of two kinds.
        """
        lengths = self.lengths(job) if weights is None else []
        wanted = {"settings": list(job.settings), "steps": job.steps} | self.same | {"dtype": by[0]}
        wanted |= {"lengths": lengths} if weights is None else {"weights": weights}
        wanted["digest"] = digest_of(job, lengths)
        for row in self.rows:
            if (row["recipe"], row["technique"], row["way"], row["seed"], row["match"], *computed_by(row)) == (*job.key, *by):
                for key, value in wanted.items():
                    if row[key] != value:
                        sys.exit(f"{self.path} holds {job.key} with {key} {row[key]!r}, not {value!r}; take another --out, or that row out")
                return row
        return None

    def has(self, job: Job, weights: str | None = None) -> bool:
        """Whether it was made on this kind of machine."""
        return self.find(job, self.here, weights) is not None

    def compared(self, base: Job, own: Job) -> bool:
        """Whether both are there from one kind of machine, this one's or another's."""
        return any(self.find(base, by) and self.find(own, by) for by in {computed_by(row) for row in self.rows})

    def add(self, row: dict[str, Any]) -> None:
        with self.lock:
            self.rows.append(row)
            with open(self.path, "a") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def digest_of(job: Job, lengths: list[str]) -> str:
    return digest(to_json(apply_settings(find_recipe(job.recipe), pairs_of((*job.settings, *lengths)))))


def with_base(technique: Technique, recipe: str, way: str, settings: tuple[str, ...], seed: int, steps: int) -> tuple[Job, Job]:
    """The run without a change of this technique's, and the one with it; the first is the recipe as it is, or has what both need."""
    common = technique.shared(recipe)
    base = Job(recipe, technique.name if common else None, "base", common, True, seed, steps, "steps")
    return base, Job(recipe, technique.name, way, (*common, *settings), technique.judged == "packed", seed, steps, "steps")


def pairs(seed: int, steps: int) -> Iterator[tuple[Job, Job]]:
    """(base, variant) of everything that is trained anew, one recipe after the other."""
    techniques = [technique for technique in TECHNIQUES if technique.stage == "train"]
    for recipe in dict.fromkeys(("baseline", *(technique.home for technique in techniques))):
        for technique in techniques:
            if technique.home == recipe and technique.change:
                yield with_base(technique, recipe, technique.way, technique.change, seed, steps)
            if recipe == "baseline" and technique.into is not None:
                yield with_base(technique, recipe, "in", technique.into, seed, steps)


def chosen(options: argparse.Namespace, seed: int) -> list[tuple[Job, Job]]:
    recipes, names = options.recipes, options.only
    found = pairs(seed, options.steps)
    return [pair for pair in found if (not recipes or pair[1].recipe in recipes) and (not names or pair[1].technique in names)]


def of_other_lengths(options: argparse.Namespace, seed: int) -> Iterator[tuple[Job, Job]]:
    """Every system as it is, and in fewer and in more steps."""
    for recipe in dict.fromkeys(own.recipe for _, own in chosen(options, seed)):
        base = Job(recipe, None, "base", (), True, seed, options.steps, "steps")
        yield from ((base, replace(base, steps=round(options.steps * factor), match=match)) for match, factor in LENGTHS.items())


def train_and_score(job: Job, options: argparse.Namespace, dataset: Dataset, lines: Lines, made_by: dict[str, Any]) -> dict[str, Any]:
    name = "-".join("".join(c if c.isalnum() else "_" for c in str(part)) for part in job.key)
    path: Path = options.runs / name
    shutil.rmtree(path, ignore_errors=True)
    lengths = lines.lengths(job)
    sets = [word for item in (*arithmetic(), *job.settings, *lengths) for word in ("--set", item)]
    command = ["bytefit", "train", job.recipe, "--steps", str(job.steps), "--seed", str(job.seed), *sets]
    where = ["--data", str(options.data), "--out", str(path), "--json"]
    subprocess.run([sys.executable, "-m", *command, *where], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    folder = RunFolder(path)
    recipe = folder.read_recipe()
    row: dict[str, Any] = {"recipe": job.recipe, "technique": job.technique, "way": job.way, "match": job.match, "seed": job.seed}
    row |= {"steps": job.steps, "settings": list(job.settings), "lengths": lengths, "digest": digest_of(job, lengths)}
    row["float"] = bits_per_byte(folder, dataset, options.max_bytes, recipe.score.window, packed=False)
    if job.packed:
        packed = pack_step(folder, recipe, dataset, Ledger())
        row["packed"] = bits_per_byte(folder, dataset, options.max_bytes, recipe.score.window, packed=True)
        row["artifact_bytes"] = len(packed.data)
    shutil.rmtree(path)
    return row | lines.same | made_by | {"command": shlex.join(command)}


def pairs_of(settings: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(path, value) for path, _, value in (item.partition("=") for item in settings)]


def bits_per_byte(folder: RunFolder, dataset: Dataset, max_bytes: int, window: int, *, packed: bool) -> float:
    """Of non-overlapping windows, in fp32."""
    model = load_artifact(folder.artifact).model if packed else trained_model(folder, folder.read_recipe())
    tokens = val_tokens(dataset, max_bytes)
    return score(model, tokens, dataset.byte_table, Full(window=window), torch.float32).bits_per_byte


def weights_of(trained: Path) -> str:
    """Which weights a folder holds: a digest of its last checkpoint."""
    checkpoints = sorted((trained / "checkpoint").glob("step-*.safetensors"))
    if not checkpoints:
        sys.exit(f"{trained} holds no trained weights; make them with benchmarks/systems.py")
    return hashlib.sha256(checkpoints[-1].read_bytes()).hexdigest()[:16]


def repack(technique: Technique | None, recipe: str, seed: int, options: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """The systems' trained weights, packed in another way."""
    trained: Path = options.trained / f"systems-{recipe}-s{seed}"
    path = options.runs / f"pack-{recipe}-s{seed}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(trained / "checkpoint", path / "checkpoint")
    for name in ("recipe.json", "env.json"):
        shutil.copy(trained / name, path / name)
    folder = RunFolder(path)
    measured = RunFolder(trained).calibration
    if measured.exists():  # taken up where the way of packing asks for the same
        shutil.copy(measured, folder.calibration)
    settings = () if technique is None else technique.change
    changed = apply_settings(folder.read_recipe(), pairs_of(settings))
    packed = pack_step(folder, changed, dataset, Ledger())
    found = {
        "packed": bits_per_byte(folder, dataset, options.max_bytes, changed.score.window, packed=True),
        "artifact_bytes": len(packed.data),
    }
    shutil.rmtree(path)
    return found


def run_training(options: argparse.Namespace, dataset: Dataset, lines: Lines, made_by: dict[str, Any]) -> None:
    pairs_at = chosen if options.what == "train" else of_other_lengths
    of_seeds = (pairs_at(options, seed) for seed in options.seeds)
    missing = [pair for of_seed in of_seeds for pair in of_seed if not lines.compared(*pair)]
    todo = [job for job in dict.fromkeys(job for pair in missing for job in pair) if not lines.has(job)]

    def do(job: Job) -> None:
        row = train_and_score(job, options, dataset, lines, made_by)
        lines.add(row)
        shown = f"{row['float']:.4f}" + (f", packed {row['packed']:.4f}" if "packed" in row else "")
        print(f"{job.recipe} {job.way} {job.technique or ''}, seed {job.seed}, {job.steps} steps: {shown}", file=sys.stderr, flush=True)

    print(f"{len(todo)} runs to do", file=sys.stderr)
    with ThreadPoolExecutor(options.workers) as pool:
        try:
            for _ in pool.map(do, todo):
                pass
        except (KeyboardInterrupt, subprocess.CalledProcessError) as error:
            pool.shutdown(cancel_futures=True)
            message = error.stderr.decode()[-500:] if isinstance(error, subprocess.CalledProcessError) else "stopped"
            sys.exit(f"{message}\nwhat is finished is kept; start it again to go on")


def run_packing(options: argparse.Namespace, dataset: Dataset, lines: Lines, made_by: dict[str, Any]) -> None:
    techniques = [
        technique
        for technique in TECHNIQUES
        if technique.stage == "pack"
        and (not options.recipes or technique.home in options.recipes)
        and (not options.only or technique.name in options.only)
    ]
    for seed in options.seeds:
        for recipe in dict.fromkeys(technique.home for technique in techniques):
            for technique in [None, *(t for t in techniques if t.home == recipe)]:
                name, way = (technique.name, technique.way) if technique else (None, "base")
                settings = technique.change if technique else ()
                job = Job(recipe, name, way, settings, True, seed, 0, "weights")
                weights = weights_of(options.trained / f"systems-{recipe}-s{seed}")
                if lines.has(job, weights):
                    continue
                row = {"recipe": recipe, "technique": name, "way": way, "match": "weights", "seed": seed, "steps": 0}
                row |= {"settings": list(settings), "digest": digest_of(job, []), "weights": weights} | repack(
                    technique, recipe, seed, options, dataset
                )
                lines.add(row | lines.same | made_by)
                print(f"{recipe} {name or 'as it is'}, seed {seed}: {row['packed']:.4f}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "lengths", "pack"))
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--max-bytes", type=int, default=300_000, help="of validation text")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="some of the recipes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the techniques, by their names (and the bases)")
    parser.add_argument("--workers", type=int, default=1, help="runs at once (give each one thread: OMP_NUM_THREADS=1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--trained", type=Path, default=Path("runs/benchmark"), help="where systems.py left its runs")
    parser.add_argument("--lab-steps", type=Path, default=Path("benchmarks/results/systems_steps.json"), help="what lengths are made for")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.jsonl"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(options.data)
    lines = Lines(options.out, options.max_bytes, dataset, read_json(options.lab_steps)["steps"])
    do = run_packing if options.what == "pack" else run_training
    do(options, dataset, lines, provenance())


if __name__ == "__main__":
    main()
