"""What rounding costs: bits per byte of trained lab models, rounded by every scheme, with and without each kind of fake quantisation.

python benchmarks/tax.py --data web --seeds 1 2 3 --steps 600 --workers 2

For each seed and each way of training one run folder is made (kept and taken up again where it is there). Each model is rounded to fixed
grids (int6, int5 and int4, tables int8, by GPTQ and to the nearest) and by the rate-optimal schemes at the very bytes that int5 with zstd
takes. Scores are of non-overlapping windows; the tax is the difference to the same weights in fp32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import provenance, write

from bytefit.artifact.pack import PackConfig, Packed, pack
from bytefit.config import to_json
from bytefit.data.dataset import Dataset, open_dataset
from bytefit.ledger import Ledger
from bytefit.model.inspect import num_parameters
from bytefit.quant.calibrate import CalibrationConfig, TrainingText
from bytefit.quant.clip import FixedClip, Percentile, RowMaximum, Searched, Shrunk
from bytefit.quant.crown import CrownQConfig
from bytefit.quant.fake import FakeQuantConfig, RoundingKind, SigmoidGradient, SoftRound, StraightThrough
from bytefit.quant.gptq import Gptq, Nearest
from bytefit.quant.grid import EqualDamageGrid, integer_grid
from bytefit.quant.quantise import MatrixQuant, QuantConfig
from bytefit.run.folder import RunFolder
from bytefit.run.steps import calibrate_step, trained_model, val_tokens
from bytefit.score.scorer import score
from bytefit.score.windows import Full

INT8 = MatrixQuant(grid=integer_grid(8))
GAIN_STEP = 1 / 256
NO_BUDGET = 1 << 40
SEARCH = Searched(among=tuple(Shrunk(factor=1 - 0.05 * i) for i in range(7)), error="weighted", judge="feedback")


def fake(rounding: RoundingKind, clip: FixedClip) -> str:
    """Fake quantisation to the codes of int5, as a recipe's setting."""
    config = FakeQuantConfig(rounding=rounding, lowest=-15, highest=15, clip=clip, below=0.5)
    return f"train.fake_quant={json.dumps(to_json(config))}"


TRAINED: dict[str, list[str]] = {
    "plain": [],
    "straight-through": [fake(StraightThrough(), Percentile(share=0.9995))],
    "soft round": [fake(SoftRound(), Percentile(share=0.9995))],
    "sigmoid gradient": [fake(SigmoidGradient(late_below=0.2), RowMaximum())],
    "CROWN-Q": [f"train.crown_q={json.dumps(to_json(CrownQConfig(below=0.5)))}"],
}


def fixed(bits: int, *, feedback: bool, search: bool = False) -> QuantConfig:
    rule = MatrixQuant(grid=integer_grid(bits, SEARCH if search else RowMaximum()), rounding=Gptq() if feedback else Nearest())
    return QuantConfig(table=INT8, head=INT8, attention=rule, mlp=rule, projection=rule)


def equal_damage(**settings: Any) -> QuantConfig:
    rule = MatrixQuant(grid=EqualDamageGrid(**settings))
    return QuantConfig(table=rule, head=rule, attention=rule, mlp=rule, projection=rule, gain_step=GAIN_STEP)


FIXED = {
    "int6 GPTQ": fixed(6, feedback=True),
    "int5 nearest": fixed(5, feedback=False),
    "int5 GPTQ": fixed(5, feedback=True),
    "int5 GPTQ, searched steps": fixed(5, feedback=True, search=True),
    "int4 nearest": fixed(4, feedback=False),
    "int4 GPTQ": fixed(4, feedback=True),
}
FITTED = {  # at the bytes of int5 GPTQ under zstd
    "int5 GPTQ": {"equal damage": equal_damage(trellis=0), "equal damage, 8 states": equal_damage(trellis=8)},
    "int4 GPTQ": {"equal damage, 8 states": equal_damage(trellis=8)},
}


