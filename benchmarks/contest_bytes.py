"""Check the byte table on real contest tokenizers: against the rule spelled out token by token, and against the detokeniser.

python benchmarks/contest_bytes.py --documents val_fineweb.jsonl.zst --tokenizers fineweb_1024_bpe.model fineweb_8192_bpe.model
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import sentencepiece
from record import provenance, write

from bytefit.data.byte_table import contest_table
from bytefit.data.documents import read_documents
from bytefit.data.tokenizer import BOS_ID, SentencePieceTokenizer


def by_the_rule(processor: sentencepiece.SentencePieceProcessor, target: int, previous: int) -> int:
    """Bytes of one target, as the contest's rule says it in words (Parameter Golf baseline)."""

    def is_boundary(i: int) -> bool:
        return bool(processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i))

    if is_boundary(target):
        return 0
    if processor.is_byte(target):
        return 1
    piece = processor.id_to_piece(target)
    if not piece.startswith("\u2581"):
        return len(piece.encode())
    return len(piece[1:].encode()) + (0 if is_boundary(previous) else 1)


def check(path: Path, documents: list[str]) -> dict[str, object]:
    tokenizer = SentencePieceTokenizer(path.read_bytes())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    table, counted, ruled, decoded, tokens = contest_table(tokenizer), 0, 0, 0, 0
    for document in documents:
        row = np.array([BOS_ID, *tokenizer.encode([document])[0]])
        counted += int(table.count(row[1:], row[:-1]).sum())
        ruled += sum(by_the_rule(processor, int(t), int(p)) for p, t in itertools.pairwise(row))
        decoded += len(processor.decode(row[1:].tolist()).encode())
        tokens += len(row)
    raw = sum(len(document.encode()) for document in documents)
    return {
        "tokenizer": path.name,
        "raw_bytes": raw,
        "counted_by_table": counted,
        "counted_by_the_rule": ruled,
        "bytes_the_detokeniser_writes": decoded,
        "raw_bytes_per_token": raw / tokens,
        "agrees": counted == ruled == decoded,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, nargs="+", required=True)
    parser.add_argument("--tokenizers", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    documents = list(read_documents(options.documents))
    rows = [check(path, documents) for path in options.tokenizers]
    record = provenance() | {"benchmark": "contest_bytes", "rows": rows}
    print(json.dumps(record, indent=1))
    if options.out:
        write(options.out, record)
    if not all(row["agrees"] for row in rows):
        sys.exit("the byte table does not agree")


if __name__ == "__main__":
    main()
