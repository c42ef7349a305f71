"""The program `clasp`, as `python -m clasp`."""

import sys

from ._clasp import run


def main() -> None:
    """Run the program with the arguments of this process and exit with its status."""
    sys.exit(run(["clasp", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
