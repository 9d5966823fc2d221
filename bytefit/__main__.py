"""``python -m bytefit`` and the command ``bytefit``."""

import sys


def start() -> None:
    try:
        from bytefit.cli import main  # takes seconds, in which Ctrl-C may come
        from bytefit.ranks import run_process
    except KeyboardInterrupt:
        print("bytefit: interrupted", file=sys.stderr)
        sys.exit(130)
    run_process(main)


if __name__ == "__main__":
    start()
