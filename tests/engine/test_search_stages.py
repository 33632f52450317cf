"""Searches of several stages: what crosses a boundary, what a run leaves, and that kills change nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from darts_sg.analysis.run_folder import read_metrics, read_search_epoch, read_search_epochs
from darts_sg.backends import backend_of
from darts_sg.engine import search, search_stages
from darts_sg.engine.search import SearchJob
from darts_sg.engine.search_stages import enter_stage_of, epoch_times
from darts_sg.engine.steps import cosine_learning_rate
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS
from darts_sg.methods.skip_dropout import SkipDropout
from darts_sg.networks.supernet import MixedOp
from tests.engine.test_search_method import job_of
from tests.test_command_line import assert_same, in_process, newest_state

pytestmark = pytest.mark.usefixtures("rendered_once")

SPACE = "none+skip_connect+sep_conv_3x3+max_pool_3x3"
DRNAS = {
    "stages": "drnas-progressive:partial_channels=2/2", "relaxation": "dirichlet", "epochs": 4, "nodes": 1,
    "space": SPACE, "channels": 4,
}  # fmt: skip


def test_kept_weights_momentum_and_alphas_cross_the_boundary_by_name() -> None:
    job = job_of(**DRNAS)
    for step in range(2):
        job.step(0, step)
    assert backend_of(job.supernet) == "batched"
    before = {name: tensor.clone() for name, tensor in job.supernet.state_dict().items()}
    momenta = {id(w): job.weight_optimizer.state[w]["momentum_buffer"].clone() for w in job.weights}
    old_net, old_weights, mixing = job.supernet, job.weights, job.mixing()
    alpha_state = {
        name: job.alpha_optimizer.state[job.alphas[0]][name].clone() for name in ("step", "exp_avg", "exp_avg_sq")
    }
    random = torch.get_rng_state()
    enter_stage_of(job, 2)
    assert torch.equal(torch.get_rng_state(), random)
    assert (job.stage_number, backend_of(job.supernet)) == (1, "eager")
    assert job.allowed is not None
    for title, allowed in zip(("normal", "reduce"), job.allowed, strict=True):
        assert allowed.sum(axis=1).tolist() == [3, 3]
        for row, kept in zip(mixing[title], allowed, strict=True):
            assert row[kept].min() >= row[~kept].max()

    def momentum_state() -> dict[str, torch.Tensor]:
        """The old supernet's state with momentum in the place of weights."""
        with torch.no_grad():
            for weight in old_weights:
                weight.copy_(momenta[id(weight)])
        return old_net.state_dict()

    names = {parameter: name for name, parameter in job.supernet.named_parameters()}
    of_momenta = momentum_state()
    # what an operation is called depends on how many the edge has
    renamed = {}
    for c, cell in enumerate(job.supernet.cells):
        for e, edge in enumerate(cell.edges):
            assert isinstance(edge, MixedOp)
            for place, column in enumerate(edge.columns):
                renamed[f"cells.{c}.edges.{e}.ops.{place}."] = f"cells.{c}.edges.{e}.ops.{column - 1}."
    for weight in job.weights:
        name = names[weight]
        head = next((head for head in renamed if name.startswith(head)), None)
        old = name if head is None else renamed[head] + name.removeprefix(head)
        assert torch.equal(weight, before[old]), name
        assert torch.equal(job.weight_optimizer.state[weight]["momentum_buffer"], of_momenta[old]), name
    kept = torch.from_numpy(job.allowed[0])
    for mine, expected in (
        (job.alphas[0], before["alpha_normal"] * kept),
        (job.alpha_optimizer.state[job.alphas[0]]["exp_avg"], alpha_state["exp_avg"] * kept),
        (job.alpha_optimizer.state[job.alphas[0]]["exp_avg_sq"], alpha_state["exp_avg_sq"] * kept),
        (job.alpha_optimizer.state[job.alphas[0]]["step"], alpha_state["step"]),
    ):
        assert torch.equal(mine, expected)


def test_one_schedule_runs_over_kept_weights_and_a_new_one_over_fresh_ones() -> None:
    kept, fresh = job_of(**DRNAS), job_of(stages="p-darts", epochs=6, nodes=1, space=SPACE, cells=4)
    rates = [cosine_learning_rate(kept.config, epoch) for epoch in range(4)]
    assert [kept.learning_rate(epoch) for epoch in range(4)] == rates
    assert [fresh.learning_rate(epoch) for epoch in range(6)] == [
        cosine_learning_rate(fresh.config, e, 2) for e in (0, 1) * 3
    ]
    kept.step(2, 0)
    assert kept.progress.item() == 0.5
    fresh.step(2, 1)
    assert fresh.progress.item() == pytest.approx(1 / (2 * fresh.steps_per_epoch))
    assert fresh.skip_dropout.item() == pytest.approx(0.4)
    assert any(isinstance(module, SkipDropout) for module in fresh.supernet.modules())


