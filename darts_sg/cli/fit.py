"""darts-sg fit: one command from a folder of images to a trained and tested network."""

import argparse
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from darts_sg import process
from darts_sg.cli.jobs import add_option, read_typed
from darts_sg.cli.parser import argument_type
from darts_sg.config import help_texts, recipe_names
from darts_sg.fitting.options import FitOptions
from darts_sg.options import type_hints


def add_parser(commands: Any) -> None:
    """Add `fit` to the commands of the package."""
    parser = commands.add_parser(
        "fit",
        allow_abbrev=False,
        description="Look at a folder of images, choose, search, train, test, export and report: one network for them.",
    )
    hints, texts = type_hints(FitOptions), help_texts(FitOptions)
    groups: dict[str, Any] = {}
    for f in fields(FitOptions):
        title, text = f.metadata["group"], texts[f.name]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        if f.name == "recipe":
            text += f" Choices: {', '.join(recipe_names('search'))}."
        names = ["-o"] if f.name == "output" else []
        add_option(
            groups[title], f.name, hints[f.name], partial(read_typed, FitOptions, f.name), text, f.default, *names
        )
    parser.add_argument(
        "--resume", type=argument_type(Path), default=None, help="Folder of a fit to continue to the same result."
    )
    parser.add_argument("--dry-run", action="store_true", help="Print choices and times only; write nothing.")


def run(arguments: argparse.Namespace) -> None:
    """Fit, or continue."""
    from darts_sg.fitting.run import fit

    given = {f.name: getattr(arguments, f.name) for f in fields(FitOptions) if f.name in arguments}
    fit(**given, resume=arguments.resume, dry_run=arguments.dry_run, started=process.started())
