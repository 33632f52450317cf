"""A search that ends early: what it leaves, and that a kill at any moment changes nothing of it."""

import math
from pathlib import Path
from typing import Any

import pytest

from darts_sg.analysis.deriving import derive_genotype
from darts_sg.analysis.run_folder import read_metrics, read_run
from darts_sg.engine.search import SearchJob
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype
from darts_sg.methods import early_stopping
from tests.engine.test_search_step import search_config, setting
from tests.test_command_line import assert_same, in_process, newest_state

pytestmark = pytest.mark.usefixtures("rendered_once")

SMALL = {
    "dataset": "synthetic", "batch-size": 8, "train-images": 16, "validation-images": 16, "epochs": 7, "threads": 1,
    "channels": 4, "cells": 3, "nodes": 1, "space": "sep_conv_3x3+skip_connect", "eigenvalue-every": 1,
    "stop-eigenvalue": 0.999,
}  # fmt: skip
COMMAND = ["search", *(f"--{name}={value}" for name, value in SMALL.items())]


class Kill(KeyboardInterrupt):
    """As if the process were killed here."""


def test_it_returns_an_earlier_genotype_also_when_it_is_killed_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("EARLIEST", 1), ("BACK", 2), ("WINDOW", 3)):
        monkeypatch.setattr(early_stopping, name, value)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, out, err = in_process(capsys, *COMMAND, "--run-dir", str(whole))
    assert code == 0, err
    assert ", eigenvalue 0.0" in out
    assert ", skips normal " in out

    rows = read_metrics(whole / "metrics.csv")
    genotype = load_genotype(whole / "genotype.yaml")
    stopped = genotype.provenance["stopped_early"]
    after, chosen = stopped["after_epoch"], stopped["chosen_epoch"]
    assert (after, chosen) == (len(rows), len(rows) - 3)
    assert 4 <= after < 7
    assert all(row["eigenvalue"] > 0 for row in rows)
    assert genotype == load_genotype(whole / "genotypes" / f"epoch_{chosen:04}.yaml")
    assert genotype.provenance["epoch"] == f"{chosen} of 7"
    assert genotype.provenance["measured"]["after_epoch"] == after
    assert (derive_genotype(whole).normal, derive_genotype(whole).reduce) == (genotype.normal, genotype.reduce)
    assert read_run(whole).finished
    report = (whole / "report.md").read_text()
    assert f"**Stopped early**: {after} of 7 epochs" in report
    assert f"because {stopped['reason']}. The genotype is that of epoch {chosen}." in report
    assert f"Stopped early, with the genotype of epoch {chosen}." in (whole / "search.html").read_text()
    assert "Dominant eigenvalue" in (whole / "search.html").read_text()

    step, evaluate = SearchJob.step, SearchJob.evaluate
    steps = []

    def killed_step(job: SearchJob, epoch: int, number: int) -> Any:
        steps.append((epoch, number))
        if (epoch, number) == (2, 1) and steps.count((2, 1)) == 1:
            raise Kill
        return step(job, epoch, number)

    def killed_evaluation(job: SearchJob) -> Any:
        monkeypatch.setattr(SearchJob, "evaluate", evaluate)
        raise Kill

    monkeypatch.setattr("darts_sg.engine.search.write_report", lambda folder: folder)  # has been looked at
    monkeypatch.setattr(SearchJob, "step", killed_step)
    monkeypatch.setattr(SearchJob, "evaluate", killed_evaluation)
    assert in_process(capsys, *COMMAND, "--run-dir", str(killed))[0] == 130
    assert in_process(capsys, "search", "--resume", str(killed))[0] == 130
    assert steps[-1] == (after - 1, 1)
    steps.clear()
    code, out, err = in_process(capsys, "search", "--resume", str(killed))
    assert code == 0, err
    assert not steps
    assert f"stopped after epoch {after} of 7: {stopped['reason']}; the genotype is that of epoch {chosen}" in out
    assert_same(newest_state(whole)["state"], newest_state(killed)["state"])
    assert_same(newest_state(whole)["rows"], newest_state(killed)["rows"])
    again = load_genotype(killed / "genotype.yaml")
    assert again == genotype
    assert again.provenance["stopped_early"] == stopped


def test_either_option_ends_a_search_and_none_does_not() -> None:
    rows = [{"epoch": float(e), "skips_normal": e, "eigenvalue": 1.0 if e < 25 else 2.0} for e in range(1, 31)]
    by_eigenvalue = {"stop_eigenvalue": 0.75, "eigenvalue_every": 1}
    found = [
        SearchJob(search_config(epochs=50, **options), setting()).early_stop(rows)
        for options in ({}, {"stop_skips": 3}, by_eigenvalue, {"stop_skips": 3, "alpha_frozen_epochs": 3})
    ]
    assert [stop and stop[:2] for stop in found] == [None, (30, 3), (30, 23), None]


def test_the_eigenvalue_is_measured_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Folder:
        path = tmp_path

        def write(self, name: str, content: object) -> None: ...

    monkeypatch.setattr(SearchJob, "eigenvalue", lambda job: 0.5)
    monkeypatch.setattr("darts_sg.engine.setup.Setting.code", lambda where: {})
    found: dict[int, list[float]] = {}
    for every in (0, 2):
        job = SearchJob(search_config(eigenvalue_every=every, alpha_frozen_epochs=2), setting())
        rows = [job.end_epoch(epoch, {}, Folder()) for epoch in range(5)]  # type: ignore[arg-type]
        found[every] = [row["eigenvalue"] for row in rows if "eigenvalue" in row]
    assert found[0] == []
    assert [None if math.isnan(value) else value for value in found[2]] == [None, None, None, 0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"stop_eigenvalue": 0.75},
            "--stop-eigenvalue 0.75 needs the eigenvalue of every epoch: add --eigenvalue-every",
        ),
        ({"stop_eigenvalue": 0.75, "eigenvalue_every": 2}, "needs the eigenvalue of every epoch"),
        ({"stop_eigenvalue": 1.3, "eigenvalue_every": 1}, "--stop-eigenvalue must be between 0 and 1, such as 0.75"),
        ({"stop_skips": -1}, "--stop-skips must be at least 0, found -1"),
        ({"eigenvalue_every": -1}, "--eigenvalue-every must be at least 0, found -1"),
    ],
)
def test_options_that_cannot_be_are_answered(options: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        search_config(**options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
