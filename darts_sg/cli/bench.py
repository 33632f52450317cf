"""darts-sg bench: speed and memory against the textbook networks, as ratios of one run. Needs a checkout."""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from darts_sg.errors import UsageError


def add_parser(commands: Any) -> None:
    """Add `bench` to the commands of the package, with the options that the checkout's benchmarks have."""
    bench = commands.add_parser(
        "bench", description="Speed and memory against the textbook networks, as ratios of one run."
    )
    checkout_benchmarks().add_options(bench)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print and write."""
    checkout_benchmarks().main(arguments)


def checkout_benchmarks() -> Any:
    """The module benchmarks.speed of the checkout that holds this package; UsageError if there is none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "speed.py").is_file() or not (root / "tests" / "reference").is_dir():
        raise UsageError(
            "bench compares with the networks of tests/reference, which an installed package does not hold; "
            "run it in a checkout of the source"
        )
    sys.path.insert(0, str(root))
    return import_module("benchmarks.speed")
