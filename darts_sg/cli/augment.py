"""darts-sg augment: the command line of augment.py."""

import argparse
from typing import Any

from darts_sg.cli import jobs


def add_parser(commands: Any) -> None:
    """Add `augment` with its options to the commands of the package."""
    jobs.add_job(commands, "augment")


def run(arguments: argparse.Namespace) -> None:
    """Run the job."""
    jobs.run("augment", arguments)
