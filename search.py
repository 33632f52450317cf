"""Search for a cell: python search.py --space darts+sandglass (see --help)."""

import sys

from darts_sg.cli.terminal import answer


def main() -> None:
    from darts_sg.cli import jobs  # slow to import: here, so that Ctrl-C is answered and data workers do without it

    jobs.main("search", sys.argv[1:], "search.py")


if __name__ == "__main__":
    answer(main, "search.py")
