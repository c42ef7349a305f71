"""The program `clasp`, as `python -m clasp`."""

import signal
import sys

from ._clasp import run


def main() -> None:
    """Run the program with the arguments of this process and exit with its status."""
    # As without Python: the program's own handler where it has one, else the end of the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(run(["clasp", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
