"""Contest-size recipes on a CPU: a few real optimizer steps with a small batch, and how much memory they take.

Each recipe trains in a process of its own (``bytefit train RECIPE --size full``) on the embedded corpus, with the batch made small,
compilation left out and what counts in steps shortened with the steps: a warm-down of thousands would leave three hardly any learning rate.
Everything else is the recipe's. The checkpoint is read back: every parameter must have moved.

    python benchmarks/full_size.py --out benchmarks/results/full_size.json
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from lengths import settings_for
from record import arithmetic, hide_gpus, provenance, write

from bytefit.data.embedded import embedded_dataset
from bytefit.model.inspect import num_parameters
from bytefit.recipes import SYSTEMS, find_recipe
from bytefit.run.steps import new_model
from bytefit.train.checkpoint import load_checkpoint
from bytefit.train.metrics import read_metrics

STEPS = 3
SETTINGS = ["train.batch_tokens=4096", "train.warmup_steps=0", "train.compile=false"]


def settings_of(name: str) -> list[str]:
    recipe = find_recipe(name, "full")
    lengths = settings_for(recipe, STEPS / SYSTEMS[name][1].steps)
    settings = [*arithmetic(), *lengths, *SETTINGS, f"train.micro_batch_tokens={max(2048, recipe.train.seq_len)}"]
    if recipe.train.replay is not None:
        settings.append("train.replay=null")  # nothing is left to go over again
    if getattr(recipe.train.loader, "num_spans", 0) > 4096 // recipe.train.seq_len:
        settings.append("train.loader.num_spans=1")
    return settings


def three_steps(name: str, runs: Path) -> dict[str, Any]:
    folder = runs / f"full_size-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    recipe = find_recipe(name, "full")
    command = ["bytefit", "train", name, "--size", "full", "--steps", str(STEPS), "--out", str(folder)]
    command += [word for setting in settings_of(name) for word in ("--set", setting)]
    process = os.spawnv(os.P_NOWAIT, str(Path(sys.executable).with_name("bytefit")), command)
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"{name} failed")
    held = load_checkpoint(folder / "checkpoint")
    torch.manual_seed(recipe.seed)
    start = dict(new_model(recipe).named_parameters())
    still = [n for n, w in held.weights.items() if torch.equal(w, start[n].detach())]
    steps = read_metrics(folder / "metrics.jsonl")
    shutil.rmtree(folder)
    return {
        "recipe": name,
        "command": shlex.join(command),
        "num_parameters": num_parameters(recipe.model),
        "losses": [step["loss"] for step in steps],
        "lr_scales": [step["lr_scale"] for step in steps],
        "train_seconds": round(held.progress["seconds"]["train"], 2),
        "peak_memory_gb": round(usage.ru_maxrss / 1024**2, 2),
        "parameters_that_did_not_move": still,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["baseline", "pr128", "pr578", "pr606", "pr693", "pr1171"])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    hide_gpus()
    embedded_dataset(find_recipe("baseline", "full").tokenizer)  # built here, so that its memory is not counted below
    made_by, rows = provenance(), []
    for name in options.recipes:
        rows.append(three_steps(name, options.runs))
        print(rows[-1], file=sys.stderr)
        write(options.out, made_by | {"benchmark": "full_size", "steps": STEPS, "rows": rows})


if __name__ == "__main__":
    main()
