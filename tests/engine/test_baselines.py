"""Baselines as jobs: what they find, and that a run that is killed anywhere goes on to the same bits."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from darts_sg.analysis.run_folder import read_metrics, read_run, read_search_epoch
from darts_sg.api import SearchResult
from darts_sg.config import load_recipe, recipe_names
from darts_sg.engine import baselines
from darts_sg.engine.baselines import CandidateJob, RspsJob, baseline_job
from darts_sg.engine.run_dir import RunDir
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype
from tests.engine.test_search_step import search_config, setting
from tests.test_command_line import assert_same, in_process, newest_state

SMALL = {"kernels": "pytorch", "space": "sep_conv_3x3+skip_connect+none", "epochs": 4, "train_images": 16}
STRATEGIES = {
    "random": "random:epochs=2",
    "evolution": "evolution:population=2,sample=2",
    "by a proxy": "evolution:population=2,sample=2,score=snip",
    "rsps": "rsps:samples=3,batches=1,finalists=2,rounds=2",
}


def job_of(text: str) -> CandidateJob | RspsJob:
    config = search_config(**SMALL, strategy=text)
    strategy = config.baseline()
    assert strategy is not None
    torch.manual_seed(0)
    return baseline_job(strategy, config, setting(32))


def compared(state: Any) -> dict[str, Any]:
    """A job's state without the learning rate of the last step: no later step sees it."""
    state = copy.deepcopy(state)
    for group in state.get("optimizer", {}).get("param_groups", []):
        del group["lr"]
    return dict(state)


def moments(job: CandidateJob | RspsJob, run: RunDir, start: tuple[int, int] = (0, 0)) -> Iterator[tuple[int, int]]:
    """Run a job as the loop does, from (epoch, step); yields where a checkpoint may be written, after each piece."""
    epoch, step = start
    while epoch < job.num_epochs:
        while step < job.steps_per_epoch:
            job.step(epoch, step)
            step += 1
            yield epoch, step
        for _ in job.after_steps(epoch):
            yield epoch, step
        job.end_epoch(epoch, {}, run)
        epoch, step = epoch + 1, 0
        yield epoch, step


@pytest.mark.parametrize("text", STRATEGIES.values(), ids=STRATEGIES)
def test_a_job_goes_on_from_any_moment_to_the_same_bits(text: str, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    whole, begun = job_of(text), job_of(text)
    places = list(moments(whole, run))
    for number, place in enumerate(moments(begun, run)):
        if number % 5 != 2:  # a fifth of the moments is enough, and faster
            continue
        resumed = job_of(text)
        torch.manual_seed(number)  # nothing draws from it
        resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
        assert [*moments(resumed, run, place)] == places[number + 1 :]
        assert_same(compared(resumed.state_dict()), compared(whole.state_dict()))
    run.close()
    best = whole.tried[whole.best()]
    assert best.score == max(each.score for each in whole.tried)
    assert len(whole.tried) == {"random": 2, "evolution": 4, "rsps": 4}[text.partition(":")[0]]


def test_candidates_see_the_same_batches_and_start_from_weights_of_their_own() -> None:
    job = job_of(STRATEGIES["evolution"])
    assert isinstance(job, CandidateJob)
    seen: list[Any] = []
    real = job.train
    job.train = type("Watched", (), {"__getitem__": lambda self, i: seen.append(i) or real[i],
                                     "num_images": lambda self, i: real.num_images(i)})()  # fmt: skip
    rates = []
    for epoch in range(2):
        rates.append(job.learning_rate(epoch))
        for step in range(job.steps_per_epoch):
            job.step(epoch, step)
        job.tried.append(job.tried[-1] if job.tried else baselines.Candidate(job.propose(0)[0], 0.0, {}))
    assert seen == 2 * list(range(job.steps_per_epoch))
    assert rates == [0.025, 0.025]
    cells = job.propose(0)[0]
    one, two = (next(iter(job.begin(number, cells, None).network.parameters())) for number in (0, 1))
    assert not torch.equal(one, two)


def test_rsps_takes_the_best_finalist_of_all_rounds() -> None:
    job = job_of(STRATEGIES["rsps"])
    assert isinstance(job, RspsJob)
    asked: list[tuple[str, int]] = []
    score_of: dict[str, float] = {}

    def measured(cells: Any, number: int, batches: int) -> dict[str, float]:
        score_of.setdefault(str(cells), (len(score_of) * 7 % 5) / 10)
        asked.append((str(cells), batches))
        return {"accuracy": score_of[str(cells)], "loss": 0.0}

    job._measure = measured  # type: ignore[method-assign]
    assert "3 paths a round, measured on batches: 1, the best 2 on all; rounds: 2" in "\n".join(job.facts())
    assert not list(job.after_steps(job.num_epochs - 2))
    assert len(list(job.after_steps(job.num_epochs - 1))) == len(asked) == 10
    for start in (0, 5):
        samples = [cells for cells, batches in asked[start : start + 3] if batches == 1]
        best = sorted(samples, key=lambda cells: -score_of[cells])[:2]
        assert asked[start + 3 : start + 5] == [(cells, len(job.validation)) for cells in best]
    assert job.tried[job.best()].score == max(score_of.values())


def test_a_run_that_is_killed_among_the_rounds_ends_with_the_same_genotype(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rendered_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"random-search", "rsps", "evolution"} <= set(recipe_names("search"))
    assert load_recipe("search", "rsps") == {"strategy": "rsps"}
    command = [
        "search", "--recipe=rsps", f"--strategy={STRATEGIES['rsps']}", "--dataset=synthetic", "--batch-size=8",
        "--train-images=8", "--validation-images=8", "--channels=4", "--cells=3", "--nodes=1", "--epochs=2",
        "--space=sep_conv_3x3+skip_connect", "--threads=1",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, out, err = in_process(capsys, *command, f"--run-dir={whole}")
    assert code == 0, err
    assert "round 2/2: the best path so far has accuracy " in out
    calls, measure = [], baselines.measure

    def killed_measure(*given: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 8:
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(baselines, "measure", killed_measure)
    monkeypatch.setattr(baselines, "write_report", lambda folder: None)  # takes longer than the search
    assert in_process(capsys, *command, f"--run-dir={killed}", "--checkpoint-minutes=1e-9")[0] == 130
    assert in_process(capsys, "search", "--resume", str(killed))[0] == 0
    assert len(calls) == 8 + 3  # 7 of 10 were in a checkpoint
    assert_same(compared(newest_state(whole)["state"]), compared(newest_state(killed)["state"]))
    genotype = load_genotype(whole / "genotype.yaml")
    assert load_genotype(killed / "genotype.yaml") == genotype
    rows = read_metrics(whole / "metrics.csv")
    assert rows[-1]["validation_accuracy"] == genotype.provenance["candidates"][0]["accuracy"]
    assert len(json.loads((whole / "candidates.json").read_text())["candidates"]) == 4
    report = (whole / "report.md").read_text()
    assert f"strategy {STRATEGIES['rsps']}" in report
    assert "## Best candidates" in report
    assert "a search without alphas" in report
    assert read_run(whole).finished
    with pytest.raises(UsageError, match="has no mixing weights"):
        read_search_epoch(whole)
    with pytest.raises(UsageError, match="is a search without alphas"):
        _ = SearchResult(whole).alphas
    assert "validation accuracy of the best candidate" in SearchResult(whole).facts()
