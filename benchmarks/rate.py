"""Bytes against damage, on trained layers and on whole models, for the field's schemes and ours.

python benchmarks/rate.py --data web --runs runs/benchmark/tax-plain-s1 runs/benchmark/tax-plain-s2 runs/benchmark/tax-plain-s3

Layers: every matrix of a role is rounded with one setting; damage is the mean squared error of the outputs for each weight,
tr(E H Eᵀ) / (out · in), and bits a weight count all that is stored for the role (codes, steps, exponents), as the artifact stores it.
R* is what a Gaussian source with each matrix's variance needs for the same damage (reverse water-filling over the eigenvalues of H).
Models: artifact bytes against bits per byte, everything in the file counted. nncodec (ISO/IEC 15938-17) takes part where its environment is
given by --peers; it knows nothing of H and rounds whole tensors with one step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import provenance, write
from tax import INT8, Model, equal_damage

from bytefit.artifact.weights_part import CodecName, CodeSections, model_sections
from bytefit.data.dataset import open_dataset
from bytefit.model.inspect import num_parameters
from bytefit.model.roles import ParameterInfo, Role
from bytefit.quant.clip import Sigmas
from bytefit.quant.gptq import Gptq, Nearest, Rounding
from bytefit.quant.grid import EqualDamageGrid, Grid, RowGrid, StepGrid, integer_grid
from bytefit.quant.low_rank import LowRankConfig
from bytefit.quant.metric import Metric
from bytefit.quant.prune import PruneConfig
from bytefit.quant.quantise import MatrixQuant, QuantConfig, Quantiser

ROLES = (Role.ATTENTION, Role.ATTENTION_OUT, Role.MLP)


def uniform(grid: Grid, rounding: Rounding | None = None) -> QuantConfig:
    rule = MatrixQuant(grid=grid, rounding=rounding or Nearest())
    return QuantConfig(table=rule, head=rule, attention=rule, mlp=rule, projection=rule)


# Scheme, its codec, and the settings along its curve: bits, or positions of the dial.
SIGMA_GRID = RowGrid(lowest=None, highest=None, levels=31, clip=Sigmas(k=12.0))
LAYER_SCHEMES: dict[str, tuple[CodecName, list[QuantConfig]]] = {
    "nearest, row maximum, zstd": ("zstd", [uniform(integer_grid(bits)) for bits in (3, 4, 5, 6, 7)]),
    "GPTQ, row maximum, zstd": ("zstd", [uniform(integer_grid(bits), Gptq()) for bits in (3, 4, 5, 6, 7)]),
    "GPTQ, k sigma, context coder": (
        "context",
        [uniform(replace(SIGMA_GRID, clip=Sigmas(k=12.0 * 2.0**-octave)), Gptq()) for octave in (-1.0, 0.0, 1.0, 2.0, 3.0)],
    ),
    **{
        name: ("context", [equal_damage(step=2.0**-octave, trellis=trellis, row_factors=False, rate_weight=1.0) for octave in range(-1, 5)])
        for name, trellis in (("equal damage", 0), ("equal damage, 4 states", 4), ("equal damage, 8 states", 8))
    },
}


def limit(weights: torch.Tensor, metric: Metric, damage: float) -> float:
    """R*: bits a weight that a Gaussian source of this variance needs, by reverse water-filling."""
    spectrum = torch.linalg.eigvalsh(metric.columns.double()).clamp_min(1e-30).numpy() * float(weights.double().square().mean())
    low, high = 1e-40, float(spectrum.max())
    for _ in range(300):
        level = (low * high) ** 0.5
        low, high = (low, level) if np.minimum(spectrum, level).mean() > damage else (level, high)
    return float(np.maximum(0.0, 0.5 * np.log2(spectrum / level)).mean())


def layer_points(model: Model, role: Role) -> list[dict[str, Any]]:
    """Bits and damage of one role's matrices for every scheme and setting; steps are relative to what its matrices need."""
    infos = [info for info in model.model.parameter_infos() if info.role is role]
    plain = {info.name: Metric(model.statistics[info.name].columns, torch.ones(info.parameter.shape[0])) for info in infos}
    count = sum(info.parameter.numel() for info in infos)
    # A damage that costs about two bits: the unit of the steps of the equal-damage curves.
    unit = np.mean([float(model.weights[i.name].square().mean() * plain[i.name].columns.diagonal().mean()) for i in infos]) ** 0.5
    points = []
    for name, (codec, settings) in LAYER_SCHEMES.items():
        for config in settings:
            rule = config.attention
            if isinstance(rule.grid, EqualDamageGrid):
                rule = replace(rule, grid=replace(rule.grid, step=rule.grid.step * unit))
                config = replace(config, attention=rule, mlp=rule)
            quantised = Quantiser(model.weights, infos, config, plain).at()
            stored = sum(
                len(section.payload) for section in model_sections(quantised, infos, CodeSections(codec)) if section.kind != "gains"
            )
            points.append(
                {"scheme": name} | measured(model, infos, plain, {i.name: quantised.weights(i.name) for i in infos}, stored, count)
            )
    return points


def measured(
    model: Model, infos: list[ParameterInfo], metrics: dict[str, Metric], rounded: dict[str, np.ndarray], stored: int, count: int
) -> dict[str, Any]:
    """Bits a weight, mean damage, and the limit at each matrix's own damage."""
    damages, limits = 0.0, 0.0
    for info in infos:
        weights, metric = model.weights[info.name], metrics[info.name]
        damage = 2 * metric.cost(weights - torch.from_numpy(rounded[info.name])) / weights.numel()
        damages += damage * weights.numel()
        limits += limit(weights, metric, damage) * weights.numel()
    return {"bits": 8 * stored / count, "damage": damages / count, "limit": limits / count, "gap": (8 * stored - limits) / count}


