"""A search whose selection is a phase of the run: what it leaves, and that a kill in the phase changes nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from darts_sg.analysis.run_folder import read_metrics, read_run, read_search_epoch
from darts_sg.config import load_recipe
from darts_sg.derive import Array, derive_cell
from darts_sg.engine import search
from darts_sg.engine.checkpoint import checkpoints, position
from darts_sg.engine.search import SearchJob
from darts_sg.genotype import Cell, load_genotype
from darts_sg.methods.selection import SELECTIONS, Selection, SelectionPhase, Setup, Trial
from darts_sg.methods.selection.projection import CELLS
from darts_sg.networks.supernet import Mixing
from tests.engine.test_search_method import job_of, mixings_of_a_step
from tests.test_command_line import assert_same, in_process, newest_state

pytestmark = pytest.mark.usefixtures("rendered_once")

COMMAND = [
    "search", "--recipe=darts-pt", "--dataset=synthetic", "--batch-size=8", "--train-images=8", "--epochs=1",
    "--validation-images=8", "--channels=4", "--cells=3", "--nodes=1", "--space=sep_conv_3x3+skip_connect+none",
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
    # two edges are two decisions on each cell, with an epoch of tuning between them
    rows = read_metrics(whole / "metrics.csv")
    assert [row["decisions"] for row in rows] == [2, 4]
    assert [row["learning_rate"] for row in rows] == [0.025, 0.0025]
    genotype = load_genotype(whole / "genotype.yaml")
    made = genotype.provenance["decisions"]
    assert [each["after_epoch"] for each in made] == [1, 1, 2, 2]
    assert genotype.provenance["epoch"] == "2 of 2"
    mixing = read_search_epoch(whole).weights
    for name, cell in genotype.cells():
        kept = {(sum(range(2, s)) + e.state, genotype.operations.index(e.operation)) for s, e in cell.edges()}
        assert kept == {tuple(place) for place in np.argwhere(mixing[name]).tolist()}
    assert out.count("decision 2/2, ") == 2
    assert "decision 2/2, reduce cell, c_{k-" in (whole / "log.txt").read_text()
    assert (read_run(whole).planned, read_run(whole).finished) == (2, True)
    report = (whole / "report.md").read_text()
    assert "**Finished**: 2 epochs" in report
    assert report.count("| reduce | c_{k-") == 2

    monkeypatch.setattr(search, "write_report", lambda folder: None)  # takes longer than the search
    # killed within the first decision: its first measurements, in a checkpoint already, are not repeated
    with monkeypatch.context() as patch:
        calls = killed_at("_measure", 2, patch)
        assert in_process(capsys, *COMMAND, f"--run-dir={killed}", "--checkpoint-minutes=1e-9")[0] == 130
        assert len(calls) == 3
    assert position(checkpoints(killed / "checkpoints")[-1]) == (0, 1)
    with monkeypatch.context() as patch:
        killed_at("step", 0, patch)  # in the tuning after it
        assert in_process(capsys, "search", "--resume", str(killed))[0] == 130
    with monkeypatch.context() as patch:
        calls = killed_at("_measure", 100, patch)
        assert in_process(capsys, "search", "--resume", str(killed))[0] == 0
        assert len(calls) == 4
    assert_same(newest_state(whole)["state"], newest_state(killed)["state"])
    assert load_genotype(killed / "genotype.yaml").normal == genotype.normal
    assert load_genotype(killed / "genotype.yaml").provenance["decisions"] == made


def test_a_dry_run_tells_how_long_the_phase_takes() -> None:
    job = job_of(selection="projection:images=4,tuning_epochs=2")
    assert job.num_epochs == 5 + 2 * 5
    [told] = [fact for fact in job.facts() if fact.startswith("selection ")]
    assert "projection:images=4,tuning_epochs=2: 6 decisions on each cell with 2 epochs between them" in told
    assert "26 measurements of the supernet on 8 images each, about 0:00:0" in told


class LossPhase(SelectionPhase):
    """A phase from outside: after one epoch of tuning it keeps all, or only the first edges, whichever is better."""

    epochs, learning_rate = 1, 0.01

    def __init__(self) -> None:
        self.losses: list[float] = []

    def mixing(self, mixing: Mixing) -> Mixing:
        return mixing

    def next_trial(self, due: int) -> Trial | None:
        number = len(self.losses)
        if due < 1 or number == 2:
            return None
        return Trial(0, number, 2, lambda mixing: mixing._replace(normal=mixing.normal * (1 - number)))

    def note(self, trial: Trial, measures: Mapping[str, float], score: str) -> list[str]:
        self.losses.append(measures["loss"])
        return [f"measured {trial.number}"]

    def cells(self, mixing: Mapping[str, Array]) -> tuple[Cell, Cell]:
        normal, reduce = (derive_cell(mixing[name], ("sep_conv_3x3", "skip_connect", "none")) for name in CELLS)
        return normal, reduce

    def state_dict(self) -> dict[str, object]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.losses = list(state["losses"])  # type: ignore[call-overload]


@dataclass(frozen=True)
class LossSelection(Selection):
    """The selection of LossPhase."""

    has_phase = True

    def phase(self, setup: Setup) -> LossPhase:
        return LossPhase()


def test_another_phase_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SELECTIONS._entries, "loss", LossSelection)
    job = job_of(selection="loss")
    assert job.num_epochs == 5 + 1
    assert job.learning_rate(5) == 0.01
    assert not list(job.after_steps(4))
    pieces = list(job.after_steps(5))
    assert [(piece.done, piece.total, piece.lines) for piece in pieces] == [
        (1, 2, ("measured 0",)), (2, 2, ("measured 1",)),
    ]  # fmt: skip
    assert isinstance(job.phase, LossPhase)
    assert job.phase.losses[0] != job.phase.losses[1]
    resumed = job_of(selection="loss")
    resumed.load_state_dict(job.state_dict())
    assert not list(resumed.after_steps(5))
    assert any(
        "selection loss: epochs: 1, measurements of the supernet: 0" in fact
        for fact in job_of(selection="loss").facts()
    )


def test_fixed_alphas_stay_equal() -> None:
    job = job_of(selection="projection:blank=true")
    for epoch in (0, 5):  # of the supernet, and of the tuning
        means = job.step(epoch, 0).means
        assert "validation_loss" not in means
    assert all(not alpha.any() for alpha in job.alphas)
    assert job.mixing()["normal"] == pytest.approx(np.full((5, 3), 1 / 3))


def test_steps_see_the_decisions_and_their_edges_have_no_gradient() -> None:
    job = job_of(selection="projection:tuning_epochs=1", perturbation="random", relaxation="gumbel")
    for _ in job.after_steps(4):
        pass
    assert job.phase is not None
    edge = job.phase.subjects[0][0][1]  # type: ignore[attr-defined]
    kept = job.supernet.operations.index(job.phase.decisions()[0]["kept"])
    for mixing in mixings_of_a_step(job, epoch=5):
        assert mixing.normal[edge].tolist() == [float(i == kept) for i in range(3)]
    assert job.mixing()["normal"][edge].tolist() == [float(i == kept) for i in range(3)]
