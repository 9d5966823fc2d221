"""Entropy coding of codes: ours against general-purpose compressors, against nncodec, and against what memoryless models could reach.

First the codes of trained models, rounded in several ways; one stream a role, as in an artifact. Then the codes of 27 million made-up
weights in the shapes of a full-size contest model, where the seconds are measured too (ours runs on one thread).

* zlib -9, zstd -22, lzma -9e and brotli -11 get the codes as signed bytes. Where some are wider, all low bytes stand before all high ones,
  and the low ones are signed too, so that the high bytes of small codes are zero (those of int16 would repeat the sign). Each gets them
  row by row and column by column, and its better size counts, role by role.
* nncodec gets all matrices in one bitstream, with the library's own 11 flags a code and with 32; the better counts. (Trellis codes go to
  it, and to the compressors, as the integers that they are.)
* The entropies are those of the codes' own histograms, which come free here: of a whole matrix, of each row, of each column, and of
  buckets of the product of a row's and a column's root mean square (a quarter of an octave wide, shared by a role's matrices). With few
  codes in a histogram the plain figure is too low, for it fits the sample; ``corrected`` is after Miller and Madow: half a nat for every
  value seen but one is added, which for 192 codes a row is most of what is missing.
* ``scales told`` is no histogram: each code is a rounded normal number whose standard deviation is a row factor times a column factor,
  fitted to the matrix itself and told for nothing. What a memoryless coder of such weights could save at the very most.

nncodec runs in an environment of its own (see benchmarks/peers/README.md) and is skipped where that is not there.

    python benchmarks/codec.py --runs RUN... --peers FOLDER --out benchmarks/results/codec.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gptq import PEERS, Peers
from record import provenance, write
from torch import Tensor, nn

from bytefit.artifact.code_stream import decode_codes, encode_codes
from bytefit.artifact.codecs import CODECS
from bytefit.data.dataset import open_dataset
from bytefit.errors import UserError
from bytefit.model.inspect import cost_by_part, num_parameters
from bytefit.model.roles import ParameterInfo, Role
from bytefit.quant.calibrate import CalibrationConfig, Statistics, TrainingText, calibration_batches, collect, load_statistics
from bytefit.quant.gptq import Gptq
from bytefit.quant.grid import EqualDamageGrid, StepGrid, integer_grid
from bytefit.quant.metric import Metric
from bytefit.quant.quantise import MatrixQuant, QuantConfig, Quantiser
from bytefit.recipes import find_recipe
from bytefit.run.beside import data_of
from bytefit.run.folder import RunFolder
from bytefit.run.steps import trained_model

SEED = 0
GENERAL = ("zlib", "zstd", "lzma", "brotli")
SCHEMES = {
    "int5, GPTQ": MatrixQuant(grid=integer_grid(5), rounding=Gptq()),
    "int6, GPTQ": MatrixQuant(grid=integer_grid(6), rounding=Gptq()),
    "one step a matrix": MatrixQuant(grid=StepGrid(fineness=6.0)),
    "equal damage": MatrixQuant(grid=EqualDamageGrid(step=0.0004, trellis=0)),
    "equal damage, 8 states": MatrixQuant(grid=EqualDamageGrid(step=0.0004, trellis=8)),
}
YARDSTICKS = ("matrix", "row", "column", "row x column scale")
TOLD = "scales told"
FULL_SCHEMES = {  # about 3.5 bits a code
    "one step a matrix": MatrixQuant(grid=StepGrid(fineness=3.0)),
    "8 states": MatrixQuant(grid=EqualDamageGrid(step=0.35, trellis=8)),
}
UNEVEN = 0.3  # of the made-up weights: the spread of the natural logarithms of their row scales, and of their column scales
Streams = dict[str, tuple[list[np.ndarray], list[int]]]  # by role: matrices, and the states of their trellises


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


# Codes


def statistics_of(folder: RunFolder, windows: int) -> Statistics:
    """The run's own calibration where it has gradients, else one on windows of its training split."""
    held = load_statistics(folder.calibration) if folder.calibration.exists() else None
    if held is not None and held[1].get("gradients"):
        return held[0]
    recipe, data = folder.read_recipe(), data_of(folder)
    if data is None:
        raise UserError(f"{folder.path} does not say which dataset it was trained on (env.json), and holds no calibration")
    dataset, model = open_dataset(data), trained_model(folder, recipe)
    config = CalibrationConfig(source=TrainingText(), windows=windows)
    say(f"{folder.path.name}: calibrating on {windows} windows of the training split")
    seq_len, seed = recipe.train.seq_len, recipe.seed
    batches = calibration_batches(config, model, train=dataset.train, tokenizer=dataset.tokenizer, seq_len=seq_len, seed=seed)
    return collect(model, batches, gradients=True, seed=seed)


