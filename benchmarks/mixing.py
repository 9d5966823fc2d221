"""How many documents a batch of training holds, by loader: what a step of a few thousand tokens learns from.

    python benchmarks/mixing.py --data web

The loaders of the recipes walk a stream of document numbers in place of tokens, so that what they return says whose text it would be.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from record import provenance, write

from bytefit.data.dataset import open_dataset
from bytefit.data.shards import TokenStream
from bytefit.data.tokenizer import BOS_ID
from bytefit.recipes import find_recipe
from bytefit.recipes.recipe import Recipe


def numbered(stream: TokenStream) -> TokenStream:
    """The same shards with the number of its document in place of every token."""
    numbers = np.cumsum(stream.all() == BOS_ID)
    return TokenStream(np.split(numbers, np.cumsum(stream.shard_sizes())[:-1]))


def documents_a_batch(recipe: Recipe, documents: TokenStream, steps: int, seed: int) -> np.ndarray:
    """Of every step, int64 of shape (steps,)."""
    train = recipe.train
    loader = train.loader.build(documents, train.seq_len, train.batch_tokens // train.seq_len, seed)
    return np.array([len(np.unique(loader.rows(step, 0, loader.num_rows)[:, :-1])) for step in range(steps)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--recipes", nargs="+", default=["baseline", "pr578", "pr1171", "pocket"], metavar="NAME", help="at lab size")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mixing.json"))
    options = parser.parse_args()
    dataset = open_dataset(options.data)
    documents = numbered(dataset.train)
    rows: list[dict[str, Any]] = []
    for name in options.recipes:
        recipe = find_recipe(name)
        counts = documents_a_batch(recipe, documents, options.steps, options.seed)
        row: dict[str, Any] = {"recipe": name, "loader": type(recipe.train.loader).__name__.removesuffix("Config")}
        row |= {"seq_len": recipe.train.seq_len, "batch_tokens": recipe.train.batch_tokens}
        rows.append(row | {"mean": float(counts.mean()), "median": float(np.median(counts)), "share_of_one": float((counts == 1).mean())})
        print(f"{name}: {counts.mean():.1f} documents a batch, one in {(counts == 1).mean():.0%} of them", file=sys.stderr)
    settings = {"benchmark": "mixing", "dataset_sha256": dataset.sha256, "steps": options.steps, "seed": options.seed}
    write(options.out, provenance() | settings | {"rows": rows})


if __name__ == "__main__":
    main()
