"""Train the network of a genotype: python augment.py --genotype NAME_OR_PATH (see --help)."""

import sys

from darts_sg.cli.terminal import answer


def main() -> None:
    from darts_sg.cli.jobs import (
        run_job_command,  # slow to import: within `answer`, for Ctrl-C, and not in data workers
    )

    run_job_command("augment", sys.argv[1:], "augment.py")


if __name__ == "__main__":
    answer(main, "augment.py")
