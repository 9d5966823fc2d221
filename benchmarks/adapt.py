"""What scoring with adaptation is worth on quantised lab models: bits per byte and seconds of every protocol.

python benchmarks/adapt.py --data web --runs runs/benchmark/tax-plain-s1 runs/benchmark/tax-plain-s2 runs/benchmark/tax-plain-s3

Each run folder holds a trained model, which is packed by its recipe if it is not yet. Settings of the contest's systems are those of their
recipes at lab size, but that windows are the run's own and #578 keeps one block fixed, not two: ``pocket`` has three. The others change one
thing. Nothing was tuned on this text.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import provenance, write

from bytefit.artifact.load import load_artifact
from bytefit.config import to_json
from bytefit.data.dataset import Dataset, open_dataset
from bytefit.dtypes import resolve_dtype
from bytefit.files import read_json
from bytefit.ledger import Ledger
from bytefit.model.inspect import num_parameters
from bytefit.recipes import find_recipe
from bytefit.run.folder import RunFolder
from bytefit.run.steps import pack_step, val_tokens
from bytefit.score.adapt import IN_BLOCKS, AdamW, Adapt, DepthDecay, DocumentLora, Selection, Sgd, SignalToNoise
from bytefit.score.scorer import ScoreProtocol, score
from bytefit.score.windows import Full, Sliding


def protocols(window: int, stride: int) -> dict[str, ScoreProtocol]:
    """By the name that the table gives them."""

    def of(name: str) -> Adapt:
        adapt = find_recipe(name).score.adapt
        assert isinstance(adapt, Adapt)
        return replace(adapt, window=window, stride=stride)

    pr578, pr1171, pr606 = (of(name) for name in ("pr578", "pr1171", "pr606"))
    everything = replace(pr578, trains=Selection(), ema_decay=None)
    return {
        "full": Full(window=window),
        "sliding": Sliding(window=window, stride=stride),
        "PR #578: SGD, averaged": replace(pr578, trains=replace(pr578.trains, first_blocks_frozen=1)),
        "the same, not averaged": replace(pr578, trains=replace(pr578.trains, first_blocks_frozen=1), ema_decay=None),
        "SGD on everything": everything,
        "the same, ten times the rate": replace(everything, optimizer=Sgd(lr=0.02)),
        "the same, sharpness-aware": replace(everything, optimizer=Sgd(lr=0.02), sam_radius=0.05),
        "the same, rates by signal to noise": replace(everything, optimizer=Sgd(lr=0.02), layer_rates=SignalToNoise()),
        "the same, rates by depth": replace(everything, optimizer=Sgd(lr=0.02), layer_rates=DepthDecay(factor=0.5)),
        "PR #1171: AdamW, last blocks and gains": pr1171,
        "PR #606: the same, with temperature": pr606,
        "AdamW on the blocks, 0.001": replace(pr1171, optimizer=AdamW(lr=0.001), trains=Selection(roles=(*IN_BLOCKS, "gain")), epochs=1),
        "AdamW on everything, 0.002": replace(pr1171, optimizer=AdamW(lr=0.002), trains=Selection()),
        "documents apart, not learning": DocumentLora(window=window, chunk_tokens=min(32, window), lr=0.0, roles=()),
        "documents apart, adapters": DocumentLora(window=window, chunk_tokens=min(32, window), lr=0.002),
    }


def measure(path: Path, dataset: Dataset, max_bytes: int, only: list[str] | None) -> list[dict[str, Any]]:
    folder = RunFolder(path)
    recipe = folder.read_recipe()
    if not folder.artifact.exists():
        pack_step(folder, recipe, dataset, Ledger())
    dtype = resolve_dtype("auto", "cpu")
    tokens = val_tokens(dataset, max_bytes)
    rows = []
    for name, protocol in protocols(recipe.score.window, recipe.score.stride).items():
        if only is not None and name not in only:
            continue
        result = score(load_artifact(folder.artifact).model, tokens, dataset.byte_table, protocol, dtype)
        row = {"run": path.name, "seed": recipe.seed, "name": name, "protocol": to_json(protocol), "bytes": result.bytes}
        row |= {"bits_per_byte": result.bits_per_byte, "seconds": result.seconds, "learned_steps": result.learned_steps}
        rows.append(row)
        print(f"{path.name} {name}: {row['bits_per_byte']:.4f}, {row['seconds']:.1f} s", file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders of finished training, one a seed")
    parser.add_argument("--max-bytes", type=int, default=1_000_000, help="of validation text")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the protocols (default: all)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/adapt.json"))
    options = parser.parse_args()
    made_by, dataset = provenance(), open_dataset(options.data)
    record: dict[str, Any] = made_by | {"benchmark": "adapt", "dataset_sha256": dataset.sha256, "rows": []}
    for path in options.runs:
        recipe = RunFolder(path).read_recipe()
        record |= {"recipe": recipe.name, "num_parameters": num_parameters(recipe.model)}
        train_seconds = read_json(path / "checkpoint" / "state.json")["seconds"]["train"]
        record["rows"] += [row | {"train_seconds": train_seconds} for row in measure(path, dataset, options.max_bytes, options.only)]
        write(options.out, record)


if __name__ == "__main__":
    main()
