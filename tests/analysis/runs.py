"""Run folders made up for tests: what a finished search or retraining leaves, without the training."""

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from darts_sg.genotype import Genotype, load_genotype


def searched(
    base: str | Genotype, space: str, seed: int = 0, accuracy: float | None = None, images: int = 2_000, **options: Any
) -> Genotype:
    """The cells of a genotype, or of one of the zoo, as if a search over `space` had found them."""
    cells = load_genotype(base) if isinstance(base, str) else base
    provenance: dict[str, Any] = {"kind": "searched", "seed": seed, "data": "cifar10; noted", "options": options}
    provenance |= {"train_images": images, "validation_images": images}
    if accuracy is not None:
        provenance["measured"] = {"validation_accuracy_percent": accuracy}
    name = f"{space}_seed{seed}"
    return replace(cells, name=name, space=space, provenance=MappingProxyType(provenance))


def make_run(folder: Path, genotype: Genotype, error: float | None = None, images: int = 4_000, **options: Any) -> Path:
    """A finished search, or with an `error` a finished retraining on so many images, at `folder`."""
    job = "search" if error is None else "augment"
    small = {"channels": 16, "cells": 8, "epochs": 15, "cutout_length": 0, "drop_path_prob": 0.2, "seed": 0}
    data = {"name": "cifar10", "note": "noted", "remark": "remarkable", "train_images": images}
    environment = {"data": data, "device_name": "a machine", "threads": 2}
    folder.mkdir(parents=True)
    content = {"job": job, "options": {**small, **options}, "environment": environment}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    genotype.save(folder / "genotype.yaml")
    if error is not None:
        result = {
            "test_error_last": error,
            "test_error_best": error - 1,
            "best_epoch": 3,
            "best_chosen_on": "test",
            "params": 246_106,
            "params_with_auxiliary": 681_572,
            "macs": 43_444_736,
            "seed": options.get("seed", 0),
        }
        (folder / "result.json").write_text(json.dumps(result))
    return folder