def nncodec_points(model: Model, role: Role, python: Path, script: Path) -> list[dict[str, Any]]:
    """The same with nncodec's own quantisers, plain and with a trellis."""
    infos = [info for info in model.model.parameter_infos() if info.role is role]
    plain = {info.name: Metric(model.statistics[info.name].columns, torch.ones(info.parameter.shape[0])) for info in infos}
    count = sum(info.parameter.numel() for info in infos)
    with tempfile.TemporaryDirectory() as scratch:
        given, out = Path(scratch) / "in.npz", Path(scratch) / "out.npz"
        np.savez(given, **{info.name: model.weights[info.name].numpy() for info in infos})
        steps = ["--qp", "-12", "-16", "-20", "-24", "-28", "-32"]
        subprocess.run(
            [str(python), str(script), str(given), str(out), *steps, "--unary", "11", "32"], check=True, stdout=subprocess.DEVNULL
        )
        result = np.load(out)
        points = []
        for i in range(len(result["bytes"])):
            name = "nncodec, trellis" if result["trellis"][i] else "nncodec"
            rounded = {info.name: result[f"{i}/{info.name}"] for info in infos}
            points.append({"scheme": name} | measured(model, infos, plain, rounded, int(result["bytes"][i]), count))
    return points


MODEL_SCHEMES: dict[str, tuple[CodecName, QuantConfig]] = {
    "nearest, row maximum, zstd": ("zstd", replace(uniform(integer_grid(6)), table=INT8, head=INT8)),
    "GPTQ, row maximum, zstd": ("zstd", replace(uniform(integer_grid(6), Gptq()), table=INT8, head=INT8)),
    "GPTQ, k sigma, context coder": (
        "context",
        replace(
            uniform(SIGMA_GRID, Gptq()),
            table=MatrixQuant(grid=replace(SIGMA_GRID, levels=63, clip=Sigmas(k=14.0)), rounding=Gptq()),
            gain_step=1 / 256,
        ),
    ),
    "one step a matrix, context coder": (
        "context",
        replace(
            uniform(StepGrid(fineness=5.0), Gptq()), table=MatrixQuant(grid=StepGrid(fineness=24.0), rounding=Gptq()), gain_step=1 / 256
        ),
    ),
    "equal damage, columns only": ("context", equal_damage(trellis=0, row_factors=False)),
    "equal damage": ("context", equal_damage(trellis=0)),
    "equal damage, 4 states": ("context", equal_damage(trellis=4)),
    "equal damage, 8 states": ("context", equal_damage(trellis=8)),
    "equal damage, 8 states, full price": ("context", equal_damage(rate_weight=1.0)),
    "equal damage, 8 states, matrices rescaled": ("context", equal_damage(rescale="matrix")),
    "equal damage, 8 states, rows and columns rescaled": ("context", equal_damage(rescale="rows and columns")),
    "equal damage, 8 states, low-rank corrections": ("context", replace(equal_damage(), low_rank=LowRankConfig())),
    "equal damage, 8 states, 2 % pruned": ("context", replace(equal_damage(), prune=PruneConfig(share=0.02, min_size=1024))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders of finished training, one a seed")
    parser.add_argument("--budgets", type=int, nargs="+", default=[350_000, 500_000, 700_000])
    parser.add_argument("--max-bytes", type=int, default=400_000, help="of validation text")
    parser.add_argument("--peers", type=Path, help="folder with the environment nncodec (benchmarks/peers/README.md)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rate.json"))
    options = parser.parse_args()
    made_by, dataset = provenance(), open_dataset(options.data)
    record: dict[str, Any] = made_by | {"benchmark": "rate", "dataset_sha256": dataset.sha256, "layers": [], "models": []}
    for path in options.runs:
        model = Model(path, dataset, options.max_bytes)
        record |= {"recipe": model.recipe.name, "num_parameters": num_parameters(model.recipe.model)}
        seed = model.recipe.seed
        for role in ROLES:
            points = layer_points(model, role)
            if options.peers and (python := options.peers / "nncodec" / "bin" / "python").exists():
                points += nncodec_points(model, role, python, Path(__file__).with_name("peers") / "nncodec_bytes.py")
            record["layers"] += [{"seed": seed, "role": role.value} | point for point in points]
            for name in dict.fromkeys(point["scheme"] for point in points):
                gaps = " ".join(f"{p['bits']:.2f}:{p['gap']:+.3f}" for p in points if p["scheme"] == name)
                print(f"seed {seed}, {role.value}, {name}: bits:gap {gaps}", file=sys.stderr)
        plain = model.bits_per_byte()
        for name, (codec, quant) in MODEL_SCHEMES.items():
            for budget in options.budgets:
                packed = model.packed(quant, budget, codec)
                row = {"seed": seed, "scheme": name, "budget": budget, "bytes": len(packed.data), "attempts": packed.attempts}
                record["models"].append(row | {"float": plain, "bits_per_byte": model.bits_per_byte(packed)})
                print(json.dumps(record["models"][-1]), file=sys.stderr)
            write(options.out, record)
    write(options.out, record)


if __name__ == "__main__":
    main()
