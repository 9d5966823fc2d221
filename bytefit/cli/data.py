"""``data build``: text to a dataset folder. ``data get``: a published one."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from bytefit.cli.options import Verbs, add_verb, show_result
from bytefit.cli.verbs import VERBS
from bytefit.data.build import build_dataset, split_documents
from bytefit.data.dataset import DOWNLOAD_RECORD
from bytefit.data.documents import PIECE_BYTES, read_documents
from bytefit.data.tokenizer import TokenizerConfig
from bytefit.errors import UserError
from bytefit.files import read_json
from bytefit.hub.get import get_dataset
from bytefit.hub.published import DEFAULT_SHARDS, PUBLISHED


def add_verbs(verbs: Verbs) -> None:
    group = verbs.add_parser("data", help=VERBS["data"].summary, description="Make datasets.")
    actions = group.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = add_verb(
        actions, "build",
        "  bytefit data build book.txt notes/ --out mydata\n"
        "  bytefit data build train-*.jsonl.zst --val val.jsonl.zst --out web --vocab 2048\n"
        "  bytefit data build corpus/ --out sp1024 --tokenizer fineweb_1024_bpe.model",
        summary="make a dataset from text files, folders, .jsonl, .jsonl.gz or .jsonl.zst",
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
    get = add_verb(
        actions, "get",
        "  bytefit data get fineweb-sp1024 --out sp1024 --shards 1\n"
        "  bytefit data get fineweb-sp8192 --out sp8192\n"
        "  bytefit data get fineweb-sp1024 --out sp1024 --documents --endpoint https://hub.example.org\n\n"
        f"datasets: {', '.join(PUBLISHED)}.\n"
        "a training shard holds 100,000,000 tokens in 200 MB. After a break run the same command again: it goes on.",
        summary="fetch a published dataset from the Hugging Face hub (needs the extra hub; docs/data.md)",
    )  # fmt: skip
    get.add_argument("name", metavar="NAME", help="which one; see below")
    get.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to fill")
    get.add_argument("--shards", type=int, default=DEFAULT_SHARDS, metavar="N", help=f"training shards (default: {DEFAULT_SHARDS})")
    get.add_argument("--documents", action="store_true", help="the text that the shards were made from, too (48 GB)")
    get.add_argument("--endpoint", metavar="URL", help="of a mirror of the hub (default: the hub)")
    get.set_defaults(do=do_get)


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
    if options.document_bytes < 0:
        raise UserError(f"--document-bytes {options.document_bytes} must not be negative (0: never cut)")
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


def do_get(options: argparse.Namespace) -> None:
    record = get_dataset(options.name, options.out, shards=options.shards, documents=options.documents, endpoint=options.endpoint)
    size = sum(file["bytes"] for file in record["files"])
    text = (
        f"{options.out}: {options.name}, {len(record['files'])} files ({record['fetched']} fetched now), {size:,} bytes\n"
        f"  train {record['train_tokens']:>14,} tokens\n  val   {record['val_tokens']:>14,} tokens\n"
        f"every file is what the hub states of it; {options.out / DOWNLOAD_RECORD} lists them"
    )
    show_result(options, record, text)
