import sys

from bytefit.cli import main

if __name__ == "__main__":
    sys.exit(main())
