"""How many times as long a training step takes with a technique as without it.

    OMP_NUM_THREADS=1 python benchmarks/step_times.py --data web --workers 2

A machine's speed changes from minute to minute, so a base and a few of its variants train in one process and take turns: a step of each,
then the next step of each. Every run is whole, so that what begins late in training has its share of it, and is repeated; of a step's times
in the repeats the shortest counts, since other work only adds to them. Runs are those of ``ablation.py``, of fewer steps, and nothing but
the training clock is read.

One line of JSON a variant is appended to ``--out``; what is there already is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Condition
from typing import Any

from ablation import Job, digest_of, pairs, pairs_of
from lengths import settings_for
from record import arithmetic, computed_by, dtype, provenance, read_lines

from bytefit.config import apply_settings
from bytefit.data.dataset import Dataset, open_dataset
from bytefit.files import read_json
from bytefit.ledger import Ledger
from bytefit.ranks import Ranks
from bytefit.recipes import find_recipe
from bytefit.recipes.recipe import Recipe
from bytefit.run.folder import RunFolder
from bytefit.run.steps import fit_recipe_to, train_step
from bytefit.train.machine import describe_machine, keep_freed_memory

SIDE_BY_SIDE = 4  # variants in a process: compiled graphs of one model are looked through one after the other
_M_ARENA_MAX = -8  # mallopt(3) of glibc


def one_heap() -> None:
    """Let all threads share the main thread's heap, which keeps what a step frees. In heaps of their own, as glibc gives them, the same
    steps took a few percent longer in one thread than in another."""
    keep_freed_memory()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


class Turns:
    """Lets one of several threads go on at a time, each in its turn."""

    def __init__(self, count: int):
        self._order, self._changed = list(range(count)), Condition()

    def wait(self, index: int) -> None:
        """Until it is this one's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._order[0] == index)

    def pass_on(self, index: int) -> None:
        """To the next one; returns when the turn has come back."""
        with self._changed:
            self._order.append(self._order.pop(0))
            self._changed.notify_all()
        self.wait(index)

    def leave(self) -> None:
        """Called by the one whose turn it is."""
        with self._changed:
            self._order.pop(0)
            self._changed.notify_all()


@dataclass(frozen=True)
class InTurns(Ranks):
    """The only rank, which hands the turn on wherever a first rank would tell the others what the clock says: before every step.

    Attributes:
        seconds: between those places; the first one, before the first step, is what compiles.
    """

    turns: Turns
    index: int
    seconds: list[float] = field(default_factory=list)
    started: list[float] = field(default_factory=list)

    def from_first(self, values: list[float]) -> list[float]:
        if self.started:
            self.seconds.append(time.perf_counter() - self.started.pop())
        self.turns.pass_on(self.index)
        self.started.append(time.perf_counter())
        return values


def in_turns(recipes: list[Recipe], dataset: Dataset) -> list[list[float]]:
    """Train all of them, a step of each at a time; the seconds of every step of each."""
    turns = Turns(len(recipes))

    def run(index: int) -> list[float]:
        turns.wait(index)
        ranks = InTurns(0, 1, "cpu", turns, index)
        try:
            with tempfile.TemporaryDirectory() as path:
                train_step(RunFolder(Path(path)), recipes[index], dataset, Ledger(), ranks, resume=False)
        finally:
            turns.leave()
        return ranks.seconds[1:]

    with ThreadPoolExecutor(len(recipes)) as threads:
        return list(threads.map(run, range(len(recipes))))


def short(job: Job, computing: tuple[str, ...], dataset: Dataset, steps: int, lab_steps: int) -> Recipe:
    """Its run in so many steps."""
    settings = pairs_of((*computing, *job.settings))
    recipe = fit_recipe_to(apply_settings(find_recipe(job.recipe), settings), dataset, tell=False)
    recipe = apply_settings(recipe, pairs_of(tuple(settings_for(recipe, steps / lab_steps))))
    train = replace(recipe.train, steps=steps, seconds=None, reserve_seconds=0.0, checkpoint_seconds=math.inf)
    return replace(recipe, seed=job.seed, train=train)


def measure(
    base: Job, variants: list[Job], computing: tuple[str, ...], data: Path, steps: int, lab_steps: int, repeats: int
) -> list[dict[str, Any]]:
    """Rows of these variants, from a process of their own."""
    one_heap()
    dataset = open_dataset(data)
    recipes = [short(job, computing, dataset, steps, lab_steps) for job in (base, *variants)]
    with contextlib.redirect_stderr(io.StringIO()):  # their progress
        found = [in_turns(recipes, dataset) for _ in range(repeats)]
    milliseconds = [sum(min(times) for times in zip(*runs, strict=True)) / steps * 1e3 for runs in zip(*found, strict=True)]
    return [
        {
            "recipe": job.recipe, "technique": job.technique, "way": job.way, "seed": job.seed, "steps": steps,
            "settings": list(job.settings), "digest": digest_of(job, []),
            "base_milliseconds": round(milliseconds[0], 2), "milliseconds": round(milliseconds[index], 2),
            "ratio": round(milliseconds[index] / milliseconds[0], 4),
            "ratios": [round(sum(runs[index]) / sum(runs[0]), 4) for runs in found],
        }
        for index, job in enumerate(variants, 1)
    ]  # fmt: skip


def groups(seed: int, wanted: list[str] | None) -> Iterator[tuple[Job, list[Job]]]:
    """Bases with a few variants each."""
    every = [pair for pair in pairs(seed, steps=0) if not wanted or pair[1].recipe in wanted]
    for base in dict.fromkeys(base for base, _ in every):
        own = [variant for other, variant in every if other == base]
        yield from ((base, own[i : i + SIDE_BY_SIDE]) for i in range(0, len(own), SIDE_BY_SIDE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="some of the recipes")
    parser.add_argument("--workers", type=int, default=1, help="processes at once (give each one thread: OMP_NUM_THREADS=1)")
    parser.add_argument("--lab-steps", type=Path, default=Path("benchmarks/results/systems_steps.json"), help="what lengths are made for")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step_times.jsonl"))
    options = parser.parse_args()
    lab_steps, made_by = read_json(options.lab_steps)["steps"], provenance() | {"dtype": dtype()}
    here = computed_by({"dtype": dtype(), "machine": describe_machine()})
    have = {(r["recipe"], r["technique"], r["way"], r["digest"], *computed_by(r)) for r in read_lines(options.out)}

    def missing(job: Job) -> bool:
        return (job.recipe, job.technique, job.way, digest_of(job, []), *here) not in have

    todo = [(base, own) for base, variants in groups(1, options.recipes) if (own := [job for job in variants if missing(job)])]
    print(f"{sum(len(own) for _, own in todo)} variants to do", file=sys.stderr)
    fresh = multiprocessing.get_context("spawn")  # each with compiled graphs of its own alone
    with ProcessPoolExecutor(options.workers, mp_context=fresh, max_tasks_per_child=1) as pool:
        running = [
            pool.submit(measure, base, own, arithmetic(), options.data, options.steps, lab_steps[base.recipe], options.repeats)
            for base, own in todo
        ]
        try:
            for done in as_completed(running):
                rows = done.result()
                with open(options.out, "a") as file:
                    file.writelines(json.dumps(row | made_by, ensure_ascii=False) + "\n" for row in rows)
                for row in rows:
                    shown = f"{row['recipe']} {row['way']} {row['technique']}: {row['ratio']:.3f} (of {row['ratios']})"
                    print(shown, file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            sys.exit("stopped\nwhat is finished is kept; start it again to go on")


if __name__ == "__main__":
    main()
