"""The table of the paper's experiment, from run folders made up here."""

from pathlib import Path

import pytest

from darts_sg.analysis.paper import paper_report
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype
from tests.analysis.runs import make_run, searched


def folder(root: Path, name: str, space: str, base: str, error: float | None = None, channels: int = 8) -> None:
    make_run(root / name, searched(base, space, channels=channels, cells=5), error)


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
    assert "13.00 ± 1.41 (cifar10 (noted; remarkable): C=16, 8 cells, 15 epochs of 4,000 images" in text
    assert "2 trained to the last epoch" in text
    assert "-2.8%" in text
    assert "does not hold in what was measured here: darts+sandglass has 2.8% fewer than darts, from 1 search" in text
    assert "- darts, seed 0: cifar10; noted, C=8, 5 cells" in text


def test_searches_of_another_scale_are_left_out(tmp_path: Path) -> None:
    folder(tmp_path, "a", "darts", "DARTS_V2")
    folder(tmp_path, "b", "darts+sandglass", "DARTS_V1")
    folder(tmp_path, "pilot", "darts+sandglass", "NASNet", channels=4)
    assert "| DARTS + sandglass | 2.98 | 2.45 | not measured | 3.17 (one search) | -5.4% |" in paper_report(tmp_path)


def test_what_was_not_searched_or_not_finished_is_no_measurement(tmp_path: Path) -> None:
    make_run(tmp_path / "published", load_genotype("DARTS_V2"))
    folder(tmp_path, "unfinished", "darts", "DARTS_V2", error=12.0)
    (tmp_path / "unfinished" / "result.json").unlink()
    assert "No search was found." in paper_report(tmp_path)
    with pytest.raises(UsageError, match="is no folder"):
        paper_report(tmp_path / "missing")