def streams_of(weights: dict[str, Tensor], infos: list[ParameterInfo], statistics: Statistics, quant: MatrixQuant) -> Streams:
    """A model's codes under one rule for all matrices, by role."""
    config = QuantConfig(table=quant, head=quant, attention=quant, mlp=quant, projection=quant)
    codes = Quantiser(weights, infos, config, statistics).at(1.0).codes
    streams: Streams = defaultdict(lambda: ([], []))
    for info in infos:
        if info.name in codes:
            matrices, trellises = streams[info.role.value]
            matrices.append(codes[info.name].codes)
            trellises.append(codes[info.name].trellis)
    return dict(streams)


def made_up(most: int) -> tuple[dict[str, Tensor], list[ParameterInfo], Statistics]:
    """Normal numbers whose rows and columns differ in scale, in the shapes of PR #578's; about ``most`` at most, and all count alike."""
    generator = torch.Generator().manual_seed(SEED)
    weights: dict[str, Tensor] = {}
    infos = []
    inputs: dict[int, Tensor] = {}
    statistics: Statistics = {}
    for part in cost_by_part(find_recipe("pr578", "full").model):
        if part.role is Role.GAIN or (weights and sum(w.numel() for w in weights.values()) + part.parameters > most):
            continue
        rows, columns = part.shape
        scales = (UNEVEN * torch.randn(rows, 1, generator=generator)).exp() * (UNEVEN * torch.randn(1, columns, generator=generator)).exp()
        weights[part.part] = scales * torch.randn(rows, columns, generator=generator)
        infos.append(ParameterInfo(part.part, nn.Parameter(weights[part.part]), part.role, None))
        statistics[part.part] = Metric(inputs.setdefault(columns, torch.eye(columns)), torch.ones(rows))
    return weights, infos, statistics


# Sizes


def ours(streams: Streams, repeats: int = 1) -> dict[str, Any]:
    """Bytes by role, and seconds of encoding and decoding them all; ``restored`` says whether every code came back."""
    encode_seconds, decode_seconds = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        encoded = {role: encode_codes(*stream) for role, stream in streams.items()}
        middle = time.perf_counter()
        decoded = {role: decode_codes(data, [m.shape for m in streams[role][0]], streams[role][1]) for role, data in encoded.items()}
        decode_seconds.append(time.perf_counter() - middle)
        encode_seconds.append(middle - start)
        say(
            f"  ours: {sum(map(len, encoded.values())):,} bytes, {encode_seconds[-1]:.2f} s to encode, {decode_seconds[-1]:.2f} s to decode"
        )
    restored = all(np.array_equal(a, b) for role in streams for a, b in zip(decoded[role], streams[role][0], strict=True))
    return {
        "bytes_by_role": {role: len(data) for role, data in encoded.items()},
        "bytes": sum(map(len, encoded.values())),
        "restored": restored,
        "seconds_encode": statistics.median(encode_seconds),
        "seconds_decode": statistics.median(decode_seconds),
        "seconds_encode_all": encode_seconds,
        "seconds_decode_all": decode_seconds,
    }


