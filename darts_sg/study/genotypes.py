"""The genotypes of a study: named, derived within bounds, drawn at random, or taken from the zoo."""

from dataclasses import replace
from pathlib import Path

from darts_sg.analysis.deriving import derive_genotype
from darts_sg.analysis.latency import read_latency_table
from darts_sg.analysis.run_folder import read_run
from darts_sg.config import SearchConfig, make_config
from darts_sg.derive import random_genotype
from darts_sg.files import write_atomically
from darts_sg.genotype import Genotype, load_genotype, renamed
from darts_sg.networks.derived import NetworkShape
from darts_sg.study.file import StudyFile, StudyGenotype
from darts_sg.study.folder import StudyFolder


def nodes_of(study: StudyFile, space: str) -> int:
    """Nodes of the cells that the searches of a space find: those of its first method."""
    options = {**study.data, **study.search, **study.methods[0].options, "space": study.space(space).space}
    config = make_config("search", **options)
    assert isinstance(config, SearchConfig)
    return config.nodes


def make_genotype(folder: StudyFolder, study: StudyFile, wanted: StudyGenotype, search_id: str) -> Genotype:
    """The genotype of a study, from the finished search `search_id` where one finds it.

    Raises UsageError if the search is missing or no genotype keeps the bounds.
    """
    match wanted.kind:
        case "plain":
            return renamed(load_genotype(folder.run_dir(search_id) / "genotype.yaml"), wanted.name)
        case "bounded":
            run_dir = folder.run_dir(search_id)
            network: NetworkShape = "imagenet" if read_run(run_dir).options.get("network") == "imagenet" else "cifar"
            limits = wanted.limits.as_dict()
            if "latency_table" in limits:
                limits["latency_table"] = Path(limits["latency_table"])
                shape = read_latency_table(limits["latency_table"]).shape
                if not shape.is_published:  # `derive_genotype` takes that size by itself
                    limits |= {"channels": shape.channels, "cells": shape.cells}
            return derive_genotype(run_dir, network=network, name=wanted.name, **limits)
        case "random":
            assert wanted.seed is not None
            space = study.space(wanted.space)
            return random_genotype(space.space, nodes_of(study, wanted.space), wanted.seed, wanted.name)
    return replace(load_genotype(wanted.name), name=wanted.name)


def write_genotype(folder: StudyFolder, study: StudyFile, wanted: StudyGenotype, search_id: str) -> Path:
    """Write genotypes/NAME.yaml unless it is there; returns its path. Raises UsageError as `make_genotype` does."""
    path = folder.genotype_file(wanted.name)
    if not path.is_file():
        write_atomically(path, make_genotype(folder, study, wanted, search_id).to_yaml())
    return path
