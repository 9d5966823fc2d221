"""Run recipes with several seeds and keep every summary.

python benchmarks/pocket.py --data web --seeds 1 2 3 --out benchmarks/results/pocket_web.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

from record import provenance, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="dataset folder (default: the embedded corpus)")
    parser.add_argument("--recipes", nargs="+", default=["pocket"], help="at their lab size")
    parser.add_argument("--steps", type=int, help="training steps instead of the recipe's seconds")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--resume", action="store_true", help="keep finished training; pack, score and prove again where needed")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    made_by = provenance()  # before the runs: the commit that they start from
    summaries = []
    more = ["--steps", str(options.steps)] if options.steps else []
    more += [word for setting in options.set for word in ("--set", setting)]
    more += ["--data", str(options.data)] if options.data else []
    for recipe, seed in itertools.product(options.recipes, options.seeds):
        folder = options.runs / f"{options.out.stem}-{recipe}-s{seed}"
        if not options.resume:
            shutil.rmtree(folder, ignore_errors=True)
        command = ["bytefit", "run", recipe, "--seed", str(seed), "--out", str(folder), "--json", "--resume", *more]
        done = subprocess.run([str(Path(sys.executable).with_name("bytefit")), *command[1:]], stdout=subprocess.PIPE, text=True, check=True)
        summary = json.loads(done.stdout)
        summaries.append(summary)
        print(f"{recipe}, seed {seed}: {summary['val_bpb']:.4f} bits per byte, {summary['artifact_bytes']:,} bytes", file=sys.stderr)
        name = options.data.name if options.data else None
        write(options.out, made_by | {"benchmark": "pocket", "dataset": name or "embedded corpus", "summaries": summaries})


if __name__ == "__main__":
    main()