def test_fresh_stages_depend_on_the_seed_alone_and_are_frozen_in_turn() -> None:
    options = {"stages": "p-darts:frozen=0.5", "epochs": 6, "nodes": 1, "space": SPACE, "cells": 3}
    states = []
    for draws in (0, 3):
        job = job_of(**options)
        torch.rand(draws)
        job.allowed = None
        enter_stage_of(job, 2)
        states.append(job.state_dict())
    assert_same(*states)
    learned = []
    for epoch in (2, 3):
        before = job.alphas[0].detach().clone()
        job.step(epoch, 0)
        learned.append(not torch.equal(job.alphas[0], before))
    assert learned == [False, True]
    assert job.alpha_steps(6) == 3 * job.steps_per_epoch


def test_each_stage_can_be_tried_and_leaves_the_job_as_it_was() -> None:
    """What the check of the memory sees: deeper supernets with fewer operations."""
    job = job_of(stages="p-darts:cells=3/4/5", cells=5, epochs=3, nodes=1, space=SPACE)
    job.step(0, 0)
    before, supernet, random = job.state_dict(), job.supernet, torch.get_rng_state()
    seen = []
    for name in job.as_each_stage():
        with torch.random.fork_rng(devices=[]):
            assert job.attempt(2, recompute=False, side=8) == 2 * 8 * 8
        counts = {len(edge.ops) for edge in job.supernet.modules() if isinstance(edge, MixedOp)}
        seen.append((name, len(job.supernet.cells), counts))
    assert [cells for _, cells, _ in seen] == [3, 4, 5]
    assert [name for name, _, _ in seen] == ["stage 1/3", "stage 2/3", "stage 3/3"]
    assert max(seen[2][2]) < len(job.space.operations)
    assert job.supernet is supernet
    assert_same(job.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_eigenvalue_leaves_the_random_numbers_of_the_dropout_alone() -> None:
    job = job_of(stages="p-darts", epochs=3, nodes=1, space=SPACE)
    job.step(0, 0)
    state = torch.get_rng_state()
    assert job.eigenvalue() == job.eigenvalue()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dry_run_times_every_stage_and_sums_them() -> None:
    job = job_of(**DRNAS)
    lines, whole = epoch_times(job, 100.0)
    assert lines[0].startswith(
        "stage 1/2: 2 epochs, 3 cells, 4 operations an edge, K=2, new weights and alphas, a step"
    )
    assert "stage 2/2: 2 epochs, 3 cells, 3 operations an edge, K=2, weights and alphas kept, edge by edge" in lines[1]
    first = 100.0 * 2 * job.steps_per_epoch
    assert first < whole < first + 100


def seconds_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a step of the weights alone take 1 s and any other 3 s; returns the epochs whose steps are timed."""
    timed: list[int] = []

    def timed_step(job: SearchJob, epoch: int) -> tuple[None, float]:
        timed.append(epoch)
        return None, 3.0 if job.alphas_learn(epoch) else 1.0

    monkeypatch.setattr(search_stages, "timed_step", timed_step)
    return timed


def test_a_dry_run_counts_epochs_with_frozen_alphas_as_steps_of_the_weights_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = seconds_of_steps(monkeypatch)
    job = job_of(epochs=5, alpha_frozen_epochs=2, nodes=1)
    lines, whole = epoch_times(job, 3.0)
    assert lines == ["a step 3.00 s, 1.00 s in the first 2 epochs, which train the weights alone"]
    assert whole == (2 * 1.0 + 3 * 3.0) * job.steps_per_epoch
    assert timed == [0]
    timed.clear()
    assert epoch_times(job_of(epochs=5, nodes=1), 3.0) == ([], 5 * 3.0 * job.steps_per_epoch)
    assert timed == []  # the step that was timed is like all others


@pytest.mark.parametrize(
    ("selection", "of_search", "of_phase"),
    [("projection:tuning_epochs=1", 2 * 1.0 + 3.0, 3.0), ("projection:tuning_epochs=1,blank=true", 3 * 1.0, 1.0)],
)
def test_a_dry_run_counts_the_epochs_of_a_selection_phase(
    selection: str, of_search: float, of_phase: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those before them, in which the alphas learn or not (DARTS-PT, with and without alphas)."""
    seconds_of_steps(monkeypatch)
    job = job_of(epochs=3, alpha_frozen_epochs=2, nodes=1, selection=selection)
    phase = job.num_epochs - 3
    assert phase > 0
    assert epoch_times(job, of_phase)[1] == (of_search + of_phase * phase) * job.steps_per_epoch


def test_a_dry_run_counts_frozen_alphas_in_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = seconds_of_steps(monkeypatch)
    job = job_of(stages="p-darts:frozen=0.5", epochs=4, nodes=1, space=SPACE)
    lines, whole = epoch_times(job, 3.0)
    spans, frozen = job.timeline.spans, [stage.alpha_frozen_epochs for stage in job.timeline.stages]
    assert max(frozen) > 0
    expected = sum(few * 1.0 + (span.epochs - few) * 3.0 for span, few in zip(spans, frozen, strict=True))
    assert whole == expected * job.steps_per_epoch
    assert sum("which train the weights alone" in line for line in lines) == sum(few > 0 for few in frozen)
    assert len(timed) == len(spans) - 1 + sum(few > 0 for few in frozen)


def test_kernels_that_later_stages_cannot_have_are_refused() -> None:
    with pytest.raises(UsageError, match="later stages of --stages p-darts have lists of their own"):
        job_of(stages="p-darts", epochs=3, kernels="native")


@pytest.mark.parametrize(
    ("recipe", "options", "kept"),
    [
        ("p-darts", ["--epochs=3", "--cells=3", "--channels=4", "--space=" + SPACE], [4, 3, 2]),
        ("drnas-progressive", ["--epochs=2", "--cells=3", "--channels=12", "--space=" + SPACE[5:]], [3, 2]),
    ],
)  # fmt: skip
def test_a_search_by_recipe_goes_through_its_stages_and_kills_at_boundaries_change_nothing(
    recipe: str,
    options: list[str],
    kept: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [
        "search", f"--recipe={recipe}", "--dataset=synthetic", "--batch-size=8", "--train-images=16", "--nodes=1",
        "--validation-images=16", "--threads=1", "--kernels=pytorch", *options,
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    if recipe != "p-darts":  # one report is enough: it takes longer than the search
        monkeypatch.setattr(search, "write_report", lambda folder: None)
    code, out, err = in_process(capsys, *command, f"--run-dir={whole}")
    assert code == 0, err
    assert f"stage 2/{len(kept)} begins after this epoch: 1 epoch, 3 cells" in out
    assert [row["stage"] for row in read_metrics(whole / "metrics.csv")] == list(range(1, len(kept) + 1))
    for epoch, record in enumerate(read_search_epochs(whole)):
        for title in ("normal", "reduce"):
            assert np.count_nonzero(record.weights[title], axis=1).tolist() == [kept[epoch]] * 2
            table, names = record.weights[title], record.genotype.operations
            for state, edge in record.cell(title).edges():
                assert state == NUM_INPUTS
                assert table[edge.state, names.index(edge.operation)] > 0
    if recipe == "p-darts":
        assert "stages p-darts" in (whole / "report.md").read_text()
        monkeypatch.setattr(search, "write_report", lambda folder: None)
    step, places = SearchJob.step, [(0, 1), (1, 0), (1, 1)]  # the last step of stage 1, the first and second of stage 2

    def killed_step(job: SearchJob, epoch: int, number: int) -> object:
        if places and (epoch, number) == places[0]:
            raise KeyboardInterrupt
        return step(job, epoch, number)

    monkeypatch.setattr(SearchJob, "step", killed_step)
    assert in_process(capsys, *command, f"--run-dir={killed}", "--checkpoint-minutes=1e-9")[0] == 130
    while places:
        places.pop(0)
        expected = 130 if places else 0
        again = ["search", "--resume", str(killed), "--checkpoint-minutes=1e-9"]
        assert in_process(capsys, *again)[0] == expected
    assert_same(newest_state(whole)["state"], newest_state(killed)["state"])
    for epoch in range(1, len(kept) + 1):
        one, two = (read_search_epoch(run, epoch).weights for run in (whole, killed))
        assert all(np.array_equal(one[name], two[name]) for name in ("normal", "reduce"))
