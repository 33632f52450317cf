"""Train the network of a genotype: python augment.py --genotype NAME_OR_PATH (see --help)."""

import sys

from darts_sg.cli import run_job_command
from darts_sg.terminal import answer

if __name__ == "__main__":
    answer(lambda: run_job_command("augment", sys.argv[1:], "augment.py"), "augment.py")
