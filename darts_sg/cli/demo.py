"""darts-sg demo: search, derive and retrain on rendered images in a few minutes."""

import argparse
from datetime import datetime
from pathlib import Path
from typing import Any

from darts_sg.errors import UsageError
from darts_sg.invocation import line


def add_parser(commands: Any) -> None:
    """Add `demo` to the commands of the package."""
    demo = commands.add_parser("demo", description="Search, derive and retrain on rendered images in a few minutes.")
    demo.add_argument("--run-dir", type=Path, help="folder for the two runs (default: a new one under runs/)")


def run(arguments: argparse.Namespace) -> None:
    """Search, derive and retrain with the recipe `demo`; ends by naming the run folders and their reports."""
    from darts_sg.cli import jobs  # needs torch

    folder = arguments.run_dir or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    if folder.exists():
        raise UsageError(f"{folder} exists; choose another --run-dir")
    searched, trained = folder / "search", folder / "augment"
    options = ["--recipe", "demo", "--run-dir", str(searched)]
    print(f"1. search: {line('search', recipe='demo', run_dir=searched)}")
    jobs.main("search", options, "darts-sg search")
    genotype = searched / "genotype.yaml"
    options = ["--recipe", "demo", "--genotype", str(genotype), "--run-dir", str(trained)]
    print(f"\n2. retrain: {line('augment', recipe='demo', genotype=genotype, run_dir=trained)}")
    jobs.main("augment", options, "darts-sg augment")
    print(f"\nsearched:  {searched}, report {searched / 'report.md'}")
    print(f"retrained: {trained}, report {trained / 'report.md'}")
