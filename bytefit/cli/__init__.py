"""The command line: verbs, no logic. Exit codes: 0 done, 1 a check failed, 2 the user's mistake, 130 interrupted."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from importlib import import_module
from itertools import groupby
from types import FrameType
from typing import NoReturn

from bytefit import __version__
from bytefit.cli.verbs import VERBS
from bytefit.errors import CheckFailed, Interrupted, UserError
from bytefit.files import cannot_write

EXAMPLES = """\
examples:
  bytefit run pocket                            train, pack, score and prove the default model (about 6 minutes)
  bytefit data build book.txt notes/ --out d    make a dataset from your own text
  bytefit run pocket --data d --bytes 500000    the same into half the bytes
  bytefit generate runs/demo/model.bytefit      let it speak
"""


def build_parser(asked_for: Set[str]) -> argparse.ArgumentParser:
    """With the options of the verbs asked for and of those beside them in their modules; the others have a name and a line of help."""
    parser = argparse.ArgumentParser(
        prog="bytefit",
        description="Train the best language model that fits in N bytes, and prove it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bytefit {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for module, held in groupby(VERBS, key=lambda verb: VERBS[verb].module):
        names = list(held)
        if asked_for.isdisjoint(names):
            for name in names:
                verbs.add_parser(name, help=VERBS[name].summary)
        else:
            import_module(f"bytefit.cli.{module}").add_verbs(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with asked_to_end_like_ctrl_c():
            options = build_parser(set(words)).parse_args(words)  # its imports take seconds, in which Ctrl-C may come
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
    except (RuntimeError, MemoryError) as error:
        said = said_of_memory(error)
        if said is None:
            raise
        print(
            f"bytefit: {said}; compute less at once (in training: a smaller --set train.micro_batch_tokens=N, or a smaller model)",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("bytefit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away (| head): nothing to report
        return 0
    except OSError as error:
        met = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"bytefit: {cannot_write(error.filename, error) if error.errno == errno.ENOSPC else met}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def asked_to_end_like_ctrl_c() -> Iterator[None]:
    """SIGTERM, by which schedulers and containers stop a process, saves what Ctrl-C saves."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: signals are somebody else's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def said_of_memory(error: RuntimeError | MemoryError) -> str | None:
    """What torch, numpy or Python say where memory runs out, a GPU's or the machine's; None for another error.

    torch is asked only where a verb has imported it: it takes seconds.
    """
    if isinstance(error, MemoryError):
        return str(error) or "out of memory"
    if "torch" in sys.modules and isinstance(error, sys.modules["torch"].OutOfMemoryError):
        return str(error).split(". ")[0]
    _, refused, rest = str(error).partition("can't allocate memory")  # by the CPU's allocator, whose errors have no class of their own
    return refused + rest.split(". ")[0] if refused else None
