"""The command lines of search and augment: options from defaults, recipe, file and arguments, weakest first."""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from darts_sg import process
from darts_sg.config import (
    JOBS,
    AugmentConfig,
    Job,
    RunConfig,
    SearchConfig,
    default_recipe,
    flag,
    help_texts,
    known_options,
    load_options,
    load_recipe,
    recipe_names,
)
from darts_sg.engine.distributed import Ranks
from darts_sg.engine.weights import read_weights
from darts_sg.errors import RunError, UsageError, first_line

Config = TypeVar("Config", bound=RunConfig)


class Invocation(NamedTuple):
    """A command line, understood."""

    config: RunConfig
    resume: Path | None
    dry_run: bool
    print_config: bool
    evaluate: Path | None = None


class OptionParser(ArgumentParser):
    """An argument parser whose errors are UsageErrors: one line, no usage text before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(message.split())
        text = re.sub(r'^Parser key "(\w+)": ', lambda m: f"{flag(m[1])}: ", text)
        text = re.sub(r"Expected an? <class '(\w+)'>\. Got value:", r"expected \1, found", text)
        text = re.sub(r"Expected a typing\.Literal\[(.*?)\]\. Got value:", r"expected one of \1, found", text)
        text = re.sub(
            r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .* Given value: (.*)",
            lambda m: f"expected {_among(m[1])}, found {m[2]}",
            text,
        )
        raise UsageError(f"{text} (see --help)")


def _among(types: str) -> str:
    """The types of a Union in jsonargparse's words, as ours: "<class 'float'>, <class 'NoneType'>" is "float"."""
    return " or ".join(name for name in re.findall(r"<class '(?:\w+\.)*(\w+)'>", types) if name != "NoneType")


def build_parser(job: Job, prog: str, defaults: dict[str, Any]) -> ArgumentParser:
    """The parser of a job: an option for each field of its config, in groups, with the text under it as help."""
    config = JOBS[job]
    summary = {
        "search": "Search for a cell: alphas and weights of a supernet learn in turns.",
        "augment": "Train the network of a genotype, or a model such as MobileNeXt, from scratch, and test it.",
    }[job]
    parser = OptionParser(prog=prog, description=summary, allow_abbrev=False)
    command = parser.add_argument_group("Command")
    command.add_argument("--config", type=Path | None, default=None, help="YAML file of options.")
    command.add_argument("--resume", type=Path | None, default=None, help="Run folder to continue to the same bits.")
    command.add_argument(
        "--dry-run",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="Run a step and say parameters, MACs, peak memory, time, and what would be written.",
    )
    command.add_argument(
        "--print-config",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="Print all options as YAML and end.",
    )
    if job == "augment":
        command.add_argument(
            "--evaluate",
            type=Path | None,
            default=None,
            help="Weights file (weights.safetensors) to test instead of training: network, normalisation and data set "
            "are those of the file, --dataset and --data choose others.",
        )
    hints, texts = get_type_hints(config), help_texts(config)
    groups: dict[str, Any] = {}
    for f in fields(config):
        group = f.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        text = texts[f.name]
        if f.name == "recipe":
            text += f" Choices: {', '.join(recipe_names(job))}."
        more = {"nargs": "?", "const": True} if hints[f.name] is bool else {}
        groups[group].add_argument(
            flag(f.name), type=hints[f.name], default=defaults.get(f.name, f.default), help=text, **more
        )
    return parser


def parse(job: Job, argv: Sequence[str], prog: str) -> Invocation:
    """Understand a command line; raises UsageError for what is wrong with it."""
    config = JOBS[job]
    first = early_options(argv)
    defaults: dict[str, Any] = {}
    network: dict[str, Any] = {}  # of the weights to start from
    resume = None if first["resume"] is None else Path(first["resume"])
    if resume is not None:
        defaults = known_options(job, stored_options(resume, job), str(resume / "config.yaml"))
        defaults |= {"run_dir": None, "time_budget": None}  # of the process that started the run, not of the run
    else:
        given = {} if first["config"] is None else load_options(job, Path(first["config"]))
        recipe = str(first["recipe"] or given.get("recipe") or default_recipe(job))
        defaults = load_recipe(job, recipe) | given | {"recipe": recipe}
    weights = None
    if job == "augment" and resume is None and first["evaluate"] is None:
        if start := first["finetune"] or defaults.get("finetune"):
            network = read_weights(Path(start)).options()
            defaults |= network
    elif job == "augment" and first["evaluate"] is not None:
        weights = read_weights(Path(first["evaluate"]))
        defaults = weights.options() | {"dataset": weights.metadata.dataset, "seed": weights.metadata.seed}
    parser = build_parser(job, prog, defaults)
    options = parser.parse_args(list(argv)).as_dict()
    if resume is not None:
        refuse_changes(job, options, defaults, resume, given_config=first["config"])
    for name, value in network.items():
        if options[name] != value:
            raise UsageError(
                f"{flag(name)} {options[name]} is not that of {options['finetune']}, whose network is trained on; "
                "leave it out"
            )
    if weights is not None:
        refuse_training(options, parser.get_defaults().as_dict(), weights.path)
        same_size = options["dataset"] in (weights.metadata.dataset, "folder")
        options["image_size"] = weights.metadata.image_size if same_size else None
        options["auxiliary_weight"] = None if weights.metadata.model else 0.0
    command = [options.pop(name, None) for name in ("resume", "dry_run", "print_config", "evaluate")]
    options.pop("config")
    found = Invocation(config(**options), *command)
    return found if resume is not None or not Ranks.may_restart() else continued(job, found)


