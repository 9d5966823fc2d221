from bytefit.cli import main
from bytefit.ranks import end_process

if __name__ == "__main__":
    end_process(main())
