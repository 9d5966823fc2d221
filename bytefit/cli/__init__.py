"""The command line: verbs, no logic. Exit codes: 0 done, 1 a check failed, 2 the user's mistake, 130 interrupted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bytefit import __version__
from bytefit.cli import audit, compare, data, page, runs, score, share, show, submit, use
from bytefit.errors import CheckFailed, UserError
from bytefit.files import cannot_write
from bytefit.ranks import leave_ranks
from bytefit.train.loop import Interrupted

EXAMPLES = """\
examples:
  bytefit run pocket                            train, pack, score and prove the default model (about 6 minutes)
  bytefit data build book.txt notes/ --out d    make a dataset from your own text
  bytefit run pocket --data d --bytes 500000    the same into half the bytes
  bytefit generate runs/demo/model.bytefit      let it speak
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bytefit",
        description="Train the best language model that fits in N bytes, and prove it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bytefit {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for module in (runs, score, audit, compare, submit, data, show, use, page, share):
        module.add_verbs(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        options.do(options)
    except UserError as error:
        print(f"bytefit: {error}", file=sys.stderr)
        return 2
    except CheckFailed as error:
        print(f"bytefit: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"bytefit: {stop}; go on with --resume", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("bytefit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away (| head): nothing to report
        return 0
    except OSError as error:
        print(f"bytefit: {cannot_write(error.filename, error) if error.filename else error}", file=sys.stderr)
        return 2
    finally:
        leave_ranks()
    return 0
