"""The command lines of search and augment: an option for each field of the job's config, and what `run` does with them.

The options are handed to the Python API as they were given; it completes them from recipe, file, run or weights.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from darts_sg import api, plugins, process
from darts_sg.cli.parser import Parser, argument_type
from darts_sg.config import JOBS, JobName, help_texts, recipe_names
from darts_sg.data import DATASETS
from darts_sg.engine.distributed import Ranks
from darts_sg.engine.loggers import LOGGERS
from darts_sg.errors import UsageError
from darts_sg.options import flag, read_option, type_hints, type_name
from darts_sg.registry import Registry
from darts_sg.spaces import SPACES

SUMMARIES: dict[JobName, str] = {
    "search": "Search for a cell: alphas and weights of a supernet are trained in turns.",
    "augment": "Train the network of a genotype, or a model such as MobileNeXt, from scratch, and test it.",
}
NAMED: dict[str, Registry[Any]] = {"dataset": DATASETS, "logger": LOGGERS, "space": SPACES}
"""Options that name entries of a registry, which their help lists. Parts of a method are described in the config."""
COMMAND_OPTIONS: dict[str, tuple[Any, str]] = {
    "config": (Path | None, "YAML file of options."),
    "resume": (Path | None, "Run folder to continue to the same bits."),
    "dry_run": (bool, "Run a step; print parameters, MACs, peak memory, time, and what would be written."),
    "print_config": (bool, "Print all options as YAML and exit."),
}
"""Options of the command itself, which no config holds, with type and help."""
EVALUATE = {
    "evaluate": (
        Path | None,
        "Weights file (weights.safetensors), run folder, hf://user/name or URL to test instead of training. Network, "
        "normalisation and data set are the file's; --dataset and --data choose other data.",
    )
}


def command_options(job: JobName) -> dict[str, tuple[Any, str]]:
    """The options of a job's command that are not in its config."""
    return COMMAND_OPTIONS | (EVALUATE if job == "augment" else {})


def add_job(commands: Any, job: JobName) -> None:
    """Add a job to the commands of the package."""
    add_options(commands.add_parser(job, description=SUMMARIES[job], add_help=False, allow_abbrev=False), job)


def build_parser(job: JobName, prog: str, defaults: dict[str, Any] | None = None) -> Parser:
    """The parser of a job on its own. `defaults` are for the help texts."""
    parser = Parser(prog=prog, description=SUMMARIES[job], add_help=False, allow_abbrev=False)
    add_options(parser, job, defaults)
    return parser


def add_options(parser: argparse.ArgumentParser, job: JobName, defaults: dict[str, Any] | None = None) -> None:
    """Add the options of a job, in groups. What is not given is not in the parsed arguments."""
    config = JOBS[job]
    hints, texts, defaults = type_hints(config), help_texts(config), defaults or {}
    parser.set_defaults(prog=parser.prog)
    parser.add_argument("-h", "--help", action="store_true", help="Show this help message and exit.")
    group = parser.add_argument_group("Command")
    for name, (hint, text) in command_options(job).items():
        default = False if hint is bool else None
        add_option(group, name, hint, argument_type(hint), text, default)
    groups = {}
    for f in fields(config):
        title, text = f.metadata["group"], texts[f.name]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        if f.name == "recipe":
            text += f" Choices: {', '.join(recipe_names(job))}."
        if f.name in NAMED:
            text += f" Choices: {', '.join(NAMED[f.name])}."
        read = partial(read_typed, config, f.name)
        default = defaults.get(f.name, f.default)
        add_option(groups[title], f.name, hints[f.name], read, text, default, joined=f.metadata["joined"])


class _Join(argparse.Action):
    """Joins the values of an option that is given several times with +."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        before = getattr(namespace, self.dest, "")
        setattr(namespace, self.dest, f"{before}+{values}" if before else values)


def add_option(
    group: Any, name: str, hint: Any, read: Any, text: str, default: Any, *short: str, joined: bool = False
) -> None:
    """Add an option with its type and default in the help; `short`: further names, such as -o."""
    more: dict[str, Any] = {"action": _Join} if joined else {}
    if hint is bool:
        more = {"nargs": "?", "const": True, "metavar": "{true,false}"}
    elif get_origin(hint) is Literal:
        more = {"metavar": "{" + ",".join(get_args(hint)) + "}"}
    shown = "null" if default is None else default
    text = f"{text} (type: {type_name(hint)}, default: {shown})".replace("%", "%%")
    group.add_argument(*short, flag(name), type=read, default=argparse.SUPPRESS, help=text, **more)


def read_typed(config: type, name: str, text: str) -> Any:
    """The text of an option as the field of the config holds it."""
    try:
        return read_option(config, name, text, command_line=True)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse(job: JobName, argv: Sequence[str], prog: str) -> api.Plan:
    """Understand a command line; raises UsageError for what is wrong with it."""
    return _plan(job, vars(build_parser(job, prog).parse_args(plugins.joined(argv))))


def _plan(job: JobName, arguments: dict[str, Any]) -> api.Plan:
    file, resume, evaluate = (arguments.get(name) for name in ("config", "resume", "evaluate"))
    return api.plan(job, _options(job, arguments), file=file, resume=resume, evaluate=evaluate)


def _options(job: JobName, arguments: dict[str, Any]) -> dict[str, Any]:
    """The options of the config that are among parsed arguments."""
    return {f.name: arguments[f.name] for f in fields(JOBS[job]) if f.name in arguments}


def main(job: JobName, argv: Sequence[str], prog: str) -> None:
    """search.py and augment.py: parse a command line and run it."""
    run(job, build_parser(job, prog).parse_args(plugins.joined(argv)))


def run(job: JobName, arguments: argparse.Namespace) -> None:
    """Show the help or the options, or run the job; only rank 0 prints."""
    given = vars(arguments)
    file, resume, evaluate = (given.get(name) for name in ("config", "resume", "evaluate"))
    text = ""
    if arguments.help:  # with the defaults that hold beside the recipe, file, run or weights on the command line
        defaults = api.base_options(job, given, file=file, resume=resume, evaluate=evaluate)
        plugins.for_job(given.get("plugin", ""), base=defaults.get("plugin", ""))  # the help names their parts
        text = build_parser(job, arguments.prog, defaults).format_help()
    elif given.get("print_config"):
        options = _plan(job, given).config.as_dict()
        text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True, width=110)
    elif evaluate is not None:
        if resume is not None:
            _plan(job, given)  # says that the two exclude each other
        api.evaluate(evaluate, **_options(job, given))
    else:
        start = api.search if job == "search" else api.retrain
        dry_run = given.get("dry_run", False)
        start(resume=resume, config=file, dry_run=dry_run, **_options(job, given), started=process.started())
    if Ranks.from_environment().leads:
        print(text, end="")
