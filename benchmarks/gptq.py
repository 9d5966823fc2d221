"""GPTQ: ours against llm-compressor's ``quantize_weight`` and torchao's rounding to nearest, on the same weights and inputs.

Weights are normal; inputs are correlated and their columns uneven, as activations are. At the equal grid ours rounds to exactly the
peers' steps and codes (``max|w| / ((2^bits - 1) / 2)`` a row, codes ``-2^(bits-1) .. 2^(bits-1) - 1``); then with our own grid (symmetric
codes, fp16 steps) and with a search over how far each row reaches, against the peer's own search (its mse observer). The error is that
of the outputs, ``|X (W - Q)ᵀ|² / |X Wᵀ|²``.

Seconds are of the factorisation and the rounding: neither the second moment of the inputs nor the choice of scales is in them, on either
side. (Ours with a search is the exception: trying the scales is part of the rounding.) Each figure is a median of 3 calls after one that
is not counted; ours and the peer take turns, round after round, and the ratio is the median over the rounds of the ratio in a round.
The batched case gives 8 layers of one shape to one call, of either.

The peers run in environments of their own (see benchmarks/peers/README.md); those that are not there are skipped.

    python benchmarks/gptq.py --peers FOLDER --out benchmarks/results/gptq.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import provenance, write
from torch import Tensor

from bytefit.quant.clip import Searched, Shrunk
from bytefit.quant.gptq import Gptq, Nearest, RowCodes, round_rows
from bytefit.quant.grid import RowGrid, integer_grid
from bytefit.quant.metric import Metric, factorise

SEED = 0
SHAPES = [(512, 512), (1536, 512), (512, 1536), (1792, 512), (512, 1792), (192, 192), (576, 192), (192, 576)]
BATCHED, LAYERS = [(512, 512), (1536, 512), (192, 192), (576, 192)], 8
BITS = (5, 6)
HALF = 0.5  # the dial at which ``peer_grid`` is the peers'
REACHES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
SEARCH = Searched(among=tuple(Shrunk(factor=factor) for factor in REACHES), error="weighted", judge="feedback")
PEERS = Path(__file__).resolve().parent / "peers"

# The peer's function for a whole batch, which its program beside does not offer; the scales are given.
BATCH_PROGRAM = """
import sys
import llmcompressor_gptq as peer
np, torch = peer.np, peer.torch
given = np.load(sys.argv[1])
weights, hessians, scale = (torch.from_numpy(given[name]) for name in ("W", "H", "scale"))
args = peer.QuantizationArgs(num_bits=int(given["bits"]), type="int", symmetric=True, strategy="channel", actorder="weight")
with torch.no_grad():
    (quantized, _, rounded_only), seconds = peer.seconds_of(
        lambda copies: peer.quantize_weight(
            weights=copies[0], hessians=copies[1], scale=scale, zero_point=torch.zeros_like(scale, dtype=torch.int8), global_scale=None,
            quant_args=args, blocksize=128, percdamp=0.01,
        ),
        lambda: (weights.clone(), hessians.clone()),
    )
result = {"W_hat": quantized.numpy(), "seconds": seconds, "rounded_only": bool(rounded_only.any()), "threads": torch.get_num_threads()}
peer.finish(peer.Path(sys.argv[2]), result, "llmcompressor", torch=torch.__version__)
"""


class Peers:
    """Peer programs, each run by its own environment's Python. One that cannot run is skipped from then on.

    Attributes:
        skipped: why, by environment.
        facts: what each says about itself (its version).
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.skipped: dict[str, str] = {}
        self.facts: dict[str, Any] = {}

    def run(self, environment: str, program: list[str], arrays: dict[str, Any], *options: str) -> dict[str, np.ndarray] | None:
        """What the program wrote for these arrays; None where the peer is skipped."""
        if environment in self.skipped:
            return None
        if self.folder is None:
            self._skip(environment, "no --peers folder was given")
            return None
        python = self.folder.absolute() / environment / "bin" / "python"
        if not python.exists():
            self._skip(environment, f"no {environment}/bin/python in the --peers folder (benchmarks/peers/README.md says how)")
            return None
        with tempfile.TemporaryDirectory() as folder:
            given, out = Path(folder, "in.npz"), Path(folder, "out.npz")
            np.savez(given, **arrays)
            command = [str(python), *program, str(given), str(out), *options]
            ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(PEERS)})
            if ran.returncode:
                self._skip(environment, f"it failed: {(ran.stderr.strip().splitlines() or ['no message'])[-1]}")
                return None
            self.facts[environment] = json.loads(ran.stdout.strip().splitlines()[-1])
            with np.load(out) as held:
                return dict(held)

    def _skip(self, environment: str, why: str) -> None:
        self.skipped[environment] = why
        print(f"{environment} is skipped: {why}", file=sys.stderr)