def bytes_in_order(matrices: list[np.ndarray], order: str) -> bytes:
    """The codes as signed bytes, all lowest ones first, then what is left of each in the same way; small codes leave zeros."""
    left = np.concatenate([m.ravel(order="C" if order == "rows" else "F") for m in matrices])
    planes = b""
    while not planes or left.any():
        low = left.astype(np.int8)
        planes += low.tobytes()
        left = (left - low) >> 8
    return planes


def general(streams: Streams) -> dict[str, dict[str, Any]]:
    """Of each general-purpose compressor: the better bytes by role, which order that was, and the seconds of all it tried."""
    found: dict[str, dict[str, Any]] = {}
    for name in GENERAL:
        start = time.perf_counter()
        tried = {
            role: {order: len(CODECS[name].compress(bytes_in_order(matrices, order))) for order in ("rows", "columns")}
            for role, (matrices, _) in streams.items()
        }
        best = {role: min(sizes.values()) for role, sizes in tried.items()}
        found[name] = {"bytes": sum(best.values()), "by_role": tried, "seconds_both_orders": round(time.perf_counter() - start, 2)}
        say(f"  {name}: {found[name]['bytes']:,} bytes")
    return found


def nncodec(streams: Streams, peers: Peers) -> dict[str, Any] | None:
    """All matrices in one bitstream; the better of two binarisations."""
    arrays = {f"{role}{i}": m for role, (matrices, _) in streams.items() for i, m in enumerate(matrices)}
    found = peers.run("nncodec", [str(PEERS / "nncodec_bytes.py")], arrays, "--codes", "--unary", "11", "32")
    if found is None:
        return None
    if not found["exact"].all():
        sys.exit("nncodec did not restore the codes; nothing to compare")
    best = int(found["bytes"].argmin())
    say(f"  nncodec: {int(found['bytes'][best]):,} bytes")
    columns = ("unary", "bytes", "payload_bytes", "seconds_encode", "seconds_decode")
    return {"bytes": int(found["bytes"][best]), "tried": {name: found[name].tolist() for name in columns}}


# Entropies


