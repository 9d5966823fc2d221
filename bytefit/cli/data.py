"""``data build``: text to a dataset folder."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from bytefit.cli.options import Verbs, add_verb, show_result
from bytefit.data.build import build_dataset, split_documents
from bytefit.data.documents import PIECE_BYTES, read_documents
from bytefit.data.tokenizer import TokenizerConfig
from bytefit.errors import UserError
from bytefit.files import read_json


def add_verbs(verbs: Verbs) -> None:
    group = verbs.add_parser("data", help="make datasets", description="Make datasets.")
    actions = group.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = add_verb(
        actions, "build", "make a dataset from text files, folders, .jsonl, .jsonl.gz or .jsonl.zst",
        "  bytefit data build book.txt notes/ --out mydata\n"
        "  bytefit data build train-*.jsonl.zst --val val.jsonl.zst --out web --vocab 2048\n"
        "  bytefit data build corpus/ --out sp1024 --tokenizer fineweb_1024_bpe.model",
    )  # fmt: skip
    build.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="text file, folder, .jsonl[.gz|.zst]")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="dataset folder to make")
    build.add_argument("--val", type=Path, nargs="+", metavar="SOURCE", help="validation text (default: split off by document hash)")
    build.add_argument("--val-fraction", type=float, default=0.05, metavar="F", help="share split off for validation (default: 0.05)")
    build.add_argument("--tokenizer", default="bpe", metavar="bpe|bytes|FILE", help="what to train, or a SentencePiece .model file")
    build.add_argument("--vocab", type=int, metavar="N", help="ids of a trained tokenizer (default: 2048)")
    build.add_argument("--normalization", choices=("identity", "nmt_nfkc"), help="(default: identity) nmt_nfkc is the contest's, and lossy")
    build.add_argument(
        "--document-bytes", type=int, default=PIECE_BYTES, metavar="N",
        help=f"cut long text files into documents of about N bytes (default: {PIECE_BYTES}; 0: never)",
    )  # fmt: skip
    build.set_defaults(do=do_build)


def do_build(options: argparse.Namespace) -> None:
    file = None if options.tokenizer in ("bpe", "bytes") else Path(options.tokenizer)
    if file is not None and not file.exists():
        raise UserError(f"--tokenizer {options.tokenizer}: give bpe, bytes or an existing .model file")
    given = [name for name in ("vocab", "normalization") if getattr(options, name) is not None]
    if given and options.tokenizer != "bpe":
        raise UserError(f"--{given[0]} is for a trained tokenizer; --tokenizer {options.tokenizer} has its own")
    try:
        config = TokenizerConfig(
            kind="bytes" if options.tokenizer == "bytes" else "bpe",
            vocab_size=2048 if options.vocab is None else options.vocab,
            normalization=options.normalization or "identity",
        )
    except ValueError as error:
        raise UserError(f"--vocab {options.vocab}: {error}") from None
    val = read_documents(options.val, options.document_bytes) if options.val else None
    split = split_documents(read_documents(options.sources, options.document_bytes), options.val_fraction, val)
    how = {"command": shlex.join(["bytefit", *sys.argv[1:]]), "sources": [source.name for source in options.sources]}
    build_dataset(split, options.out, config, tokenizer_file=file, how=how)
    record = read_json(options.out / "dataset.json")
    lines = [f"{options.out}: vocabulary {record['tokenizer']['vocab_size']}"]
    for name, side in record["splits"].items():
        ratio = side["raw_bytes"] / side["tokens"]
        lines.append(f"  {name:<5} {side['documents']:>8,} documents  {side['raw_bytes']:>13,} bytes  {side['tokens']:>12,} tokens"
                     f"  {ratio:.3f} bytes a token")  # fmt: skip
    if record["dropped_from_train"]:
        lines.append(f"  {record['dropped_from_train']:,} training documents were dropped: they stand in the validation text too")
    show_result(options, record, "\n".join(lines))