def inputs_of(columns: int, rows: int, generator: torch.Generator) -> Tensor:
    """Correlated inputs (rows, columns) with uneven column scales."""
    shared = torch.randn(rows, columns // 8, generator=generator) @ torch.randn(columns // 8, columns, generator=generator)
    own = torch.randn(rows, columns, generator=generator)
    scales = torch.randn(columns, generator=generator).exp()
    return (own + shared * (columns // 8) ** -0.5) * scales


class Case:
    """A weight matrix, its inputs and what follows from them."""

    def __init__(self, shape: tuple[int, int], rows: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.W = torch.randn(shape, generator=generator) * 0.02
        self.X = inputs_of(shape[1], rows, generator)
        exact = self.X.double()
        self.moment = exact.T @ exact / rows
        self.metric = Metric(self.moment.float(), torch.ones(shape[0]))

    def error(self, quantised: Tensor) -> float:
        """Of the outputs, relative, in float64."""
        wrong, whole = (self.W - quantised).double(), self.W.double()
        return float(((wrong @ self.moment) * wrong).sum() / ((whole @ self.moment) * whole).sum())


def peer_grid(bits: int) -> RowGrid:
    """The peers' grid, at the dial ``HALF``: half of 2^bits - 1 levels to a row's reach need not be a whole number."""
    return RowGrid(lowest=-(2**bits), highest=2**bits - 2, levels=2**bits - 1, scale_dtype="float32")


def ways_of(bits: int) -> dict[str, tuple[RowGrid, Gptq | Nearest, float]]:
    return {
        "equal grid": (peer_grid(bits), Gptq(), HALF),
        "own grid": (integer_grid(bits), Gptq(), 1.0),
        "equal grid, search": (replace(peer_grid(bits), clip=SEARCH), Gptq(), HALF),
        "own grid, search": (integer_grid(bits, SEARCH), Gptq(), 1.0),
        "nearest": (peer_grid(bits), Nearest(), HALF),
    }


def rounded(cases: list[Case], way: tuple[RowGrid, Gptq | Nearest, float]) -> RowCodes:
    """Factorisation and rounding of equal-shaped matrices, as one batch: what is timed."""
    grid, rounding, dial = way
    factors = None
    if isinstance(rounding, Gptq):
        factors = [factorise(case.metric.columns, damp=rounding.damp, order=rounding.order) for case in cases]
    return round_rows(
        torch.stack([case.W for case in cases]), grid, rounding, dial=dial, metrics=[c.metric for c in cases], factors=factors
    )


def weights_of(found: RowCodes) -> Tensor:
    return found.codes * found.steps[..., None]


def seconds_of(work: Callable[[], Any], repeats: int = 3) -> float:
    """As the peers are timed: the median of some calls after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def compare(case: Case, bits: int, peers: Peers) -> dict[str, Any]:
    """Errors of all, and seconds of what is only timed once."""
    found = {name: rounded([case], way) for name, way in ways_of(bits).items()}
    errors: dict[str, float | None] = {f"ours, {name}": case.error(weights_of(codes)[0]) for name, codes in found.items()}
    ways = ways_of(bits)
    seconds: dict[str, float | None] = {f"ours, {name}": seconds_of(lambda way=way: rounded([case], way)) for name, way in ways.items()}
    given = {"W": case.W.numpy(), "X": case.X.numpy(), "bits": bits}
    gptq, nearest = [str(PEERS / "llmcompressor_gptq.py")], [str(PEERS / "torchao_rtn.py")]
    steps = found["equal grid"].steps[0].numpy()
    differs: dict[str, float] = {}
    for name, environment, program, options in (
        ("llmcompressor", "llmcompressor", gptq, []),
        ("llmcompressor, mse", "llmcompressor", gptq, ["--observer", "memoryless_mse"]),
        ("torchao, nearest", "torchao", nearest, []),
    ):
        theirs = peers.run(environment, program, given, *options)
        errors[name] = None if theirs is None else case.error(torch.from_numpy(theirs["W_hat"]))
        seconds[name] = None if theirs is None else float(theirs["seconds"])
        if theirs is not None and "mse" not in name:
            differs[name] = float(np.abs(theirs["scale"] / steps - 1).max())
        if theirs is not None and theirs.get("rounded_only", False):
            sys.exit(f"{name} gave up on the inputs and rounded to nearest; nothing to compare")
    return {"errors": errors, "seconds_once": seconds, "largest_relative_difference_of_scales": differs}


def time_single(case: Case, bits: int, peers: Peers) -> tuple[float, float | None]:
    way = ways_of(bits)["equal grid"]
    ours = seconds_of(lambda: rounded([case], way))
    given = {"W": case.W.numpy(), "X": case.X.numpy(), "bits": bits}
    theirs = peers.run("llmcompressor", [str(PEERS / "llmcompressor_gptq.py")], given)
    return ours, None if theirs is None else float(theirs["seconds"])


def time_batch(cases: list[Case], bits: int, peers: Peers) -> tuple[float, float | None]:
    way = ways_of(bits)["equal grid"]
    ours = seconds_of(lambda: rounded(cases, way))
    given = {
        "W": torch.stack([case.W for case in cases]).numpy(),
        "H": torch.stack([case.metric.columns for case in cases]).numpy(),
        "scale": rounded(cases, way).steps[..., None].numpy(),
        "bits": bits,
    }
    theirs = peers.run("llmcompressor", ["-c", BATCH_PROGRAM], given)
    if theirs is None:
        return ours, None
    mean_error = statistics.mean(case.error(torch.from_numpy(w)) for case, w in zip(cases, theirs["W_hat"], strict=True))
    own_error = statistics.mean(case.error(w) for case, w in zip(cases, weights_of(rounded(cases, way)), strict=True))
    if not 0.9 < mean_error / own_error < 1.1:
        print(f"the peer's batch has another error than ours: {mean_error:.3e} and {own_error:.3e}", file=sys.stderr)
    return ours, float(theirs["seconds"])


def timing_of(pairs: list[tuple[float, float | None]]) -> dict[str, Any]:
    """Medians over the rounds, beside what they are made from."""
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs if pair[1] is not None]
    complete = len(theirs) == len(pairs)
    return {
        "ours_seconds": statistics.median(ours),
        "peer_seconds": statistics.median(theirs) if complete else None,
        "ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)) if complete else None,
        "ours_seconds_all": ours,
        "peer_seconds_all": theirs,
    }


def print_rows(rows: list[dict[str, Any]], batches: list[dict[str, Any]]) -> None:
    names = list(rows[0]["errors"])
    print("relative squared error of the outputs, times a million")
    print(f"{'shape':>12} {'bits':>4}  " + "  ".join(f"{name:>24}" for name in names))
    for row in rows:
        cells = ("skipped" if row["errors"][name] is None else f"{1e6 * row['errors'][name]:.2f}" for name in names)
        print(f"{row['shape'][0]:>5} x {row['shape'][1]:<4} {row['bits']:>4}  " + "  ".join(f"{cell:>24}" for cell in cells))
    print("\nmilliseconds of factorisation and rounding at the equal grid")
    print(f"{'shape':>12} {'bits':>4} {'layers':>6} {'ours':>10} {'llmcompressor':>14} {'ratio':>7}")
    for row in rows + batches:
        timing = row["timing"]
        peer = "skipped" if timing["peer_seconds"] is None else f"{1e3 * timing['peer_seconds']:.2f}"
        ratio = "" if timing["ratio"] is None else f"{timing['ratio']:.2f}"
        shape = f"{row['shape'][0]:>5} x {row['shape'][1]:<4}"
        print(f"{shape} {row['bits']:>4} {row['layers']:>6} {1e3 * timing['ours_seconds']:>10.2f} {peer:>14} {ratio:>7}")


def ratios_of(rows: list[dict[str, Any]], ours: str, theirs: list[str]) -> list[float]:
    """Our error over the best of theirs, row by row."""
    best = [min((row["errors"][name] for name in theirs if row["errors"][name] is not None), default=math.nan) for row in rows]
    return [row["errors"][ours] / other for row, other in zip(rows, best, strict=True)]


def verdicts_of(rows: list[dict[str, Any]], batches: list[dict[str, Any]]) -> list[str]:
    found = []
    ours_mean = {name: statistics.geometric_mean(row["errors"][name] for row in rows) for name in rows[0]["errors"] if "ours" in name}
    for title, ours, theirs in (
        ("error at equal grid", "ours, equal grid", ["llmcompressor"]),
        ("own grid without a search", "ours, own grid", ["llmcompressor"]),
        ("with search, the peers' codes", "ours, equal grid, search", ["llmcompressor", "llmcompressor, mse", "torchao, nearest"]),
        ("with search, own codes", "ours, own grid, search", ["llmcompressor", "llmcompressor, mse", "torchao, nearest"]),
        ("nearest", "ours, nearest", ["torchao, nearest"]),
    ):
        ratios = ratios_of(rows, ours, theirs)
        if any(math.isnan(ratio) for ratio in ratios):
            found.append(f"{title}: ours {1e6 * ours_mean[ours]:.2f} ppm, no peer to compare")
            continue
        best = ours_mean[ours] / statistics.geometric_mean(ratios)
        found.append(
            f"{title}: ours {1e6 * ours_mean[ours]:.2f} ppm, best peer {1e6 * best:.2f} ppm (geometric means); "
            f"ours / peer {min(ratios):.4f} to {max(ratios):.4f}, not above 1.0005 in {sum(r <= 1.0005 for r in ratios)} of {len(ratios)}"
        )
    for title, group in (("one layer", rows), (f"{LAYERS} layers in a call", batches)):
        ratios = [row["timing"]["ratio"] for row in group if row["timing"]["ratio"] is not None]
        if ratios:
            at = min(group, key=lambda row: row["timing"]["ratio"])
            found.append(
                f"speed ratio (peer's seconds / ours), {title}: lowest {min(ratios):.2f} (at {at['shape']}, {at['bits']} bits), "
                f"median {statistics.median(ratios):.2f}, over {len(ratios)} cases"
            )
        else:
            found.append(f"speed ratio, {title}: no peer to compare")
    return found


def shape_of(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="the folder of the peers' environments")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=8192, help="of the inputs")
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=SHAPES, metavar="ROWSxCOLS")
    parser.add_argument("--batched", type=shape_of, nargs="*", default=BATCHED, metavar="ROWSxCOLS")
    parser.add_argument("--bits", type=int, nargs="+", default=list(BITS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gptq.json"))
    options = parser.parse_args()
    peers = Peers(options.peers)

    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    cases = {shape: Case(shape, options.rows, SEED + i) for i, shape in enumerate(options.shapes)}
    batches = {shape: [Case(shape, options.rows, SEED + 100 * (i + 1)) for i in range(LAYERS)] for shape in options.batched}
    rows: list[dict[str, Any]] = []
    for shape, case in cases.items():
        for bits in options.bits:
            say(f"errors: {shape}, {bits} bits")
            rows.append({"shape": shape, "bits": bits, "layers": 1, **compare(case, bits, peers)})
    batch_rows: list[dict[str, Any]] = [{"shape": shape, "bits": options.bits[0], "layers": LAYERS} for shape in batches]
    timings: list[list[tuple[float, float | None]]] = [[] for _ in rows + batch_rows]
    for i in range(options.rounds):
        for row, pairs in zip(rows + batch_rows, timings, strict=True):
            shape, bits = row["shape"], row["bits"]
            single = row["layers"] == 1
            pairs.append(time_single(cases[shape], bits, peers) if single else time_batch(batches[shape], bits, peers))
            ours, theirs = pairs[-1]
            against = "" if theirs is None else f", peer {1e3 * theirs:.1f} ms"
            say(f"round {i + 1} of {options.rounds}: {row['layers']} of {shape}, {bits} bits: ours {1e3 * ours:.1f} ms{against}")
    for row, pairs in zip(rows + batch_rows, timings, strict=True):
        row["timing"] = timing_of(pairs)
    print_rows(rows, batch_rows)
    verdicts = verdicts_of(rows, batch_rows)
    print("\n" + "\n".join(verdicts))
    for name, why in peers.skipped.items():
        print(f"{name} was skipped: {why}")
    record = provenance() | {
        "benchmark": "gptq", "seed": SEED, "rounds": options.rounds, "input_rows": options.rows, "peers": peers.facts,
        "skipped": peers.skipped, "rows": rows, "batched": batch_rows, "verdicts": verdicts,
    }  # fmt: skip
    write(options.out, record)


if __name__ == "__main__":
    main()
