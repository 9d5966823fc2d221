"""Contest-size recipes from training to proof on a CPU: briefly trained weights in at most 16,000,000 bytes, loaded, scored, restored.

    zstd -dc val.jsonl.zst | awk 'length < 10000' | head -n 13 > few.jsonl
    bytefit data build train-*.jsonl.zst --val few.jsonl --vocab 2048 --out few
    python benchmarks/full_artifact.py --data few --steps 40

Everything is the recipe's but what would take a CPU days: tokens a step, windows of calibration, text to prove, the chunks learned from,
so that there are several of them in so little text, and what counts in steps, which is shortened with the steps. The validation text is a
few documents, which are scored whole, as the audit asks of this size. That it works is what is shown, not how good the model is.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lengths import settings_for
from record import audited, hide_gpus, provenance, write

from bytefit.artifact.load import load_artifact
from bytefit.data.dataset import open_dataset
from bytefit.recipes import SYSTEMS, find_recipe
from bytefit.run.folder import RunFolder
from bytefit.score.adapt import Adapt

MOST_BYTES = 100_000  # of validation text


def settings_of(name: str, steps: int) -> list[str]:
    recipe = find_recipe(name, "full")
    window = recipe.train.seq_len
    settings = [
        *settings_for(recipe, steps / SYSTEMS[name][1].steps),
        f"train.batch_tokens={2 * window}",
        f"train.micro_batch_tokens={window}",
        "train.compile=false",
        "train.warmup_steps=0",
        "score.proof_bytes=12000",
    ]
    if recipe.calibrate is not None:
        settings += ["calibrate.windows=8", "calibrate.batch_windows=4"]
    if isinstance(recipe.score.adapt, Adapt):
        settings.append(f"score.adapt.chunk_tokens={window}")
    if getattr(recipe.train.loader, "num_spans", 0) > 2:
        settings.append("train.loader.num_spans=2")
    return settings


def check(data: Path) -> None:
    """Minutes of scoring, not days."""
    held = open_dataset(data).record["splits"]["val"]["raw_bytes"]
    if held > MOST_BYTES:
        sys.exit(f"{data} holds {held:,} bytes of validation text, all of which would be scored; build one with at most {MOST_BYTES:,}")


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    check(options.data)
    path = options.runs / f"full_artifact-{name}"
    command = ["bytefit", "run", name, "--size", "full", "--steps", str(options.steps), "--seed", "1"]
    command += [word for setting in settings_of(name, options.steps) for word in ("--set", setting)]
    where = ["--data", str(options.data), "--out", str(path), "--resume", "--json"]
    done = subprocess.run([sys.executable, "-m", *command, *where], stdout=subprocess.PIPE, text=True, check=True)
    folder = RunFolder(path)
    start = time.monotonic()
    load_artifact(folder.artifact)
    loading = time.monotonic() - start
    row = {"recipe": name, "command": shlex.join(command), "seconds_to_load": round(loading, 2)}
    return row | {"audit_fails": audited(folder)["fail"], "summary": json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--recipes", nargs="+", default=["pr578", "pr1171"])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/full_artifact.json"))
    options = parser.parse_args()
    hide_gpus()
    made_by, rows = provenance(), []
    for name in options.recipes:
        rows.append(measure(name, options))
        summary = rows[-1]["summary"]
        print(
            f"{name}: {summary['artifact_bytes']:,} bytes, {summary['val_bpb']:.4f}, restored {summary['proof_restored']}", file=sys.stderr
        )
        write(options.out, made_by | {"benchmark": "full_artifact", "rows": rows})


if __name__ == "__main__":
    main()
