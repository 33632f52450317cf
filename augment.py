"""Train the network of a genotype: python augment.py --genotype NAME_OR_PATH (see --help)."""

import sys

from darts_sg.cli.terminal import answer


def main() -> None:
    from darts_sg.cli import jobs  # slow to import: here, so that Ctrl-C is answered and data workers do without it

    jobs.main("augment", sys.argv[1:], "augment.py")


if __name__ == "__main__":
    answer(main, "augment.py")
