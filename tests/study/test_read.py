"""Searches, genotypes and retrainings of a study, read from made-up run folders."""

from pathlib import Path
from typing import Any

import pytest

from darts_sg.analysis.cost import derived_cost, derived_counts
from darts_sg.analysis.deriving import derive_genotype
from darts_sg.analysis.measured import same_cells
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell, Edge, Genotype, load_genotype, renamed
from darts_sg.study.protocol import load_protocol
from darts_sg.study.read import read_experiment as read
from darts_sg.study.records import Experiment
from tests.analysis.runs import make_run, searched
from tests.study.runs import FULL, SMALL, random_like, search_runs, search_with_weights, training_runs

PROTOCOL = load_protocol("sandglass")
COLLAPSED = 3
"""Epochs after which the made-up search has too many skip connections."""


def read_experiment(folder: Path) -> Experiment:
    return read(folder, PROTOCOL)


def test_counts_of_many_are_those_of_each() -> None:
    nodes = ((Edge("skip_connect", 0), Edge("skip_connect", 1)), (Edge("sep_conv_3x3", 0), Edge("skip_connect", 2)))
    loose = Genotype("loose", "", ("skip_connect", "sep_conv_3x3"), Cell(nodes, (3,)), Cell(nodes, (2, 3)))
    found = derived_counts([load_genotype("DARTS_V1"), load_genotype("DARTS_V2"), loose])
    one = derived_cost(loose)  # whose normal cell joins not all of its nodes
    assert found == [(3_169_414, 500_987_520), (3_349_342, 528_359_040), (one.params, one.macs)]
    assert derived_counts([load_genotype("DARTS_V2")], "imagenet") == [(4_718_752, 529_911_552)]


def test_searches_are_named_by_the_accuracy_of_their_supernets(tmp_path: Path) -> None:
    search_runs(tmp_path)
    found = read_experiment(tmp_path)
    assert [(search.space, search.seed, search.name) for search in found.searches] == [
        ("darts", 0, "DARTS_OURS"),
        ("darts", 1, None),
        ("darts+ir", 0, "IR_DARTS"),  # the only one
        ("darts+sandglass", 0, None),
        ("darts+sandglass", 1, "SG_DARTS"),
    ]
    assert found.params("darts+sandglass") == [derived_cost(load_genotype("GDAS_V1")).params, 3_169_414]
    assert not found.full_searches
    make_run(tmp_path / "more", searched("DrNAS_cifar10", "darts", 2, None, channels=8, cells=5, epochs=25))
    names = {search.name for search in read_experiment(tmp_path).of("darts")}
    assert names == {None}  # an accuracy is missing, so there is no highest


def test_searches_of_other_scales_and_options_are_left_out(tmp_path: Path) -> None:
    search_runs(tmp_path / "small")
    make_run(tmp_path / "pilot", searched("NASNet", "darts", channels=32, cells=8, epochs=50))
    make_run(tmp_path / "steered", searched("NASNet", "darts", channels=8, cells=5, epochs=25, target_params="2M"))
    make_run(tmp_path / "foreign", searched("NASNet", "darts+skip_connect", channels=8, cells=5, epochs=25))
    found = read_experiment(tmp_path)
    assert (len(found.searches), found.left_out) == (5, 2)
    search_runs(tmp_path / "full", 25_000, **FULL)
    found = read_experiment(tmp_path)
    assert (len(found.searches), found.left_out, found.full_searches) == (5, 7, True)


@pytest.mark.parametrize("option", [{"momentum": 0.5}, {"precision": "bfloat16"}, {"alpha_weight_decay": 0.0}])
def test_searches_are_of_one_set_of_options(option: dict[str, Any], tmp_path: Path) -> None:
    search_runs(tmp_path / "small")
    made = searched("NASNet", "darts", 7, 99.0, **(SMALL | option))
    make_run(tmp_path / "other", made, seed=7)
    found = read_experiment(tmp_path)
    assert (len(found.searches), found.left_out) == (5, 1)


def test_trainings_are_known_by_their_cells(tmp_path: Path) -> None:
    search_runs(tmp_path)
    training_runs(tmp_path / "retrain")
    found = read_experiment(tmp_path)
    (setting,) = found.settings
    assert [(row.titles, row.group, dict(row.errors)) for row in setting.rows] == [
        (("SG_DARTS", "DARTS_V1"), "darts+sandglass", {0: 12.0, 1: 11.0, 2: 12.5}),
        (("darts+sandglass, search seed 0",), "darts+sandglass", {0: 12.2}),
        (("DARTS_OURS",), "darts", {0: 12.4, 1: 11.8, 2: 12.6}),
        (("IR_DARTS",), "darts+ir", {0: 13.0}),
        (("DARTS_V2",), "published", {1: 11.5, 2: 12.1}),
        (("random_darts_0",), "random darts", {0: 14.0}),
        (("random_darts_1",), "random darts", {0: 16.0}),
    ]
    row = setting.find("DARTS_V1")
    assert row is not None
    assert (row.full_params, row.params) == (3_169_414, 246_106)
    assert found.remarks == ()