def continued(job: Job, invocation: Invocation) -> Invocation:
    """The same command where torchrun may have started it anew: it continues the run in --run-dir, if there is one.

    UsageError if it does not say where, or the run there is of other options.
    """
    config, run_dir = invocation.config, invocation.config.run_dir
    if run_dir is None:
        raise UsageError("torchrun --max-restarts needs --run-dir DIR, where a restarted run finds itself again")
    if not (run_dir / "config.yaml").is_file():
        return invocation
    stored = known_options(job, stored_options(run_dir, job), str(run_dir / "config.yaml"))
    refuse_other_options(job, config.as_dict(), stored, run_dir)
    return invocation._replace(resume=run_dir)


def early_options(argv: Sequence[str]) -> dict[str, str | None]:
    """The options that decide what the others start from."""
    found: dict[str, str | None] = {"recipe": None, "config": None, "resume": None, "evaluate": None, "finetune": None}
    for i, word in enumerate(argv):
        name, separator, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in found:
            if not separator and (i + 1 == len(argv) or argv[i + 1].startswith("--")):
                raise UsageError(f"--{name} needs a value (see --help)")
            found[name] = value if separator else argv[i + 1]
    return found


def stored_options(run_dir: Path, job: Job) -> dict[str, Any]:
    """The options in a run's config.yaml."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{run_dir} is not a run folder: it has no config.yaml")
    return load_options(job, path)


def refuse_changes(
    job: Job, options: dict[str, Any], stored: dict[str, Any], resume: Path, given_config: str | None
) -> None:
    """UsageError if an option given beside --resume would change the result of the run."""
    if given_config is not None:
        raise UsageError("--resume takes all options from the run itself; leave --config out")
    if options["run_dir"] is not None:
        raise UsageError("--resume continues in the run's own folder; leave --run-dir out")
    refuse_other_options(job, options, stored, resume)


def refuse_other_options(job: Job, options: dict[str, Any], stored: dict[str, Any], resume: Path) -> None:
    """UsageError if an option differs from that of the run, and the result depends on it."""
    for f in fields(JOBS[job]):
        given, then = options[f.name], stored.get(f.name, f.default)  # a run from before the option had its default
        if not f.metadata["free"] and given != then:
            raise UsageError(
                f"{flag(f.name)} {given} would change the result of {resume}, which was started with {then}; leave it "
                "out, or start a new run"
            )


def refuse_training(options: dict[str, Any], defaults: dict[str, Any], weights: Path) -> None:
    """UsageError if an option given beside --evaluate is of no use there."""
    names = {f.name for f in fields(JOBS["augment"]) if f.metadata["group"] == "Data" and f.metadata["free"]}
    names |= {"dataset", "data_note", "device", "threads", "evaluate"}
    for name, value in options.items():
        if name not in names and value != defaults[name]:
            raise UsageError(f"{flag(name)} is for training, and --evaluate {weights} only tests; leave it out")


def run_job_command(job: Job, argv: Sequence[str], prog: str) -> None:
    """search.py and augment.py: parse, then print the options, or import what runs them, and run."""
    leads = Ranks.from_environment().leads
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(sys.stdout if leads else nowhere):
        invocation = parse(job, argv, prog)
        try:
            _carry_out(invocation)
        except RunError:
            raise
        except (MemoryError, RuntimeError) as error:
            from darts_sg.engine.setup import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"out of memory outside the steps: {first_line(error)}; free some, or take fewer --train-images or "
                "--channels"
            ) from error


def _carry_out(invocation: Invocation) -> None:
    config, resume, dry, show, evaluate = invocation
    if show:
        print(yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True, width=110), end="")
    elif isinstance(config, SearchConfig):
        from darts_sg.engine.search import run_search

        run_search(config, resume=resume, dry=dry, started=process.started())
    elif isinstance(config, AugmentConfig) and evaluate is not None:
        from darts_sg.engine.evaluation import run_evaluation

        run_evaluation(config, evaluate)
    elif isinstance(config, AugmentConfig):
        from darts_sg.engine.augment import run_augment

        run_augment(config, resume=resume, dry=dry, started=process.started())
