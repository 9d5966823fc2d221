"""``python -m bytefit`` and the command ``bytefit``."""

import io
import sys

from bytefit import __version__


def start() -> None:
    if sys.argv[1:] == ["--version"]:  # alone it is answered at once, without torch
        print(f"bytefit {__version__}")
        return
    try:
        from bytefit.cli import main  # takes seconds, in which Ctrl-C may come
        from bytefit.ranks import run_process
    except KeyboardInterrupt:
        print("bytefit: interrupted", file=sys.stderr)
        sys.exit(130)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: a terminal without Unicode is no reason to end
    run_process(main)


if __name__ == "__main__":
    start()
