"""The table of the paper's experiment, from run folders made up here."""

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from darts_sg.analysis.paper import paper_report
from darts_sg.errors import UsageError
from darts_sg.genotype import Genotype, load_genotype


def folder(root: Path, name: str, space: str, base: str, error: float | None = None, channels: int = 8) -> None:
    genotype: Genotype = load_genotype(base)
    provenance = {
        "kind": "searched",
        "seed": 0,
        "data": "cifar10; noted",
        "options": {"channels": channels, "cells": 5},
    }
    (root / name).mkdir()
    replace(genotype, space=space, provenance=MappingProxyType(provenance)).save(root / name / "genotype.yaml")
    if error is not None:
        result = {"test_error_last": error, "channels": 16, "cells": 8, "epochs": 15, "dataset": "cifar10"}
        (root / name / "result.json").write_text(json.dumps(result))


def test_rows_without_a_measurement_say_so(tmp_path: Path) -> None:
    folder(tmp_path, "a", "darts", "DARTS_V2")
    text = paper_report(tmp_path)
    assert "| DARTS | 3.11 | 3.25 | not measured | 3.35 (one search) |  |" in text
    assert "| DARTS + sandglass | 2.98 | 2.45 | not measured | not measured | not measured |" in text
    assert "was not measured: that takes searches of both spaces" in text


def test_measured_columns_give_spread_scale_and_the_claim(tmp_path: Path) -> None:
    folder(tmp_path, "a", "darts", "DARTS_V2")
    folder(tmp_path, "b", "darts", "DARTS_V1")
    folder(tmp_path, "c", "darts+sandglass", "DARTS_V1")
    folder(tmp_path, "d", "darts+sandglass", "DARTS_V1", error=12.0)
    folder(tmp_path, "e", "darts+sandglass", "DARTS_V1", error=14.0)
    text = paper_report(tmp_path)
    assert "3.26 ± 0.13 (2 searches)" in text
    assert "13.00 ± 1.41 (2 trained, C=16, 8 cells, 15 epochs, cifar10)" in text
    assert "-2.8%" in text
    assert "does not hold in what was measured here: darts+sandglass has 2.8% fewer than darts, from 1 search" in text
    assert "- darts, seed 0: cifar10; noted, C=8, 5 cells" in text


def test_searches_of_another_scale_are_left_out(tmp_path: Path) -> None:
    folder(tmp_path, "a", "darts", "DARTS_V2")
    folder(tmp_path, "b", "darts+sandglass", "DARTS_V1")
    folder(tmp_path, "pilot", "darts+sandglass", "NASNet", channels=4)
    assert "| DARTS + sandglass | 2.98 | 2.45 | not measured | 3.17 (one search) | -5.4% |" in paper_report(tmp_path)


def test_a_genotype_that_was_not_searched_is_no_measurement(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    load_genotype("DARTS_V2").save(tmp_path / "a" / "genotype.yaml")
    assert "No search was found." in paper_report(tmp_path)
    with pytest.raises(UsageError, match="is no folder"):
        paper_report(tmp_path / "missing")
