"""Checks a whole study before its first job starts, so that no mistake is found after a night of searches.

Names of recipes, parts and spaces, all options, bounds, data, the split of the images and the device. Errors name the
line of the file.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darts_sg import plugins
from darts_sg.analysis.cost import choice_costs
from darts_sg.analysis.latency import read_latency_table
from darts_sg.config import AugmentConfig, RunConfig, SearchConfig, make_config
from darts_sg.data import Dataset, load_dataset
from darts_sg.derive import Bound, derive_bounded, num_edges
from darts_sg.engine.environment import choose_device, usable_cores
from darts_sg.engine.search_data import search_parts
from darts_sg.engine.setup import Setting, split_training_set
from darts_sg.errors import UsageError
from darts_sg.options import flag
from darts_sg.quantity import parse_quantity
from darts_sg.spaces import parse_space
from darts_sg.study.executors.local import gpus_of
from darts_sg.study.file import Limits, StudyFile
from darts_sg.study.plan import StudyJob, jobs_of
from darts_sg.yaml_files import Place

STAND_IN = "DARTS_V2"
"""Stands for a genotype that is not found yet where options are checked."""


def check_study(
    study: StudyFile, *, here: bool = True, data: bool = True, done: Collection[str] = ()
) -> dict[str, RunConfig]:
    """Check everything that can be checked without running a job; returns the config of each job by id.

    here: whether jobs run on this machine, so that their device must be there. data: whether to load the data, which
    downloads them if necessary. done: ids of jobs that need no data any more.

    Raises UsageError in one line, with the line of the file.
    """
    with _at(study, ("data", "plugin")):
        plugins.load_all(study.data.get("plugin", ""))
    for space in study.spaces:
        with _at(study, ("spaces", space.name)):
            parse_space(space.space)
    jobs = jobs_of(study)
    configs = _configs(study, jobs)
    _check_bounds(study, [configs[job.id] for job in jobs if job.kind == "search"])
    if here:
        for job in jobs:
            with _at(study, *_places(study, job, "--device")):
                if configs[job.id].device != "auto" and not gpus_of(configs[job.id].device):
                    choose_device(configs[job.id].device)
        _check_processes(study, configs)
    if data:
        _check_data(study, [job for job in jobs if job.id not in done], configs)
    return configs


def _check_processes(study: StudyFile, configs: Mapping[str, RunConfig]) -> None:
    """UsageError if jobs ask for more GPUs or processes than this machine has."""
    options = study.executor
    devices = sorted({config.device for config in configs.values()})
    key, number = ("gpus" if options.gpus else "processes"), options.most_processes
    if not (options.gpus or options.processes):
        return
    there = [gpu for device in devices for gpu in gpus_of(device)]
    problem = ""
    if options.gpus and devices == ["cpu"]:
        problem = "the jobs have --device cpu; leave gpus out, or choose another device"
    elif options.gpus and len(there) < number:
        problem = f"jobs ask for {number} GPUs, this machine has {len(there)}; lower gpus"
    elif options.processes and there and number > 1:
        problem = "jobs run on GPUs here, one process each; write gpus instead, or --device cpu in data"
    elif options.processes and number > usable_cores():
        problem = f"jobs ask for {number} processes, this machine has {usable_cores()} cores; lower processes"
    if problem:
        raise study.source.error(("executor", key), problem)


def _configs(study: StudyFile, jobs: Sequence[StudyJob]) -> dict[str, RunConfig]:
    """The config of each job by id; those that differ in the seed only are read once."""
    known: dict[str, RunConfig] = {}
    found = {}
    for job in jobs:
        key = f"{job.kind} { ({**job.options, 'seed': None}) }"
        if key not in known:
            known[key] = config_of(study, job)
        found[job.id] = dataclasses.replace(known[key], seed=job.seed)
    return found


def config_of(study: StudyFile, job: StudyJob) -> RunConfig:
    """The config of a job, with a genotype that stands for the one to train. UsageError with the line of the file."""
    options = dict(job.options)
    if job.kind == "retrain" and job.genotype_kind != "model":
        options["genotype"] = STAND_IN
    try:
        return make_config(job.name, **options)
    except UsageError as error:
        # an invented name of a recipe is told by its value, all else by the option that the message names
        named = str(error)
        if "recipe" in named:
            named += " --recipe"
        raise study.source.error(_places(study, job, named)[0], error) from None


def _places(study: StudyFile, job: StudyJob, message: str) -> list[Place]:
    """Where the options of a job that a message names stand in the file, the strongest first; then the job's section.

    An option that stands nowhere comes from the recipe or is a default.
    """
    sections: list[tuple[Place, Mapping[str, Any]]] = []
    if job.kind == "search":
        method = study.method(job.method)
        sections += [
            (("sweep",), method.swept),
            (("methods", method.base), method.options),
            (("search",), study.search),
        ]
    else:
        sections.append((("retrain",), study.retrain or {}))
    sections.append((("data",), study.data))
    words = set(message.replace(":", " ").replace(",", " ").replace(";", " ").split())
    found: list[Place] = [(*place, name) for place, options in sections for name in options if flag(name) in words]
    return [*found, ("methods", study.method(job.method).base) if job.kind == "search" else ("retrain",)]


@contextmanager
def _at(study: StudyFile, *places: Place) -> Iterator[None]:
    """Within the context a UsageError gets the first of the places before it."""
    try:
        yield
    except UsageError as error:
        raise study.source.error(places[0], error) from None


def _check_bounds(study: StudyFile, configs: list[RunConfig]) -> None:
    """UsageError if no genotype of a space keeps the bounds that the study derives or a search aims at."""
    checked = set()
    for config in configs:
        assert isinstance(config, SearchConfig)
        if study.wanted.bounded and config.baseline() is not None:
            problem = f"{config.strategy} has no mixing weights to choose by within bounds"
            raise study.source.error(("genotypes", "bounded"), f"{problem}; leave the bounds or that method out")
        space = next(space for space in study.spaces if space.space == config.space)
        wanted: list[tuple[Place, Limits]] = [(("genotypes", "bounded"), limits) for limits in study.wanted.bounded]
        targets = {"max_params": config.target_params, "max_macs": config.target_macs}
        for (key, text), option in zip(targets.items(), ("target_params", "target_macs"), strict=True):
            if text:
                most: dict[str, Any] = {key: parse_quantity(flag(option), text)}
                wanted.append((_option_place(study, option), Limits(**most)))
        for place, limits in wanted:
            key_of_case = (config.space, config.nodes, config.network, limits)
            if key_of_case not in checked:
                checked.add(key_of_case)
                with _at(study, place):
                    try:
                        refuse_impossible(config, limits)
                    except UsageError as error:
                        raise UsageError(f"space {space.name}: {error}") from None


def _option_place(study: StudyFile, name: str) -> Place:
    """Where an option of searches stands: in the first method that has it, the sweep, or the section search."""
    for method in study.methods:
        if name in method.options:
            return ("sweep", name) if name in method.swept else ("methods", method.base, name)
    return ("search", name)


def refuse_impossible(config: SearchConfig, limits: Limits) -> None:
    """UsageError if no genotype of the searched space keeps the bounds, at the papers' size of networks."""
    space = parse_space(config.space)
    operations, bounds = space.operations, []
    if limits.max_params is not None or limits.max_macs is not None:
        params, macs = choice_costs(operations, config.network, num_nodes=config.nodes)
        asked = {"params": (params, limits.max_params), "MACs": (macs, limits.max_macs)}
        bounds = [Bound(title, costs, most) for title, (costs, most) in asked.items() if most is not None]
    if limits.latency_table is not None:
        table = read_latency_table(Path(limits.latency_table))
        table.refuse_other(config.nodes, config.network)
        if bounds and not table.shape.is_published:
            raise UsageError(
                f"{table.source} is of networks with {table.shape.size}, max_params and max_macs count those of the "
                "papers' size; give them a bound of their own, or measure a table of that size"
            )
        bounds.append(Bound("latency", table.costs(operations), limits.max_latency or 0))
    uniform = np.full((num_edges(config.nodes), len(operations)), 1 / len(operations))
    derive_bounded(uniform, uniform, operations, bounds, limits.max_skips, space.allowed)


