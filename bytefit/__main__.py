"""``python -m bytefit`` and the command ``bytefit``."""

import io
import sys


def start() -> None:
    try:
        from bytefit.cli import main
        from bytefit.cli.verbs import VERBS

        if VERBS.keys().isdisjoint(sys.argv[1:]):  # the list of verbs, the version, a slip: said at once, without torch
            sys.exit(main())
        from bytefit.ranks import run_process  # takes seconds, in which Ctrl-C may come
    except KeyboardInterrupt:
        print("bytefit: interrupted", file=sys.stderr)
        sys.exit(130)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: a terminal without Unicode is no reason to end
    run_process(main)


if __name__ == "__main__":
    start()
