"""darts-sg search: the command line of search.py."""

import argparse
from typing import Any

from darts_sg.cli import jobs


def add_parser(commands: Any) -> None:
    """Add `search` with its options to the commands of the package."""
    jobs.add_job(commands, "search")


def run(arguments: argparse.Namespace) -> None:
    """Run the job."""
    jobs.run("search", arguments)
