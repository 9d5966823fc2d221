from bytefit.cli import main
from bytefit.ranks import run_process


def start() -> None:
    run_process(main)


if __name__ == "__main__":
    start()