def _check_data(study: StudyFile, jobs: Sequence[StudyJob], configs: Mapping[str, RunConfig]) -> None:
    """UsageError if data are missing, or hold fewer images than a job asks for."""
    checked, loaded = set(), dict[tuple[Any, ...], Dataset]()
    for job in jobs:
        config = configs[job.id]
        asked = (
            config.dataset, str(config.data), config.image_size, config.split_seed, config.train_images,
            config.validation_images, str(getattr(config, "split", None)), job.kind,
        )  # fmt: skip
        if asked in checked:
            continue
        checked.add(asked)
        try:
            key = (config.dataset, config.data, config.image_size, config.split_seed)
            if key not in loaded:
                size, split_seed = config.image_size, config.split_seed
                found = load_dataset(
                    config.dataset, config.data, image_size=size, seed=config.seed, split_seed=split_seed
                )
                loaded = {key: found}  # one at a time: each may be large
            found = loaded[key]
            setting = Setting(torch.device("cpu"), found, {}, {})
            if isinstance(config, SearchConfig):
                search_parts(config, setting)
            else:
                assert isinstance(config, AugmentConfig)
                held_out = config.validation_images or 0
                wanted = config.train_images or max(1, len(found.train) - held_out)
                split_training_set(found, (wanted, held_out), config)
        except UsageError as error:
            places = _places(study, job, f"{error} --dataset --data")
            raise study.source.error(places[0], error) from None
