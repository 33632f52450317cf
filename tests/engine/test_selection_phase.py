"""A search whose selection is a phase of the run: what it leaves, and that a kill in the phase changes nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from darts_sg.analysis.run_folder import read_metrics, read_run, read_search_epoch
from darts_sg.config import load_recipe
from darts_sg.engine.checkpoint import checkpoints, position
from darts_sg.engine.search import SearchJob
from darts_sg.genotype import load_genotype
from tests.test_command_line import assert_same, in_process, newest_state

pytestmark = pytest.mark.usefixtures("rendered_once")

COMMAND = [
    "search", "--recipe=darts-pt", "--dataset=synthetic", "--batch-size=8", "--train-images=8", "--epochs=1",
    "--validation-images=8", "--channels=4", "--cells=3", "--nodes=2", "--space=sep_conv_3x3+skip_connect+none",
    "--threads=1", "--kernels=pytorch",
]  # fmt: skip


def killed_at(method: str, number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the call of this number, from 0, of a method of the job fail; returns a list of the calls."""
    calls: list[int] = []
    kept: Callable[..., object] = getattr(SearchJob, method)

    def call(job: SearchJob, *given: object, **more: object) -> object:
        calls.append(len(calls))
        if len(calls) == number + 1:
            raise KeyboardInterrupt
        return kept(job, *given, **more)

    monkeypatch.setattr(SearchJob, method, call)
    return calls


def test_a_search_by_projection_decides_every_edge_and_a_kill_within_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_recipe("search", "darts-pt") == {"selection": "projection"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, out, err = in_process(capsys, *COMMAND, f"--run-dir={whole}")
    assert code == 0, err
    # 5 edges and a node with three inputs are 6 decisions on each cell, an epoch of tuning between them
    rows = read_metrics(whole / "metrics.csv")
    assert [row["decisions"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["learning_rate"] for row in rows] == [0.025] + 5 * [0.0025]
    genotype = load_genotype(whole / "genotype.yaml")
    made = genotype.provenance["decisions"]
    assert len(made) == 12
    assert genotype.provenance["epoch"] == "6 of 6"
    mixing = read_search_epoch(whole).weights
    for name, cell in genotype.cells():
        kept = {(sum(range(2, s)) + e.state, genotype.operations.index(e.operation)) for s, e in cell.edges()}
        assert kept == {tuple(place) for place in np.argwhere(mixing[name]).tolist()}
    assert out.count("decision 6/6, ") == 2
    assert "decision 6/6, reduce cell, inputs of node 1: kept " in (whole / "log.txt").read_text()
    assert (read_run(whole).planned, read_run(whole).finished) == (6, True)
    report = (whole / "report.md").read_text()
    assert "**Finished**: 6 epochs" in report
    assert report.count("| inputs of node 1 |") == 2

    # killed within the third decision: its first measurement, in a checkpoint already, is not repeated
    with monkeypatch.context() as patch:
        calls = killed_at("_measure", 9, patch)
        assert in_process(capsys, *COMMAND, f"--run-dir={killed}", "--checkpoint-minutes=1e-9")[0] == 130
        assert len(calls) == 10
    assert position(checkpoints(killed / "checkpoints")[-1]) == (2, 1)
    with monkeypatch.context() as patch:
        calls = killed_at("step", 1, patch)  # in the tuning after the fourth
        assert in_process(capsys, "search", "--resume", str(killed))[0] == 130
        assert len(calls) == 2
    with monkeypatch.context() as patch:
        calls = killed_at("_measure", 100, patch)
        assert in_process(capsys, "search", "--resume", str(killed))[0] == 0
        assert len(calls) == 10
    assert_same(newest_state(whole)["state"], newest_state(killed)["state"])
    assert load_genotype(killed / "genotype.yaml").normal == genotype.normal
    assert load_genotype(killed / "genotype.yaml").provenance["decisions"] == made


def test_a_dry_run_tells_how_long_the_phase_takes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, *COMMAND, "--selection=projection:images=4,tuning_epochs=2", "--dry-run")
    assert code == 0, err
    assert "selection projection:images=4,tuning_epochs=2: 6 decisions on each cell with 2 epochs between them" in out
    assert "26 measurements of the supernet on 8 images each, about 0:00:0" in out
    assert "whole run: 11 epochs of 1 steps" in out


def test_fixed_alphas_stay_equal(tmp_path: Path) -> None:
    from tests.engine.test_search_method import job_of

    job = job_of(selection="projection:blank=true")
    for epoch in (0, 5):  # of the supernet, and of the tuning
        means = job.step(epoch, 0).means
        assert "validation_loss" not in means
    assert all(not alpha.any() for alpha in job.alphas)
    assert job.mixing()["normal"] == pytest.approx(np.full((5, 3), 1 / 3))


def test_steps_see_the_decisions_and_their_edges_have_no_gradient() -> None:
    from tests.engine.test_search_method import job_of, mixings_of_a_step

    job = job_of(selection="projection:tuning_epochs=1", perturbation="random", relaxation="gumbel")
    for _ in job.after_steps(4):
        pass
    assert job.phase is not None
    edge = job.phase.subjects[0][0][1]  # type: ignore[attr-defined]
    kept = job.supernet.operations.index(job.phase.decisions()[0]["kept"])
    for mixing in mixings_of_a_step(job, epoch=5):
        assert mixing.normal[edge].tolist() == [float(i == kept) for i in range(3)]
    assert job.mixing()["normal"][edge].tolist() == [float(i == kept) for i in range(3)]
