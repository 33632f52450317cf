"""Options, recipes and registries."""

import math
from dataclasses import fields
from pathlib import Path

import pytest

from darts_sg.config import (
    CELL_DEFAULTS,
    JOBS,
    AugmentConfig,
    JobName,
    RunConfig,
    SearchConfig,
    help_texts,
    load_options,
    load_recipe,
    recipe_names,
)
from darts_sg.errors import UsageError
from darts_sg.registry import Registry

PAPER_SEARCH = {  # DARTS paper, appendix A.1.1
    "epochs": 50, "batch_size": 64, "channels": 16, "cells": 8, "nodes": 4, "stem_multiplier": 3,
    "learning_rate": 0.025, "learning_rate_min": 0.001, "momentum": 0.9, "weight_decay": 3e-4, "gradient_clip": 5,
    "alpha_learning_rate": 3e-4, "alpha_weight_decay": 1e-3, "cutout_length": 0, "hypergradient": "first_order",
}  # fmt: skip
PAPER_AUGMENT = {  # DARTS paper, appendix A.1.2
    "epochs": 600, "batch_size": 96, "channels": 36, "cells": 20, "learning_rate": 0.025, "learning_rate_min": 0,
    "momentum": 0.9, "weight_decay": 3e-4, "gradient_clip": 5, "cutout_length": 16, "auxiliary_weight": 0.4,
    "drop_path_prob": 0.2,
}  # fmt: skip
PAPER_MOBILENEXT = {  # the authors' code
    "epochs": 200, "learning_rate": 0.1, "learning_rate_min": 1e-5, "warmup_epochs": 3, "weight_decay": 1e-4,
    "label_smoothing": 0.1, "momentum": 0.9, "gradient_clip": math.inf, "cutout_length": 0,
}  # fmt: skip
PAPER_PC_DARTS = {
    "partial_channels": 4, "edge_normalization": True, "batch_size": 256, "learning_rate": 0.1,
    "learning_rate_min": 0, "alpha_learning_rate": 6e-4, "alpha_frozen_epochs": 15, "epochs": 50,
}  # fmt: skip

PAPER_IMAGENET = {  # DARTS paper, section 3.3; colour jitter as in its code
    "epochs": 250, "batch_size": 128, "channels": 48, "cells": 14, "network": "imagenet", "learning_rate": 0.1,
    "momentum": 0.9, "weight_decay": 3e-5, "gradient_clip": 5, "label_smoothing": 0.1, "auxiliary_weight": 0.4,
    "drop_path_prob": 0, "colour_jitter": 0.4, "cutout_length": 0, "schedule": "exponential",
}  # fmt: skip


def subset(config: RunConfig, keys: dict[str, object]) -> dict[str, object]:
    options = config.as_dict()
    return {key: options[key] for key in keys}


def test_the_defaults_are_those_of_the_papers() -> None:
    assert subset(SearchConfig(), PAPER_SEARCH) == PAPER_SEARCH
    assert subset(AugmentConfig(genotype="DARTS_V2"), PAPER_AUGMENT) == PAPER_AUGMENT
    assert subset(SearchConfig(**load_recipe("search", "pc-darts")), PAPER_PC_DARTS) == PAPER_PC_DARTS
    trained = AugmentConfig(model="mobilenext_1.0", **load_recipe("augment", "mobilenext"))
    assert subset(trained, PAPER_MOBILENEXT) == PAPER_MOBILENEXT
    large = AugmentConfig(genotype="DARTS_V2", **load_recipe("augment", "imagenet"))
    assert subset(large, PAPER_IMAGENET) == PAPER_IMAGENET
    assert (large.learning_rate_min / large.learning_rate) ** (1 / large.epochs) == pytest.approx(0.97, abs=1e-6)
    modern = load_recipe("augment", "imagenet-cosine-bf16")
    changed = {"schedule", "learning_rate_min", "precision"}
    assert {k: v for k, v in modern.items() if k not in changed} == {
        k: v for k, v in load_recipe("augment", "imagenet").items() if k not in changed
    }
    assert load_recipe("augment", "imagenet-cosine-ema-bf16") == modern | {"ema": 0.9999}
    assert load_recipe("search", "darts-second") == {"hypergradient": "unrolled"}
    assert load_recipe("augment", "pc-darts") == {"drop_path_prob": 0.3}


@pytest.mark.parametrize("job", JOBS)
def test_every_option_has_a_help_text_and_a_group(job: JobName) -> None:
    texts = help_texts(JOBS[job])
    for f in fields(JOBS[job]):
        assert len(texts[f.name]) > 15, f.name
        assert f.metadata["group"]


@pytest.mark.parametrize(("job", "name"), [(job, name) for job in JOBS for name in recipe_names(job)])
def test_every_recipe_is_valid(job: JobName, name: str) -> None:
    options = load_recipe(job, name)
    JOBS[job](**options, **({"genotype": "DARTS_V2"} if job == "augment" else {}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown option 'epoch' .*did you mean 'epochs'"),
        ("- 1", "expected a mapping"),
        ("a: [", "is not YAML"),
        ("search: 3", "expected a mapping"),
    ],
)
def test_a_bad_config_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"mine\.yaml.*{message}"):
        load_options("search", path)


def test_a_config_file_may_have_a_section_for_each_job(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("search: {batch-size: 7}\naugment: {epochs: 9}\n")
    assert load_options("search", path) == {"batch_size": 7}
    assert load_options("augment", path) == {"epochs": 9}


def test_a_registry_refuses_duplicates_and_answers_with_the_choices() -> None:
    registry: Registry[int] = Registry("colour")
    registry.add("red", 1)
    registry.add("green", 2)
    with pytest.raises(ValueError, match="'red' is registered already"):
        registry.add("red", 3)
    with pytest.raises(UsageError, match=r"unknown colour 'grean' \(did you mean 'green'\?\); choices: red, green"):
        registry["grean"]
    assert list(registry) == ["red", "green"]
    assert len(registry) == 2


def test_a_config_holds_the_values_in_effect() -> None:
    for_genotype = AugmentConfig(genotype="DARTS_V2", cells=8)
    assert subset(for_genotype, CELL_DEFAULTS) == CELL_DEFAULTS | {"cells": 8}
    assert (for_genotype.num_channels, for_genotype.cells, for_genotype.auxiliary_weight) == (36, 8, 0.4)
    assert AugmentConfig(**for_genotype.as_dict()) == for_genotype
    for_model = AugmentConfig(model="mobilenext_1.0")
    assert subset(for_model, CELL_DEFAULTS) == dict.fromkeys(CELL_DEFAULTS)
    assert for_model.num_channels is None
    assert AugmentConfig(genotype="DARTS_V2", auxiliary_weight=0.0).auxiliary_weight == 0