def entropy_bytes(groups: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(2,): bytes of codes under the histogram of their own group, plain and corrected."""
    codes = codes - codes.min()
    values = int(codes.max()) + 1
    counts = np.bincount(groups.ravel() * values + codes.ravel()).astype(np.float64)
    counts = np.pad(counts, (0, -len(counts) % values)).reshape(-1, values)
    sizes = counts.sum(1)
    bits = (sizes * np.log2(np.maximum(sizes, 1))).sum() - (counts * np.log2(np.maximum(counts, 1))).sum()
    spare = (np.count_nonzero(counts, axis=1) - 1).clip(0).sum() / 2 * np.log2(np.e)
    return np.array([bits, bits + spare]) / 8


def scale_buckets(codes: np.ndarray) -> np.ndarray:
    """(rows, cols): the product of row and column root mean squares, in quarters of an octave."""
    energy = codes.astype(np.float64) ** 2
    rows, columns, all_of_it = energy.mean(1, keepdims=True), energy.mean(0, keepdims=True), max(float(energy.mean()), 1e-12)
    return np.rint(2 * np.log2(np.maximum(rows * columns / all_of_it, 1e-6))).astype(np.int64)


def told_bytes(codes: np.ndarray) -> float:
    """Bytes of codes as rounded normal numbers of known row and column scales; the outermost codes take the tails."""
    energy = codes.astype(np.float64) ** 2 + 1e-3
    rows, columns = energy.mean(1, keepdims=True), np.ones((1, codes.shape[1]))
    for _ in range(20):
        columns = (energy / rows).mean(0, keepdims=True)
        rows = (energy / columns).mean(1, keepdims=True)
    deviations = np.sqrt(np.maximum(rows * columns - 1 / 12, 0.02))  # rounding itself has a variance of 1/12
    sizes = np.abs(codes)
    outer = np.where(sizes >= sizes.max(), np.inf, (sizes + 0.5) / deviations)
    inner = np.where(sizes > 0, (sizes - 0.5) / deviations, -outer)
    # The tail above each bound, from the outside, so that nothing is lost by subtracting from one.
    inside, outside = (torch.special.ndtr(torch.from_numpy(-bound)).numpy() for bound in (inner, outer))
    return float(-np.log2(np.maximum(inside - outside, 1e-12)).sum() / 8)


def entropies(streams: Streams) -> dict[str, float]:
    """Bytes of all streams, by yardstick."""
    found = {name: np.zeros(2) for name in YARDSTICKS}
    for matrices, _ in streams.values():
        for codes in matrices:
            rows, columns = np.indices(codes.shape)
            found["matrix"] += entropy_bytes(np.zeros(codes.shape, dtype=np.int64), codes)
            found["row"] += entropy_bytes(rows, codes)
            found["column"] += entropy_bytes(columns, codes)
        buckets = np.concatenate([scale_buckets(codes).ravel() for codes in matrices])
        found["row x column scale"] += entropy_bytes(buckets - buckets.min(), np.concatenate([codes.ravel() for codes in matrices]))
    by_form = {f"{name}{form}": float(values[i]) for name, values in found.items() for i, form in enumerate(("", ", corrected"))}
    return by_form | {TOLD: sum(told_bytes(codes) for matrices, _ in streams.values() for codes in matrices)}


# Tables


def measure(title: str, streams: Streams, peers: Peers, repeats: int = 1, *, others: bool = True) -> dict[str, Any]:
    say(title)
    count = sum(m.size for matrices, _ in streams.values() for m in matrices)
    largest = max(int(np.abs(m).max()) for matrices, _ in streams.values() for m in matrices)
    row: dict[str, Any] = {"title": title, "codes": count, "largest_code": largest, "ours": ours(streams, repeats)}
    size = row["ours"]["bytes"]
    row["bits_per_code"] = 8 * size / count
    if not others:
        return row | {"ours_over": {}}
    row |= {"entropies": entropies(streams), "general": general(streams), "nncodec": nncodec(streams, peers)}
    sizes = {name: held["bytes"] for name, held in row["general"].items()} | row["entropies"]
    if row["nncodec"] is not None:
        sizes["nncodec"] = row["nncodec"]["bytes"]
    row["ours_over"] = {name: size / other for name, other in sizes.items()}
    return row


def totals(title: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The sum over several models."""
    others = {name: sum(row["ours"]["bytes"] / row["ours_over"][name] for row in rows) for name in rows[0]["ours_over"]}
    size, count = sum(row["ours"]["bytes"] for row in rows), sum(row["codes"] for row in rows)
    return {
        "title": title,
        "codes": count,
        "ours": {"bytes": size, "restored": all(row["ours"]["restored"] for row in rows)},
        "bits_per_code": 8 * size / count,
        "ours_over": {name: size / other for name, other in others.items()},
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Bytes of all, and what ours is to each."""
    for row in rows:
        size = row["ours"]["bytes"]
        print(f"\n{row['title']}: {row['codes']:,} codes, ours {size:,} bytes ({row['bits_per_code']:.3f} bits a code)")
        for name, ratio in row["ours_over"].items():
            kind = "" if name in GENERAL or name == "nncodec" else "entropy by "
            print(f"  {kind + name:<42} {size / ratio:>14,.0f}  ours / this {ratio:.4f}")


def verdicts_of(row: dict[str, Any]) -> list[str]:
    over = row["ours_over"]
    if not over:
        return [f"every code restored: {'yes' if row['ours']['restored'] else 'NO'}"]
    coders = [name for name in over if name in GENERAL or name == "nncodec"]
    first, best = max(coders, key=over.__getitem__), max(GENERAL, key=over.__getitem__)
    without = "" if "nncodec" in coders else " (nncodec was skipped)"

    def answer(holds: bool) -> str:
        return "yes" if holds else "NO"

    return [
        f"every code restored: {answer(row['ours']['restored'])}",
        f"smallest of all coders{without}: {answer(over[first] < 1)} (ours / {first}: {over[first]:.4f})",
        f"at or below the memoryless entropy of each row: {answer(over['row, corrected'] <= 1)} ({over['row, corrected']:.4f}; "
        f"plain, which is too low: {answer(over['row'] <= 1)}, {over['row']:.4f})",
        f"at least 2 % under the best general-purpose one: {answer(over[best] <= 0.98)} (ours / {best}: {over[best]:.4f}; a memoryless "
        f"coder that is told the scale of every row and column for nothing: {over[best] / over[TOLD]:.4f})",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="*", default=[], metavar="DIR", help="run folders of trained models")
    parser.add_argument("--peers", type=Path, help="the folder of the peers' environments")
    parser.add_argument("--windows", type=int, default=512, help="to calibrate on, where a run has no calibration with gradients")
    parser.add_argument("--full-codes", type=int, default=1 << 30, help="at most about so many at full size; 0 leaves them out")
    parser.add_argument("--full-others", choices=("yes", "no"), default="yes", help="at full size the other coders too (many minutes)")
    parser.add_argument("--repeats", type=int, default=3, help="of the timing at full size")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/codec.json"))
    options = parser.parse_args()
    peers = Peers(options.peers)
    warm = np.arange(-40, 40, dtype=np.int32).reshape(8, 10)
    for states in (0, 8):  # compiles what is timed
        decode_codes(encode_codes([warm], [states]), [warm.shape], [states])

    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    count = None  # of the trained models
    for path in options.runs:
        folder = RunFolder(path)
        trained = trained_model(folder, folder.read_recipe())
        count, infos = num_parameters(trained.config), list(trained.parameter_infos())
        weights = {info.name: info.parameter.detach().float() for info in infos}
        held = statistics_of(folder, options.windows)
        for scheme, quant in SCHEMES.items():
            rows[scheme].append(measure(f"{path.name}, {scheme}", streams_of(weights, infos, held, quant), peers))
    summed = [totals(f"{scheme}, {len(found)} trained models", found) for scheme, found in rows.items()]
    full = []
    if options.full_codes:
        model = made_up(options.full_codes)
        for scheme, quant in FULL_SCHEMES.items():
            full.append(
                measure(
                    f"full size, made up, {scheme}", streams_of(*model, quant), peers, options.repeats, others=options.full_others == "yes"
                )
            )

    print_table(summed + full)
    verdicts = {row["title"]: verdicts_of(row) for row in summed + full}
    for row in full:
        seconds = max(row["ours"]["seconds_encode"], row["ours"]["seconds_decode"])
        verdicts[row["title"]].append(
            f"at most 20 s on one thread: {'yes' if seconds <= 20 else 'NO'} (encoding {row['ours']['seconds_encode']:.2f} s, decoding "
            f"{row['ours']['seconds_decode']:.2f} s)"
        )
    for title, lines in verdicts.items():
        print(f"\n{title}\n  " + "\n  ".join(lines))
    for name, why in peers.skipped.items():
        print(f"\n{name} was skipped: {why}")
    record = provenance() | {
        "benchmark": "codec", "num_parameters": count, "seed": SEED, "runs": [path.name for path in options.runs],
        "peers": peers.facts, "skipped": peers.skipped,
        "trained": [row for found in rows.values() for row in found], "totals": summed, "full_size": full, "verdicts": verdicts,
    }  # fmt: skip
    write(options.out, record)


if __name__ == "__main__":
    main()
