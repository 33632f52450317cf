"""Search for a cell: python search.py --space darts+sandglass (see --help)."""

import sys

from darts_sg.cli import answer, run_job_command

if __name__ == "__main__":
    answer(lambda: run_job_command("search", sys.argv[1:], "search.py"), "search.py")
