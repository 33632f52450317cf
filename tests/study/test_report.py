"""The report of a study, from made-up run folders; its figures are checked by hand or by scipy."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from darts_sg.analysis.cost import derived_cost
from darts_sg.cli.main import run
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype
from darts_sg.study.protocol import load_protocol
from darts_sg.study.read import read_experiment
from darts_sg.study.report import study_report
from tests.analysis.runs import make_run, searched
from tests.study.runs import ERRORS, FULL, search_runs, search_with_weights, training_runs

RESULTS = Path(__file__).parent.parent.parent / "results"
SETTING = "cifar10 (noted; remarkable): C=16, 8 cells, 15 epochs of 4,000 images, cutout 0, drop path 0.2"


def paper_report(results: Path) -> str:
    return study_report(read_experiment(results, load_protocol("sandglass")))


@pytest.fixture
def text(tmp_path: Path) -> str:
    search_runs(tmp_path)
    training_runs(tmp_path / "retrain")
    return paper_report(tmp_path)


def test_the_committed_report_is_what_is_printed_today() -> None:
    committed = (RESULTS / "sandglass" / "pilot" / "report.md").read_text(encoding="utf-8")
    found = read_experiment(RESULTS, load_protocol("sandglass"))
    assert study_report(found, "report.svg") == committed


def test_published_and_measured_have_columns_of_their_own(text: str) -> None:
    # PDARTS 3,433,798 and PC_DARTS_cifar 3,634,678 parameters: mean 3.534M, deviation 0.142M
    assert (
        f"| DARTS | 3.11 | 3.25 | 12.27 ± 0.42: DARTS_OURS; seeds 0, 1, 2; {SETTING} | 3.53 ± 0.14 (2 searches) |  |"
        in text
    )
    assert "| DARTS + sandglass | 2.98 | 2.45 | 11.83 ± 0.76: SG_DARTS; seeds 0, 1, 2; " in text


def test_searches(text: str) -> None:
    assert "cifar10; noted, C=8, 5 cells, 2,000 images for the weights and 2,000 for the alphas, 25 epochs" in text
    row = next(line for line in text.splitlines() if line.startswith("| darts+sandglass | 1 | plain"))
    cost = derived_cost(load_genotype("DARTS_V1"), "imagenet")
    assert row == (
        "| darts+sandglass | 1 | plain: SG_DARTS | 61.00 | 3 (collapsed) | normal 0; reduce 0 | 3,169,414 | 501.0 | "
        f"{cost.params:,} | {cost.macs / 1e6:.1f} |"
    )
    assert "| darts | plain | 2 | 59.00 ± 1.41 | 3.53 ± 0.14 | " in text
    assert "- SG_DARTS is that of seed 1: the highest accuracy of the supernet, 61.00%." in text
    assert "- IR_DARTS is that of seed 0: the only search, not measured." in text
    assert "steered not measured, its folder has no mixing weights of the last epoch" in text


def test_retrainings(text: str) -> None:
    assert f"{SETTING}; a machine, 2 threads. Not the full scale of the protocol." in text
    assert "| SG_DARTS = DARTS_V1 | 0: 12.00, 1: 11.00, 2: 12.50 | 11.83 | 0.76 | 246,106 | 3,169,414 |" in text
    assert "| DARTS_V2 | 1: 11.50, 2: 12.10 | 11.80 | 0.42 | 246,106 | 3,349,342 |" in text
    assert "| IR_DARTS | 0: 13.00 | 13.00 | one training | " in text
    assert "| 2 random genotypes of darts | 14.00, 16.00 | 15.00 | 1.41 over genotypes | 0.246 ± 0.000M | " in text


def test_paired_comparisons(text: str) -> None:
    ours, theirs = ERRORS["SG_DARTS"][1], ERRORS["DARTS_OURS"][1]
    low, high = stats.ttest_rel([*ours.values()], [*theirs.values()]).confidence_interval(0.95)
    by_seed = "0: -0.40, 1: -0.80, 2: -0.10"
    assert f"| SG_DARTS − DARTS_OURS | 3 | {by_seed} | -0.43 | {low:+.2f} to {high:+.2f} |" in text
    low, high = stats.ttest_rel([11.0, 12.5], [11.5, 12.1]).confidence_interval(0.95)  # the seeds that both have
    assert f"| SG_DARTS − DARTS_V2 | 2 | 1: -0.50, 2: +0.40 | -0.05 | {low:+.2f} to {high:+.2f} |" in text
    assert "| SG_DARTS − IR_DARTS | 1 | 0: -1.00 | -1.00 | none: one pair alone gives no interval |" in text
    assert "| SG_DARTS_2.45M − DARTS_OURS_2.45M | 0 | not measured | not measured | not measured |" in text


def test_spreads_are_apart(text: str) -> None:
    rows = text.partition("## Spread of the searches, spread of the trainings")[2].partition("## Verdict")[0]
    assert "| darts | 0.14 (2) | 1.41 (2) | not measured | 1.41 (2) | 0.42 (3) |" in rows
    # at seed 0 the plain genotypes of both searches were trained: 12.0 and 12.2
    assert "| 0.14 (2) | not measured | 0.76 (3) |" in rows


def test_the_verdict(text: str) -> None:
    verdict = text.partition("## Verdict")[2]
    assert (
        "**The claim does not hold** in what was measured here. This is small scale, and small scale cannot" in verdict
    )
    assert "DARTS_V2 and than our plain genotypes of darts: **not met**. 2 genotypes of darts+sandglass: " in verdict
    assert "which does not exclude being worse by 0.3 or more" in verdict
    assert "1. At least 25% fewer" in verdict
    assert "**undecided**. No genotype of darts+sandglass was measured." in verdict  # of the steered
    assert "SG_DARTS has no sandglass operation: what is said here is said of the space, not of the block." in verdict


def test_the_claim_can_hold_at_full_scale_only(tmp_path: Path) -> None:
    large = load_genotype("DARTS_V2")
    small = replace(large, normal=large.reduce)  # poolings and skips only
    for scale, images, options in (("small", 2_000, {**FULL, "epochs": 5}), ("full", 25_000, FULL)):
        root = tmp_path / scale
        for space, cells in (("darts", large), ("darts+sandglass", small)):
            found = searched(cells, space, 0, 50.0, images, **options)
            make_run(root / space, found)
            shape = {"channels": 36, "cells": 20, "epochs": 600, "images": 50_000}
            for seed in range(3):
                error = 3.0 + seed / 10 - 0.01 * (seed + 1) * (space != "darts")
                make_run(root / f"{space}_{seed}", found, error, seed=seed, **shape)
    at_small, at_full = (paper_report(tmp_path / scale) for scale in ("small", "full"))
    assert "**The claim holds** in what was measured here. This is small scale, and small scale cannot conf" in at_small
    assert "**The claim holds** in what was measured here. One search of a space decides little." in at_full
    assert "small scale cannot confirm" not in at_full


def test_what_is_missing_is_not_measured(tmp_path: Path) -> None:
    text = paper_report(tmp_path)
    assert "| DARTS | 3.11 | 3.25 | not measured | not measured |  |" in text
    assert "| DARTS + sandglass | 2.98 | 2.45 | not measured | not measured | not measured |" in text
    assert "No search was found: not measured." in text
    assert "Not measured: no genotype of the experiment was trained." in text
    assert "Not measured: no seed has both genotypes of a comparison." in text
    assert "**The claim is open** in what was measured here. This is small scale" in text


def test_the_command_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, output = tmp_path / "results", tmp_path / "written" / "report.md"
    search_runs(results)
    paper = ["report", "paper", "--results", str(results)]
    run([*paper, "-o", str(output)])
    assert capsys.readouterr().out == f"{output}\n"
    assert "![" not in output.read_text()  # nothing to draw yet
    with pytest.raises(UsageError, match="nothing to draw yet"):
        run([*paper, "-o", str(tmp_path / "picture.svg")])
    training_runs(results / "retrain")
    search_with_weights(results / "weights", 2)
    run([*paper, "-o", str(output)])  # over its own report
    capsys.readouterr()
    assert output.read_text().count("](report.svg)") == 1
    assert output.with_suffix(".svg").read_text().startswith("<?xml")
    run([*paper, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"]["word"] == "does not hold"
    assert found["published"][2]["params"] == 2.45
    assert {len(found["searches"]), len(found["retrainings"][0]["genotypes"])} == {6, 7}
    output.write_text("mine")
    with pytest.raises(UsageError, match="is no such report"):
        run([*paper, "-o", str(output)])
    with pytest.raises(UsageError, match=r"ends in \.md, \.svg"):
        run([*paper, "-o", str(tmp_path / "report.txt")])
    with pytest.raises(UsageError, match=r"--json is for studies \(`report paper`\)"):
        run(["report", str(results / "search_darts_s0"), "--json"])
