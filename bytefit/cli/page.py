"""``page``: an artifact as a page that runs it."""

from __future__ import annotations

import argparse
from pathlib import Path

from bytefit.cli.options import Verbs, add_artifact, add_verb, check_outputs, show_result
from bytefit.files import read_bytes
from bytefit.page.write import write_page


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "page",
        "  bytefit page runs/demo/model.bytefit\n  bytefit page model.bytefit --out index.html",
    )  # fmt: skip
    add_artifact(verb)
    verb.add_argument("--out", type=Path, metavar="FILE", help="(default: the artifact's name with .html)")
    verb.set_defaults(do=do_page)


def do_page(options: argparse.Namespace) -> None:
    read_bytes(options.artifact)  # a folder's name may have nothing to put .html behind
    out = options.out or options.artifact.with_suffix(".html")
    check_outputs([out], [options.artifact])
    page = write_page(options.artifact, out)
    record = {
        "out": str(out),
        "bytes": page.size,
        "artifact_bytes": page.artifact.size,
        "artifact_sha256": page.artifact.sha256,
        "recompressed": page.recompressed,
    }
    changed = f"; {', '.join(page.recompressed)} recompressed with zlib, which browsers can expand" if page.recompressed else ""
    show_result(options, record, f"{out}: {page.size:,} bytes, of an artifact of {page.artifact.size:,}{changed}", out)
