"""Search for a cell: python search.py --space darts+sandglass (see --help)."""

import sys

from darts_sg.cli import run_job_command
from darts_sg.terminal import answer

if __name__ == "__main__":
    answer(lambda: run_job_command("search", sys.argv[1:], "search.py"), "search.py")
