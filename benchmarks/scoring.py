"""What compiling the windows of a score is worth: eager and compiled batches in turn, of fresh models at lab size.

    OMP_NUM_THREADS=1 python benchmarks/scoring.py

A batch is what ``bytefit score`` gives the model: as many windows of the recipe's sliding protocol as a forward pass takes, of which only
the scored targets reach the head. What it takes does not depend on the weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from record import hide_gpus, provenance, write

hide_gpus()

from bytefit.ranks import Ranks  # noqa: E402
from bytefit.recipes import find_recipe  # noqa: E402
from bytefit.run.steps import new_model  # noqa: E402
from bytefit.score.harness import batch_shapes  # noqa: E402
from bytefit.score.predictor import COMPILE_FROM, ModelPredictor, worth_compiling  # noqa: E402
from bytefit.score.tape import Tape  # noqa: E402
from bytefit.score.windows import Sliding  # noqa: E402

RECIPES = ("baseline", "pr128", "pr578", "pr693", "pr1171", "pocket")
TOKENS = 350_000  # about 1 MB of text with 2,048 ids


def measure(name: str, rounds: int) -> dict[str, Any]:
    recipe = find_recipe(name)
    model = new_model(recipe).eval()
    ids = torch.randint(0, recipe.model.vocab_size, (TOKENS,)).numpy()
    protocol = Sliding(window=recipe.score.window, stride=recipe.score.stride)
    shapes = batch_shapes([Tape(ids)], protocol, Ranks(0, 1, "cpu"))
    shape = max(shapes, key=lambda shape: shapes[shape] * shape[0] * shape[1])
    batch_BT, skip = torch.from_numpy(ids[: shape[0] * shape[1]]).view(shape[:2]), shape[2]
    ways = {"eager": ModelPredictor(model, torch.float32), "compiled": ModelPredictor(model, torch.float32, compiled_for=shape)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    torch.compiler.reset()
    with torch.inference_mode():
        start = time.perf_counter()
        logits = {way: ways[way].logits(batch_BT, skip) for way in ("compiled", "eager")}
        first = time.perf_counter() - start
        for _ in range(rounds):
            for way, predictor in ways.items():
                start = time.perf_counter()
                predictor.logits(batch_BT, skip)
                seconds[way].append(time.perf_counter() - start)
    medians = {way: statistics.median(found) for way, found in seconds.items()}
    return {
        "windows": shape[0],
        "inputs": shape[1],
        "scored": shape[1] - skip,
        "batches_a_megabyte": shapes[shape],
        "seconds": seconds,
        "seconds_to_compile": first - medians["eager"] - medians["compiled"],
        "ratio": medians["eager"] / medians["compiled"],
        "logits_apart": (logits["eager"] - logits["compiled"]).abs().max().item(),
        "compiled_for_a_megabyte": worth_compiling(model, shapes) is not None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scoring.json"))
    options = parser.parse_args()
    found = {}
    for name in RECIPES:
        found[name] = measure(name, options.rounds)
        print(f"{name}: {found[name]['ratio']:.2f} times as fast, compiled in {found[name]['seconds_to_compile']:.0f} s", flush=True)
    write(options.out, provenance() | {"compile_from": COMPILE_FROM["cpu"], "recipes": found})


if __name__ == "__main__":
    main()