def train(options: argparse.Namespace, name: str, seed: int) -> Path:
    """The run folder of one way of training and seed."""
    folder: Path = options.runs / f"tax-{name.replace(' ', '-').replace(',', '')}-s{seed}"
    command = [
        str(Path(sys.executable).with_name("bytefit")),
        "train",
        "pocket",
        "--steps",
        str(options.steps),
        "--seed",
        str(seed),
        "--set",
        "train.reserve_seconds=0",
    ]
    command += ["--data", str(options.data), "--out", str(folder), "--resume", "--json"]
    command += [word for setting in TRAINED[name] for word in ("--set", setting)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


class Model:
    """A trained model that is rounded in many ways."""

    def __init__(self, path: Path, dataset: Dataset, max_bytes: int):
        folder = RunFolder(path)
        self.dataset, self.recipe = dataset, folder.read_recipe()
        calibrate = CalibrationConfig(source=TrainingText(), windows=1024)
        everything = replace(self.recipe, calibrate=calibrate, pack=PackConfig(budget_bytes=1, quant=equal_damage()))
        self.statistics = calibrate_step(folder, everything, dataset, Ledger())
        self.model = trained_model(folder, self.recipe)
        self.weights = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.tokens = val_tokens(dataset, max_bytes)

    def packed(self, quant: QuantConfig, budget: int | None, codec: str) -> Packed:
        config = PackConfig(budget_bytes=budget or NO_BUDGET, quant=quant, codec=codec, fit=budget is not None)
        infos = list(self.model.parameter_infos())
        return pack(self.weights, infos, self.recipe.model, self.dataset.tokenizer, config, statistics=self.statistics)

    def bits_per_byte(self, packed: Packed | None = None) -> float:
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(self.weights[name] if packed is None else torch.from_numpy(packed.quantised.weights(name)).view_as(p))
        window = Full(window=self.recipe.score.window)
        return score(self.model, self.tokens, self.dataset.byte_table, window, torch.float32).bits_per_byte

    def results(self) -> dict[str, Any]:
        plain = self.bits_per_byte()
        found: dict[str, Any] = {"float": plain, "schemes": {}}

        def keep(name: str, quant: QuantConfig, budget: int | None, codec: str) -> int:
            packed = self.packed(quant, budget, codec)
            found["schemes"][name] = {"bytes": len(packed.data), "budget": budget, "tax": self.bits_per_byte(packed) - plain}
            return len(packed.data)

        for name, quant in FIXED.items():
            size = keep(f"{name}, zstd", quant, None, "zstd")
            for better, fitted in FITTED.get(name, {}).items():
                keep(f"{better}, at the bytes of {name}", fitted, size, "context")
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--max-bytes", type=int, default=1_000_000, help="of validation text")
    parser.add_argument("--workers", type=int, default=1, help="runs that train at once (give each one thread: OMP_NUM_THREADS=1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tax.json"))
    options = parser.parse_args()
    made_by = provenance()
    todo = list(itertools.product(options.seeds, TRAINED))
    with ThreadPoolExecutor(options.workers) as pool:
        folders = list(pool.map(lambda pair: train(options, pair[1], pair[0]), todo))
    dataset, rows = open_dataset(options.data), []
    for (seed, name), folder in zip(todo, folders, strict=True):
        result = Model(folder, dataset, options.max_bytes).results()
        rows.append({"trained": name, "seed": seed} | result)
        taxes = ", ".join(f"{scheme} {value['tax']:+.4f}" for scheme, value in result["schemes"].items())
        print(f"{name}, seed {seed}: float {result['float']:.4f}; {taxes}", file=sys.stderr)
        of_models = {"num_parameters": num_parameters(RunFolder(folder).read_recipe().model), "steps": options.steps}
        write(options.out, made_by | {"benchmark": "tax", "dataset_sha256": dataset.sha256} | of_models | {"rows": rows})


if __name__ == "__main__":
    main()
