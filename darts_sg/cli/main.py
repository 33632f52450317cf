"""python -m darts_sg, installed as darts-sg: two jobs, and commands that inspect genotypes, spaces and runs."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from darts_sg import plugins
from darts_sg.cli.parser import Parser
from darts_sg.cli.terminal import answer

PROG = "darts-sg"

COMMANDS = {
    "fit": "one command for your own images: choose, search, train, test, export and report",
    "search": f"search for a cell ({PROG} search --help)",
    "augment": f"train the network of a genotype, or a model ({PROG} augment --help)",
    "demo": "search, derive and retrain on rendered images in a few minutes",
    "study": "run a whole comparison from one file: spaces × methods × seeds, on one machine or a cluster",
    "genotype": "show, draw, compare, derive, import and export genotypes",
    "spaces": "every space and operation",
    "latency-table": "measure the operations of a space on this device, to search and derive by latency",
    "models": "costs and published accuracies of MobileNeXt and MobileNetV2",
    "predict": "what trained weights say of images: objects in boxes, or classes",
    "weights": "list trained weights, and publish those of a run on the Hugging Face hub",
    "export": "export trained weights as a model for other programs",
    "diagnose": "gradient confusion and information loss of trained networks",
    "data": "prepare data",
    "report": "rewrite a run's report.md and pictures; or report the paper's experiment",
    "bench": "speed and memory against the textbook networks, as ratios of one run",
}
"""Each command is the module of its name beside this one, imported only when it is asked for: most need torch."""


def module_of(command: str) -> ModuleType:
    """The module of a command."""
    return import_module(f"darts_sg.cli.{command.replace('-', '_')}")


class ShowVersion(argparse.Action):
    """Print the version and exit. Reads it only when asked to."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *ignored: Any) -> None:
        from darts_sg import __version__

        print(f"{PROG} {__version__}")
        parser.exit()


def build_parser(command: str = "") -> Parser:
    """The parser of the command line, with the options of one command; the others are only listed."""
    parser = Parser(prog=PROG, description="Differentiable architecture search with the sandglass block.")
    parser.add_argument("--version", action=ShowVersion, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, text in COMMANDS.items():
        if name == command:
            module_of(name).add_parser(commands)
        else:
            commands.add_parser(name, help=text)
    return parser


def run(argv: Sequence[str]) -> None:
    """Carry out a command line; raises UsageError for what is wrong with it."""
    files, words = plugins.taken(argv)
    command = next((word for word in words if not word.startswith("-")), "")
    is_job = command in ("search", "augment")
    if is_job:  # plug-ins are options of the run
        place = words.index(command) + 1
        words[place:place] = plugins.joined([f"--plugin={file}" for file in files])
    else:
        for file in files:  # before the parser is built: its help and choices name what they add
            plugins.load(file)
    arguments = build_parser(command).parse_args(words)
    for file in () if is_job else getattr(arguments, "plugin", ()):  # given by an abbreviation, such as --plug
        plugins.load(file)
    module_of(arguments.command).run(arguments)


def main() -> None:
    """The console command."""
    answer(lambda: run(sys.argv[1:]), PROG)
