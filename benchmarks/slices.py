"""Artifacts of the table of systems on other slices of the validation text than the table's.

    python benchmarks/slices.py --data web --runs runs/benchmark/systems-pocket-s3

Three slices of whole documents: the first half megabyte, on which the contest's own scripts were scored; the first megabyte, which is
the table's; and the megabyte after it, which no choice has seen. ``pocket``'s parts and its window were chosen on the beginning of the
validation text (docs/log.md), and whether that flatters it shows there. Sliding windows and the protocol that the artifact was packed with,
and the general-purpose compressors, which say how hard a slice is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from record import provenance, write

from bytefit.artifact.load import load_artifact
from bytefit.data.dataset import Dataset, open_dataset
from bytefit.data.tokenizer import BOS_ID
from bytefit.dtypes import resolve_dtype
from bytefit.run.folder import RunFolder
from bytefit.run.steps import check_fits, val_tokens
from bytefit.score.compressed import default_protocol
from bytefit.score.compressors import compressors_bits_per_byte
from bytefit.score.scorer import score
from bytefit.score.windows import Sliding

MEGABYTE = 1_000_000


def slices(dataset: Dataset) -> dict[str, tuple[np.ndarray, list[bytes]]]:
    """Tokens and documents of every slice."""
    half, first = val_tokens(dataset, MEGABYTE // 2), val_tokens(dataset, MEGABYTE)
    num_half, num_first = (int((tokens == BOS_ID).sum()) for tokens in (half, first))
    first_bytes = sum(map(len, dataset.val_documents(MEGABYTE)))
    both, documents = val_tokens(dataset, first_bytes + MEGABYTE), dataset.val_documents(first_bytes + MEGABYTE)
    return {
        "first half megabyte": (half, documents[:num_half]),
        "first megabyte": (first, documents[:num_first]),
        "next megabyte": (both[len(first) :], documents[num_first:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders of the table of systems")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/slices.json"))
    options = parser.parse_args()
    dataset = open_dataset(options.data)
    texts, dtype = slices(dataset), resolve_dtype("auto", "cpu")
    rows: list[dict[str, Any]] = []
    record = provenance() | {"benchmark": "slices", "dataset_sha256": dataset.sha256, "rows": rows}
    record["compressors"] = {text: compressors_bits_per_byte(documents) for text, (_, documents) in texts.items()}
    for path in options.runs:
        recipe, artifact = RunFolder(path).read_recipe(), load_artifact(RunFolder(path).artifact)
        check_fits(artifact, dataset)
        sliding = Sliding(window=recipe.score.window, stride=recipe.score.stride)
        for text, (tokens, documents) in texts.items():
            row: dict[str, Any] = {"recipe": recipe.name, "seed": recipe.seed, "artifact_sha256": artifact.sha256, "text": text}
            for name, protocol in (("sliding", sliding), ("own", default_protocol(artifact))):
                result = score(artifact.model, tokens, dataset.byte_table, protocol, dtype)
                assert result.bytes == sum(map(len, documents))
                row |= {name: result.bits_per_byte, "bytes": result.bytes}
            print(f"{recipe.name}, seed {recipe.seed}, {text}: sliding {row['sliding']:.4f}, own {row['own']:.4f}", file=sys.stderr)
            rows.append(row)
            write(options.out, record)


if __name__ == "__main__":
    main()
