"""darts-sg data ACTION: prepare data."""

import argparse
from pathlib import Path
from typing import Any

from darts_sg.cli.parser import Parser, argument_type, whole_number
from darts_sg.cli.terminal import deliver


def add_parser(commands: Any) -> None:
    """Add `data` with its actions to the commands of the package."""
    data = commands.add_parser("data", description="Prepare data.")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    subset = actions.add_parser("subset", help="list class-balanced, disjoint parts of ImageNet to search on")
    subset.add_argument("--data", type=Path, required=True, help="folder that holds train/CLASS/* and val/CLASS/*")
    subset.add_argument(
        "--fraction",
        type=argument_type(float),
        nargs="+",
        default=[0.1, 0.025],
        help="share of the training images in each part: for the weights, for the alphas (default: 0.1 0.025)",
    )
    subset.add_argument("--seed", type=whole_number, default=0, help="seed of the choice (default: 0)")
    subset.add_argument("-o", "--output", type=Path, help="file to write (default: print it)")


def run(arguments: argparse.Namespace) -> None:
    """Print or write the list of images."""
    from darts_sg.data import ImageFiles, load_dataset, split_text

    train = load_dataset("imagenet", arguments.data, seed=arguments.seed).train
    assert isinstance(train, ImageFiles)
    deliver(split_text(train, arguments.fraction, arguments.seed), arguments.output)
