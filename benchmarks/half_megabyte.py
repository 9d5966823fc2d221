"""The artifacts of the table of systems on the first 0.5 MB of validation text, which is what the contest's own scripts were scored on.

    python benchmarks/half_megabyte.py --data web --runs runs/benchmark/systems-pocket-s1

Sliding windows, and the protocol that the artifact was packed with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from record import provenance, write

from bytefit.artifact.load import load_artifact
from bytefit.data.dataset import open_dataset
from bytefit.dtypes import resolve_dtype
from bytefit.run.folder import RunFolder
from bytefit.run.steps import check_fits, val_tokens
from bytefit.score.compressed import default_protocol
from bytefit.score.scorer import score
from bytefit.score.windows import Sliding

HALF_A_MEGABYTE = 500_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders of the table")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/half_megabyte.json"))
    options = parser.parse_args()
    dataset = open_dataset(options.data)
    rows: list[dict[str, Any]] = []
    record = provenance() | {"benchmark": "half_megabyte", "dataset_sha256": dataset.sha256, "rows": rows}
    tokens, dtype = val_tokens(dataset, HALF_A_MEGABYTE), resolve_dtype("auto", "cpu")
    for path in options.runs:
        recipe, artifact = RunFolder(path).read_recipe(), load_artifact(RunFolder(path).artifact)
        check_fits(artifact, dataset)
        sliding = Sliding(window=recipe.score.window, stride=recipe.score.stride)
        row: dict[str, Any] = {"recipe": recipe.name, "seed": recipe.seed, "artifact_sha256": artifact.sha256}
        for name, protocol in (("sliding", sliding), ("own", default_protocol(artifact))):
            result = score(artifact.model, tokens, dataset.byte_table, protocol, dtype)
            row |= {name: result.bits_per_byte, "bytes": result.bytes}
        print(f"{recipe.name}, seed {recipe.seed}: sliding {row['sliding']:.4f}, its own protocol {row['own']:.4f}", file=sys.stderr)
        rows.append(row)
        write(options.out, record)


if __name__ == "__main__":
    main()