def test_settings_of_one_scale_are_told_apart(tmp_path: Path) -> None:
    for folder, options in (("a", {}), ("b", {"sync_batchnorm": True}), ("c", {"channels": 8})):
        for seed in range(2):
            base = renamed(load_genotype("DARTS_V2"), "DARTS_V2")
            make_run(tmp_path / f"{folder}{seed}", base, 9.0 + seed, seed=seed, **options)
    settings = read_experiment(tmp_path).settings
    assert sorted(setting.scale.partition("drop path 0.2")[2] for setting in settings) == [
        "", ", sync_batchnorm false", ", sync_batchnorm true"
    ]  # fmt: skip


def test_without_searches_names_are_believed(tmp_path: Path) -> None:
    training_runs(tmp_path)
    make_run(tmp_path / "steered", renamed(load_genotype("GDAS_V1"), "SG_DARTS_2.45M"), 12.9, seed=1)
    (setting,) = read_experiment(tmp_path).settings
    steered = setting.find("SG_DARTS_2.45M")
    assert setting.find("DARTS_OURS") is not None
    assert steered is not None
    assert steered.group == "darts+sandglass"


def test_what_is_not_what_it_is_called_is_remarked(tmp_path: Path) -> None:
    search_runs(tmp_path)
    training_runs(tmp_path / "retrain")
    make_run(tmp_path / "wrong", renamed(load_genotype("PC_DARTS_cifar"), "SG_DARTS"), 1.0, seed=0)
    make_run(tmp_path / "again", renamed(load_genotype("PDARTS"), "DARTS_OURS"), 99.0, seed=0)
    found = read_experiment(tmp_path)
    wrong, again = sorted(found.remarks, key=lambda remark: "again" in remark)
    assert wrong.endswith("wrong: what it calls SG_DARTS has other cells than SG_DARTS.")
    assert "DARTS_OURS_s0 is left out" in again
    assert "again is of the same setting and seed" in again
    assert found.settings[0].find("SG_DARTS").errors[0] == 12.0  # type: ignore[union-attr]


def test_settings_are_apart_and_the_one_with_the_pair_comes_first(tmp_path: Path) -> None:
    search_runs(tmp_path)
    training_runs(tmp_path / "retrain")
    v2 = load_genotype("DARTS_V2")
    full = {"channels": 36, "cells": 20, "epochs": 600, "images": 50_000}
    make_run(tmp_path / "v2", v2, 2.8, **full)
    make_run(tmp_path / "tuned", v2, 1.0, finetune="weights.safetensors")
    make_run(tmp_path / "elsewhere", load_genotype("NASNet"), 1.0, learning_rate=0.3)  # nothing of the experiment
    make_run(tmp_path / "imagenet", v2, 1.0, network="imagenet")
    small, large = read_experiment(tmp_path).settings
    assert (len(small.rows), small.full, len(large.rows), large.full) == (7, False, 1, True)
    training_runs(tmp_path / "full", **full)
    assert [setting.full for setting in read_experiment(tmp_path).settings] == [True, False]


def test_steered_genotypes_come_from_the_mixing_weights(tmp_path: Path) -> None:
    plain = search_with_weights(tmp_path / "search", epochs=COLLAPSED)
    (search,) = read_experiment(tmp_path).searches
    assert plain.count("skip_connect")[0] > 2
    assert search.collapsed
    steered, few = search.of("steered"), search.of("few skips")
    assert steered is not None
    assert few is not None
    assert same_cells(steered.genotype, derive_genotype(tmp_path / "search", max_params=2_450_000))
    assert steered.params == derived_cost(steered.genotype).params <= 2_450_000
    assert few.genotype.count("skip_connect")[0] == 2
    make_run(tmp_path / "retrain" / "a", derive_genotype(tmp_path / "search", max_params=2_450_000), 20.0)
    make_run(tmp_path / "retrain" / "b", renamed(few.genotype, "mine"), 21.0)
    titles = {row.titles[-1] for row in read_experiment(tmp_path).settings[0].rows}
    assert titles == {"SG_DARTS_2.45M", "SG_DARTS, at most 2 skips"}
    last = sorted((tmp_path / "search" / "alphas").glob("*.npz"))[-1]
    last.unlink()
    assert [found.kind for found in read_experiment(tmp_path).searches[0].found] == ["plain"]


def test_nothing_measured(tmp_path: Path) -> None:
    make_run(tmp_path / "random", random_like("GDAS_V1", "darts+skip_connect", 0), 3.0)
    found = read_experiment(tmp_path)
    assert (found.searches, found.settings, found.full) == ((), (), False)
    assert found.judgement("plain").word == found.judgement("steered").word == "open"
    with pytest.raises(UsageError, match="is no folder"):
        read_experiment(tmp_path / "missing")
