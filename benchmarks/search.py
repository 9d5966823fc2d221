"""What the pocket recipe's settings are worth: the same steps, one setting changed at a time.

Every variant trains for a fixed number of steps (so a noisy machine changes nothing) and is scored, packed, on the head of the
validation text; its step time is reported beside it. One JSON line a variant; lines that are there already are not run again.

    python benchmarks/search.py --data web --out benchmarks/results/pocket_search.jsonl
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from bytefit.train.machine import describe_machine

VARIANTS: dict[str, list[str]] = {
    "pocket": [],
    "two blocks of width 256": [
        "model.dim=256",
        'model.attention={"num_heads": 4, "num_kv_heads": 2}',
        'model.plan=[{"block": 0, "push": true}, {"block": 1, "pop": 0}]',
    ],
    "four blocks of width 160": [
        "model.dim=160",
        'model.attention={"num_heads": 2, "num_kv_heads": 2}',
        'model.plan=[{"block": 0, "push": true}, {"block": 1, "push": true}, {"block": 2, "pop": 0}, {"block": 3, "pop": 1}]',
    ],
    "wide heads": ['model.attention={"num_heads": 2, "num_kv_heads": 2}'],
    "windows of 256": ["train.seq_len=256"],
    "windows of 64": ["train.seq_len=64"],
    "sequential loader": ['train.loader={"type": "SequentialConfig", "num_spans": 1}'],
    "matrix lr 0.01": ["train.optimizer.matrices.lr=0.01"],
    "matrix lr 0.04": ["train.optimizer.matrices.lr=0.04"],
    "table lr 0.015": ["train.optimizer.tables.lr=0.015"],
    "warmdown over the whole run": ["train.schedule.fraction=1.0"],
    "average of the weights, 0.99": ["train.ema_decay=0.99"],
    "no softcap": ["model.head.softcap=null"],
    "int-style row grids": [
        f'pack.quant.{role}={{"type": "RowGrid", "levels": {levels}}}'
        for role, levels in (("table", 127), ("head", 127), ("attention", 31), ("mlp", 31))
    ],
    "one fineness for all": [f"pack.quant.{role}.fineness=8" for role in ("table", "head", "attention", "mlp")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--val-bytes", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    done = [json.loads(line)["variant"] for line in options.out.read_text().splitlines()] if options.out.exists() else []
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    bytefit = str(Path(sys.executable).with_name("bytefit"))
    for name in options.only or VARIANTS:
        if name in done:
            continue
        folder = Path("runs/search")
        shutil.rmtree(folder, ignore_errors=True)
        sets = [*VARIANTS[name], f"score.max_bytes={options.val_bytes}", "score.proof_bytes=0"]
        command = ["run", "pocket", "--steps", str(options.steps), "--seed", str(options.seed), "--data", str(options.data)]
        command += ["--out", str(folder), "--json", *(word for item in sets for word in ("--set", item))]
        result = subprocess.run([bytefit, *command], stdout=subprocess.PIPE, text=True, check=True)
        summary = json.loads(result.stdout)
        record = {
            "variant": name,
            "val_bpb_float": summary["val_bpb_float"],
            "val_bpb_full": summary["val_bpb_full"],
            "val_bpb_sliding": summary["val_bpb_sliding"],
            "artifact_bytes": summary["artifact_bytes"],
            "milliseconds_a_step": round(1e3 * summary["train_seconds"] / summary["steps"], 2),
            "steps": summary["steps"],
            "seed": options.seed,
            "dataset_sha256": summary["dataset_sha256"],
            "command": shlex.join(["bytefit", *command]),
            "commit": commit,
            "machine": describe_machine(),
        }
        with open(options.out, "a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{name}: {summary['val_bpb_full']:.4f} (float {summary['val_bpb_float']:.4f})", file=sys.stderr)


if __name__ == "__main__":
    main()
