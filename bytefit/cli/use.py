"""Using an artifact: ``generate``, ``compress``, ``decompress``."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

from bytefit.artifact.load import Artifact, load_artifact
from bytefit.cli.options import Verbs, add_artifact, add_verb, check_outputs, show_result
from bytefit.cli.protocols import CODED, protocol_of
from bytefit.errors import UserError
from bytefit.files import is_stream, read_bytes, write_bytes
from bytefit.progress import say
from bytefit.score.compressed import compress, count_documents, decompress
from bytefit.score.generate import generate
from bytefit.score.windows import Full


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "generate",
        '  bytefit generate runs/demo/model.bytefit --prompt "Return the"\n'
        "  bytefit generate model.bytefit --prompt-file start.txt --tokens 400 --temperature 0.7 --seed 3\n"
        "  bytefit generate model.bytefit --repl\n\n"
        "with --repl every line that you type begins a text; an empty line goes on with the last one.",
    )  # fmt: skip
    add_artifact(verb)
    verb.add_argument("--prompt", default="", help="text to continue (default: none)")
    verb.add_argument("--prompt-file", type=Path, metavar="FILE", help="read the prompt from a file")
    verb.add_argument("--repl", action="store_true", help="ask for one text after another, until the end of input (Ctrl-D)")
    verb.add_argument("--tokens", type=int, default=200, metavar="N", help="most tokens to write (default: 200)")
    verb.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest (default: 0.8)")
    verb.add_argument("--top-p", type=float, default=0.95, metavar="P", help="sample from the likeliest P (default: 0.95)")
    verb.add_argument("--seed", type=int, default=0, metavar="N")
    verb.set_defaults(do=do_generate)
    verb = add_verb(
        verbs, "compress",
        "  bytefit compress model.bytefit notes.txt --out notes.bytefitz\n"
        "  bytefit compress model.bytefit a.txt b.bin --out both.bytefitz\n"
        "  bytefit compress model.bytefit notes.txt --protocol sliding\n\n"
        "an artifact that learns while it scores compresses best, and slowly; --protocol sliding does not learn.",
    )  # fmt: skip
    add_artifact(verb)
    verb.add_argument("files", nargs="+", type=Path, metavar="FILE", help="any files; each is one document")
    verb.add_argument("--out", type=Path, metavar="FILE", help="(default: FILE.bytefitz)")
    verb.add_argument("--protocol", choices=CODED, help="(default: the one that the artifact was packed with)")
    verb.set_defaults(do=do_compress)
    verb = add_verb(
        verbs, "decompress",
        "  bytefit decompress model.bytefit notes.bytefitz --out notes.txt\n"
        "  bytefit decompress model.bytefit both.bytefitz --out a.txt b.bin",
    )  # fmt: skip
    add_artifact(verb)
    verb.add_argument("file", type=Path, help="compressed file")
    verb.add_argument("--out", type=Path, nargs="+", required=True, metavar="FILE", help="one name a document")
    verb.set_defaults(do=do_decompress)


def do_generate(options: argparse.Namespace) -> None:
    if options.repl and options.json:
        raise UserError("--json prints one document; leave out --repl")
    if options.repl and (options.prompt or options.prompt_file):
        raise UserError(f"--repl asks for texts; leave out --prompt{'-file' if options.prompt_file else ''}")
    artifact = load_artifact(options.artifact)
    if options.repl:
        repl(artifact, options)
        return
    if options.prompt and options.prompt_file:
        raise UserError("give --prompt or --prompt-file, not both")
    prompt = read_bytes(options.prompt_file) if options.prompt_file else os.fsencode(options.prompt)
    if not options.json:
        sys.stdout.buffer.write(prompt)
    text, count, seconds = speak(artifact, prompt, options, options.seed, aloud=not options.json)
    if options.json:
        show_result(options, {"text": text.decode("utf-8", "replace"), "tokens": count, "seconds": round(seconds, 3)}, "")


def speak(artifact: Artifact, prompt: bytes, options: argparse.Namespace, seed: int, *, aloud: bool) -> tuple[bytes, int, float]:
    """The prompt and its continuation, how many tokens that took, and the seconds; printed as they come, and the speed after them."""
    start, pieces = time.perf_counter(), []
    settings = {"num_tokens": options.tokens, "temperature": options.temperature, "top_p": options.top_p, "seed": seed}
    for piece in generate(artifact, prompt, **settings):
        pieces.append(piece)
        if aloud:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    seconds = time.perf_counter() - start
    if aloud:
        print(flush=True)
        say(f"({len(pieces)} tokens, {len(pieces) / max(seconds, 1e-9):.0f} tokens/s)")
    return prompt + b"".join(pieces), len(pieces), seconds


def repl(artifact: Artifact, options: argparse.Namespace) -> None:
    """Continue every line of the input; an empty line goes on with the text so far."""
    text = b""
    for turn in itertools.count():
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline()
        if not line:
            return
        text = line.rstrip(b"\r\n") or text
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
        text, _, _ = speak(artifact, text, options, options.seed + turn, aloud=True)


def do_compress(options: argparse.Namespace) -> None:
    artifact = load_artifact(options.artifact)
    if options.out is None and is_stream(options.files[0].absolute()):
        raise UserError(f"{options.files[0]} is no file to write beside; say where the compressed text goes: --out FILE")
    out = options.out or options.files[0].with_name(options.files[0].name + ".bytefitz")
    documents = [read_bytes(file) for file in options.files]
    check_outputs([out], [options.artifact, *options.files])
    protocol = protocol_of(artifact, options.protocol) if options.protocol else None
    assert not isinstance(protocol, Full)
    data = compress(artifact, documents, protocol)
    write_bytes(out, data)
    size = sum(map(len, documents))
    bits_per_byte = 8 * len(data) / max(1, size)
    record = {"bytes_in": size, "bytes_out": len(data), "bits_per_byte": bits_per_byte, "out": str(out)}
    show_result(options, record, f"{out}: {size:,} -> {len(data):,} bytes ({bits_per_byte:.4f} bits per byte)", out)


def do_decompress(options: argparse.Namespace) -> None:
    artifact, data = load_artifact(options.artifact), read_bytes(options.file)
    count = count_documents(data)  # before minutes of decoding
    if count != len(options.out):
        raise UserError(f"{options.file} holds {count} documents; --out names {len(options.out)}")
    check_outputs(options.out, [options.artifact, options.file])
    documents = decompress(artifact, data)
    for path, document in zip(options.out, documents, strict=True):
        write_bytes(path, document)
    record = {"documents": [{"out": str(path), "bytes": len(document)} for path, document in zip(options.out, documents, strict=True)]}
    show_result(options, record, "\n".join(f"{item['out']}: {item['bytes']:,} bytes" for item in record["documents"]), options.out[0])
