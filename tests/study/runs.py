"""A made-up study for tests: folders of searches and retrainings with known figures."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from darts_sg.genotype import Genotype, load_genotype, renamed
from tests.analysis.fakes import varied_search
from tests.analysis.runs import make_run, searched

SMALL = {"channels": 8, "cells": 5, "epochs": 25}
FULL = {"channels": 16, "cells": 8, "epochs": 50}
SEARCHES = (
    ("darts", "PDARTS", 0, 60.0),
    ("darts", "PC_DARTS_cifar", 1, 58.0),
    ("darts+sandglass", "GDAS_V1", 0, 59.0),
    ("darts+sandglass", "DARTS_V1", 1, 61.0),  # so SG_DARTS has the cells of DARTS_V1
    ("darts+ir", "PC_DARTS_image", 0, None),
)
ERRORS = {
    "SG_DARTS": ("DARTS_V1", {0: 12.0, 1: 11.0, 2: 12.5}),
    "DARTS_OURS": ("PDARTS", {0: 12.4, 1: 11.8, 2: 12.6}),
    "DARTS_V2": ("DARTS_V2", {1: 11.5, 2: 12.1}),
    "IR_DARTS": ("PC_DARTS_image", {0: 13.0}),
    "another": ("GDAS_V1", {0: 12.2}),
}
"""By name: the cells, and errors by seed."""


def search_runs(root: Path, images: int = 2_000, **options: Any) -> None:
    """Five searches of the three spaces; without mixing weights, as if those were not committed."""
    for space, base, seed, accuracy in SEARCHES:
        found = searched(base, space, seed, accuracy, images, **(SMALL | options))
        make_run(root / f"search_{space}_s{seed}", found, seed=seed)


def training_runs(root: Path, **options: Any) -> None:
    """The trainings of ERRORS, and of two random genotypes."""
    for name, (base, errors) in ERRORS.items():
        for seed, error in errors.items():
            make_run(root / f"{name}_s{seed}", renamed(load_genotype(base), name), error, seed=seed, **options)
    for seed, base in enumerate(("DrNAS_cifar10", "DrNAS_imagenet")):
        drawn = random_like(base, "darts", seed)
        make_run(root / f"random_{seed}", drawn, 14.0 + 2 * seed, **options)


def random_like(base: str, space: str, seed: int) -> Genotype:
    """The cells of a zoo genotype, as if they had been drawn at random."""
    provenance = MappingProxyType({"kind": "random", "seed": seed})
    return replace(load_genotype(base), name=f"random_{space}_{seed}", space=space, provenance=provenance)


def search_with_weights(folder: Path, epochs: int) -> Genotype:
    """A search over darts+sandglass with the mixing weights of all its epochs; returns its genotype."""
    varied_search(folder, epochs, nodes=4)
    known = {"kind": "searched", "seed": 3, "data": "cifar10; noted", "options": SMALL}
    known["measured"] = {"validation_accuracy_percent": 70.0}
    known |= {"train_images": 2_000, "validation_images": 2_000}
    found = replace(load_genotype(folder / "genotype.yaml"), provenance=MappingProxyType(known))
    found.save(folder / "genotype.yaml")
    for path in (folder / "genotypes").glob("*.yaml"):
        replace(load_genotype(path), provenance=found.provenance).save(path)
    return found
