"""Search for a cell: python search.py --space darts+sandglass (see --help)."""

import sys

from darts_sg.cli.terminal import answer


def main() -> None:
    from darts_sg.cli.jobs import (
        run_job_command,  # slow to import: within `answer`, for Ctrl-C, and not in data workers
    )

    run_job_command("search", sys.argv[1:], "search.py")


if __name__ == "__main__":
    answer(main, "search.py")
