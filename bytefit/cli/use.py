"""Using an artifact: ``generate``, ``compress``, ``decompress``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from bytefit.artifact.load import load_artifact
from bytefit.cli.options import Verbs, add_verb, show_result
from bytefit.errors import UserError
from bytefit.files import read_bytes, write_bytes
from bytefit.progress import say
from bytefit.score.compressed import compress, decompress
from bytefit.score.generate import generate


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "generate", "continue a text with an artifact",
        '  bytefit generate runs/demo/model.bytefit --prompt "Return the"\n'
        "  bytefit generate model.bytefit --prompt-file start.txt --tokens 400 --temperature 0.7 --seed 3",
    )  # fmt: skip
    verb.add_argument("artifact", type=Path)
    verb.add_argument("--prompt", default="", help="text to continue (default: none)")
    verb.add_argument("--prompt-file", type=Path, metavar="FILE", help="read the prompt from a file")
    verb.add_argument("--tokens", type=int, default=200, metavar="N", help="most tokens to write (default: 200)")
    verb.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest (default: 0.8)")
    verb.add_argument("--top-p", type=float, default=0.95, metavar="P", help="sample from the likeliest P (default: 0.95)")
    verb.add_argument("--seed", type=int, default=0, metavar="N")
    verb.set_defaults(do=do_generate)
    verb = add_verb(
        verbs, "compress", "compress files with an artifact",
        "  bytefit compress model.bytefit notes.txt --out notes.bytefitz\n"
        "  bytefit compress model.bytefit a.txt b.bin --out both.bytefitz",
    )  # fmt: skip
    verb.add_argument("artifact", type=Path)
    verb.add_argument("files", nargs="+", type=Path, metavar="FILE", help="any files; each is one document")
    verb.add_argument("--out", type=Path, metavar="FILE", help="(default: FILE.bytefitz)")
    verb.set_defaults(do=do_compress)
    verb = add_verb(
        verbs, "decompress", "restore what compress wrote",
        "  bytefit decompress model.bytefit notes.bytefitz --out notes.txt\n"
        "  bytefit decompress model.bytefit both.bytefitz --out a.txt b.bin",
    )  # fmt: skip
    verb.add_argument("artifact", type=Path)
    verb.add_argument("file", type=Path, help="compressed file")
    verb.add_argument("--out", type=Path, nargs="+", required=True, metavar="FILE", help="one name a document")
    verb.set_defaults(do=do_decompress)


def do_generate(options: argparse.Namespace) -> None:
    artifact = load_artifact(options.artifact)
    prompt = read_bytes(options.prompt_file) if options.prompt_file else os.fsencode(options.prompt)
    start, pieces = time.perf_counter(), []
    if not options.json:
        sys.stdout.buffer.write(prompt)
    for piece in generate(
        artifact, prompt, num_tokens=options.tokens, temperature=options.temperature, top_p=options.top_p, seed=options.seed
    ):
        pieces.append(piece)
        if not options.json:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    seconds = time.perf_counter() - start
    if options.json:
        text = (prompt + b"".join(pieces)).decode("utf-8", "replace")
        show_result(options, {"text": text, "tokens": len(pieces), "seconds": round(seconds, 3)}, "")
        return
    print()
    say(f"({len(pieces)} tokens, {len(pieces) / max(seconds, 1e-9):.0f} tokens/s)")


def do_compress(options: argparse.Namespace) -> None:
    artifact = load_artifact(options.artifact)
    documents = [read_bytes(file) for file in options.files]
    out = options.out or options.files[0].with_name(options.files[0].name + ".bytefitz")
    data = compress(artifact, documents)
    write_bytes(out, data)
    size = sum(map(len, documents))
    bits_per_byte = 8 * len(data) / max(1, size)
    record = {"bytes_in": size, "bytes_out": len(data), "bits_per_byte": bits_per_byte, "out": str(out)}
    show_result(options, record, f"{out}: {size:,} -> {len(data):,} bytes ({bits_per_byte:.4f} bits per byte)")


def do_decompress(options: argparse.Namespace) -> None:
    documents = decompress(load_artifact(options.artifact), read_bytes(options.file))
    if len(documents) != len(options.out):
        raise UserError(f"{options.file} holds {len(documents)} documents; --out names {len(options.out)}")
    for path, document in zip(options.out, documents, strict=True):
        write_bytes(path, document)
    record = {"documents": [{"out": str(path), "bytes": len(document)} for path, document in zip(options.out, documents, strict=True)]}
    show_result(options, record, "\n".join(f"{item['out']}: {item['bytes']:,} bytes" for item in record["documents"]))
