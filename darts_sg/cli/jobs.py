"""The command lines of search and augment: an option for each field of the job's config, and what `run` does with them.

The options are handed to the Python API as they were given; it completes them from recipe, file, run or weights.
"""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from darts_sg import api, plugins, process
from darts_sg.cli.help import HELP_ALL
from darts_sg.cli.parser import Parser, argument_type
from darts_sg.config import JOBS, JobName, help_texts, recipe_names
from darts_sg.data import DATASETS
from darts_sg.engine.distributed import Ranks
from darts_sg.engine.loggers import LOGGERS
from darts_sg.errors import UsageError
from darts_sg.methods.parts import describe_part
from darts_sg.options import flag, members, read_option, type_hints, type_name
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
COMMON = {"config", "resume", "dry_run", "evaluate"}
"""Options of the command itself that --help shows; those of a config say so where they are declared."""
"""Options of the command itself, which no config holds, with type and help."""
EVALUATE = {
    "evaluate": (
        Path | None,
        "Weights file (weights.safetensors), run folder, hf://user/name or URL to test instead of training. Network, "
        "normalisation and data set are the file's; --dataset and --data choose other data.",
    )
}


GROUPS = {
    "Run": "What to start from, and how long to run.",
    "Search": "Candidate operations, cells, bounds.",
    "Network": "What is stacked from the cells.",
    "Data": "Images, and how they are split and augmented.",
    "Training": "Of the weights.",
    "Method": "Parts of the search method; a recipe chooses them together.",
    "Alphas": "Their optimiser and their initial values.",
    "Early stopping": "Signs of a collapse to skip connections.",
    "Output": "Run folder, checkpoints, loggers.",
    "Machine": "Device, speed, memory.",
}
"""Groups of the help, in its order, each with a description."""
METAVARS = {
    "run_dir": "DIR", "resume": "DIR", "data": "DIR", "config": "FILE", "evaluate": "FILE", "finetune": "FILE",
    "plugin": "FILE", "split": "FILE", "time_budget": "MINUTES", "checkpoint_minutes": "MINUTES", "data_note": "TEXT",
    "target_params": "SIZE", "target_macs": "SIZE", "target_latency": "TIME",
    "latency_table": "FILE", "output": "FILE",
}  # fmt: skip
"""Placeholders in help texts for the values of options whose type does not name them."""


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


def add_options(parser: Parser, job: JobName, defaults: dict[str, Any] | None = None) -> None:
    """Add the options of a job, in groups. What is not given is not in the parsed arguments."""
    config = JOBS[job]
    hints, texts, defaults = type_hints(config), help_texts(config), defaults or {}
    parser.set_defaults(prog=parser.prog)
    titles = {f.metadata["group"] for f in fields(config)}
    groups = {title: parser.add_argument_group(title, text) for title, text in GROUPS.items() if title in titles}
    for f in fields(config):
        text = texts[f.name]
        if f.name == "recipe":
            text += f" Choices: {', '.join(recipe_names(job))}."
        if f.name in NAMED:
            text += f" Choices: {', '.join(NAMED[f.name])}."
        if (parts := f.metadata["parts"]) is not None:  # one a line, and broken between their options
            described = [re.sub(r"[:,](?=[\w\[]+=)", r"\g<0> ", describe_part(name, parts[name])) for name in parts]
            text = "\n  ".join([f"{text.partition(' Choices: ')[0]} Choices:", *described]) + "\n"
        read = partial(read_typed, config, f.name)
        default = defaults.get(f.name, f.default)
        group = groups[f.metadata["group"]]
        add_option(group, f.name, hints[f.name], read, text, default, joined=f.metadata["joined"])
        if not f.metadata["common"]:
            parser.rare.add(f.name)
    for name, (hint, text) in command_options(job).items():
        add_option(groups["Run"], name, hint, argument_type(hint), text, None)
        if name not in COMMON:
            parser.rare.add(name)
    groups["Run"].add_argument("-h", "--help", action="store_true", help="Show the most used options and exit.")
    groups["Run"].add_argument(HELP_ALL, action="store_true", help="Show every option and exit.")


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
    kinds = [member for member in members(hint) if member is not type(None)]
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if hint is bool:
        more = {"nargs": "?", "const": True, "metavar": "{true,false}"}
    elif choices:
        more = {"metavar": "{" + ",".join(choices) + "}"}
    else:
        more["metavar"] = METAVARS.get(name) or {int: "N", float: "X", Path: "PATH"}.get(kinds[0], "NAME")
    said = _shown_default(text, hint, default)
    kind = "" if choices or kinds[0] in (str, Path) or hint is bool else type_name(hint)
    note = "; ".join(filter(None, [kind, said]))
    text = f"{text.rstrip()}{chr(10) if text.endswith(chr(10)) else ' '}({note})" if note else text
    group.add_argument(*short, flag(name), type=read, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **more)


def _shown_default(text: str, hint: Any, default: Any) -> str:
    """The default of an option for its help; empty where the text tells it."""
    if default is None or default == "":
        return "" if "Default: " in text or hint in (bool, Path | None) else "default: none"
    if hint is bool:
        return "default: on; give false to switch it off" if default else "default: off"
    if default == math.inf:
        return "default: .inf"
    return f"default: {default}"


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
    if (
        arguments.help or arguments.help_all
    ):  # with the defaults that hold beside the recipe, file, run or weights on the command line
        defaults = api.base_options(job, given, file=file, resume=resume, evaluate=evaluate)
        plugins.for_job(given.get("plugin", ""), base=defaults.get("plugin", ""))  # the help names their parts
        text = build_parser(job, arguments.prog, defaults).format_help(everything=arguments.help_all)
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
