"""A study runs from its folder alone: lost, failed, stopped and added jobs, and two coordinators at once."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from darts_sg.analysis.run_folder import read_metrics
from darts_sg.config import make_config
from darts_sg.engine import augment, search
from darts_sg.errors import RunError, Stopped, UsageError
from darts_sg.genotype import load_genotype
from darts_sg.study import claims, coordinator, run, worker
from darts_sg.study.coordinator import Coordinator, reset, stop
from darts_sg.study.file import parse_study
from darts_sg.study.folder import StudyFolder
from darts_sg.study.worker import AGAIN, DONE, FAILED, REFUSED, work
from tests.study.small import RETRAIN, SEARCH, SMALL, Inline, changed, run_inline, study_in


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL", 0.0)


@pytest.fixture(scope="module", autouse=True)
def plain_reports() -> Iterator[None]:
    """Reports without pictures, which take longer than the runs."""

    def write(run_dir: Path) -> Path:
        report = run_dir / "report.md"
        report.write_text("report")
        return report

    with pytest.MonkeyPatch.context() as patch:
        for module in (augment, search):
            patch.setattr(module, "write_report", write)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ran without any disturbance."""
    path = tmp_path_factory.mktemp("study") / "S"
    executor = run_inline(path)
    assert executor.started == [SEARCH, RETRAIN]
    return path


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Jobs end at once, or with the error of the job's kind; no run is made."""
    errors: dict[str, Any] = {}

    def job(kind: str) -> Any:
        def run(**options: Any) -> None:
            if error := errors.get(kind):
                raise error

        return run

    for kind in ("search", "retrain"):
        monkeypatch.setattr(worker, kind, job(kind))
    monkeypatch.setattr(worker, "write_genotype", lambda *ignored: Path("genotype.yaml"))
    return errors


def results(path: Path) -> tuple[str, dict[str, Any], list[Any]]:
    """What a study found: the genotype, the result without times and machine, and the rows without times."""
    folder = StudyFolder(path)
    genotype = load_genotype(folder.genotype_file("first_0"))
    content = json.loads((folder.run_dir(RETRAIN) / "result.json").read_text())
    kept = {key: content[key] for key in ("test_error_last", "test_error_best", "params")}
    rows = read_metrics(folder.run_dir(SEARCH) / "metrics.csv")
    times = ("seconds", "images_per_second")
    return repr(genotype.cells()), kept, [{k: v for k, v in row.items() if k not in times} for row in rows]


def lose(folder: StudyFolder, job_id: str, **changes: Any) -> None:
    """Leave a job as its worker leaves it that is killed with signal 9: running, its claim not released."""
    claim = claims.take(folder.path / "claims", job_id)
    assert claim is not None
    gone = replace(claim.owner, started="0")
    claim.path.write_text(json.dumps(asdict(gone)))
    folder.write_state(folder.state(job_id).changed(state="running", owner=gone.title, **changes))


def test_a_study_leaves_runs_states_and_genotypes(finished: Path) -> None:
    folder = StudyFolder(finished)
    states = folder.states()
    assert {state.state for state in states.values()} == {"done"}
    searched = states[SEARCH]
    assert searched.device.startswith("cpu (")
    assert searched.seconds > 0
    assert searched.cpu_seconds > 0
    assert searched.images_per_second
    assert searched.peak_memory
    assert searched.ended is not None
    assert load_genotype(folder.genotype_file("first_0")).name == "first_0"
    trained = load_genotype(folder.run_dir(RETRAIN) / "genotype.yaml")
    assert trained.cells() == load_genotype(folder.run_dir(SEARCH) / "genotype.yaml").cells()
    assert folder.file.read_text() == SMALL


def test_files_that_a_kill_left_half_written_are_removed_once_they_are_old(copied: Path) -> None:
    old, new, other = (copied / "jobs" / f".{SEARCH}.{end}" for end in ("json.abcd_123", "json.abcd_124", "json"))
    for path in (old, new, other):
        path.write_text("{")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    run_inline(copied)
    assert [path.exists() for path in (old, new, other)] == [False, True, True]


def test_a_finished_study_runs_nothing_again(copied: Path) -> None:
    assert run_inline(copied).started == []


def test_a_seed_added_later_runs_only_what_is_new(copied: Path) -> None:
    before = (StudyFolder(copied).run_dir(SEARCH) / "metrics.csv").stat().st_mtime_ns
    executor = run_inline(copied, changed("retrain: [0]", "retrain: [0, 1]"))
    assert executor.started == ["retrain_first_0_s1"]
    assert (StudyFolder(copied).run_dir(SEARCH) / "metrics.csv").stat().st_mtime_ns == before


def test_a_lost_job_continues_to_the_same_result(finished: Path, tmp_path: Path) -> None:
    folder, _ = study_in(tmp_path / "S")
    assert work(folder, SEARCH, threads=1, minutes=1e-9) == AGAIN  # a step, then its checkpoint
    assert folder.state(SEARCH).state == "waiting"
    assert (folder.run_dir(SEARCH) / "checkpoints").is_dir()
    lose(folder, SEARCH)
    executor = run_inline(tmp_path / "S")
    assert executor.started == [SEARCH, RETRAIN]
    assert results(tmp_path / "S") == results(finished)
    assert "continuing from epoch_" in (tmp_path / "S" / "log.txt").read_text()


def test_a_job_that_is_lost_again_and_again_fails(tmp_path: Path, fake_runs: Any) -> None:
    folder, _ = study_in(tmp_path / "S", SMALL + "executor: {losses: 2}\n")
    lose(folder, SEARCH, losses=2)
    with pytest.raises(RunError, match=r"1 job failed; 1 more wait for them: .*lost 3 times in a row"):
        run_inline(tmp_path / "S", SMALL + "executor: {losses: 2}\n")
    assert folder.state(SEARCH).state == "failed"


def test_a_failing_job_is_retried_then_reported_and_others_go_on(tmp_path: Path, fake_runs: Any) -> None:
    fake_runs["search"] = RunError("out of memory with --batch-size 8; 4 fits here")
    text = SMALL + "executor: {retries: 1}\n"
    text = text.replace('name: "{method}_{seed}"', "references: [DARTS_V2]")
    with pytest.raises(RunError, match=r"1 job failed; 1 more wait for them: .*4 fits here; start again with .* retry"):
        run_inline(tmp_path / "S", text)
    folder = StudyFolder(tmp_path / "S")
    state = folder.state(SEARCH)
    assert (state.state, state.attempts, state.out_of_memory) == ("failed", 2, 2)
    assert state.failure == "out of memory with --batch-size 8; 4 fits here"
    assert folder.state("retrain_DARTS_V2_s0").state == "done"
    assert reset(folder) == [SEARCH]
    fake_runs.clear()
    executor = run_inline(tmp_path / "S", text)
    assert executor.started[0] == SEARCH
    assert {state.state for state in folder.states().values()} == {"done"}


def test_only_failed_jobs_are_retried(copied: Path) -> None:
    with pytest.raises(UsageError, match="has not failed: it is done"):
        reset(StudyFolder(copied), [SEARCH])
    with pytest.raises(UsageError, match="has no job nothing"):
        reset(StudyFolder(copied), ["nothing"])


def test_a_claimed_job_is_left_alone(tmp_path: Path) -> None:
    folder, _ = study_in(tmp_path / "S")
    claim = claims.take(folder.path / "claims", SEARCH)
    assert claim is not None
    assert work(folder, SEARCH) == REFUSED
    claim.release()
    assert work(folder, RETRAIN) == AGAIN  # its search is not done


def test_two_coordinators_run_nothing_twice(tmp_path: Path, fake_runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL", 0.001)
    monkeypatch.setattr(coordinator, "PAUSE", 0.01)
    monkeypatch.setattr(worker.claims, "write_atomically", lambda path, text: path.write_text(text))
    text = changed("search: [0]", "search: [0, 1, 2]").replace("retrain: [0]}", "retrain: [0, 1]}")
    folder, study = study_in(tmp_path / "S", text)
    executors = [Inline(folder.path) for _ in range(2)]
    ran: list[str] = []
    monkeypatch.setattr(worker.Work, "_run_job", lambda self, *ignored: ran.append(self.job.id))
    threads = [
        threading.Thread(target=Coordinator(folder, study, executor, say=lambda line: None).run)
        for executor in executors
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(ran) == sorted(folder.states())
    assert {state.state for state in folder.states().values()} == {"done"}


def test_stop_has_everything_saved(tmp_path: Path) -> None:
    folder, _ = study_in(tmp_path / "S")
    stop(folder, say=lambda line: None)
    assert work(folder, SEARCH) == AGAIN  # no job starts while the file is there
    with pytest.raises(Stopped, match=r"stopped by `study stop`. Continue with: .* study run .*study.yaml --dir"):
        run_inline(tmp_path / "S")


def test_a_time_budget_ends_the_study(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="time budget used up") as stopped:
        run_inline(tmp_path / "S", deadline=0.0)
    assert stopped.value.exit_code == 0


def test_an_owner_that_was_given_up_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = study_in(tmp_path / "S")

    def taken_over(self: worker.Work, *ignored: Any) -> None:
        assert claims.take(folder.path / "claims", SEARCH, over=self.claim.owner.token) is not None
        self.update()
        assert self.stop.is_set()

    monkeypatch.setattr(worker.Work, "_run_job", taken_over)
    assert work(folder, SEARCH) == REFUSED
    assert folder.state(SEARCH).state == "running"  # that of the new owner is not touched


def test_a_worker_that_ends_before_it_begins_is_an_attempt(tmp_path: Path) -> None:
    folder, study = study_in(tmp_path / "S", SMALL + "executor: {retries: 0, losses: 0}\n")
    for code, words in ((1, "ended with code 1 before it began: no torch"), (-9, "lost 1 times in a row")):
        coordinated = Coordinator(folder, study, Inline(folder.path), say=lambda line: None)
        before = folder.state(SEARCH)
        coordinated.before[SEARCH] = before
        coordinated._crashed(coordinator.Ended(SEARCH, code, "no torch"), before)
        state = folder.state(SEARCH)
        assert state.state == "failed"
        assert words in state.failure
        reset(folder)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epochs: 2", "epochs: 3", r"search.epochs: search_skip_.* has begun with other options: epochs is 3, then 2"),
        ("recipe: demo, ", "recipe: demo, momentum: 0.5, ", "momentum is 0.5, then not given"),
    ],
)
def test_jobs_that_have_begun_keep_their_options(copied: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        study_in(copied, changed(old, new))


def test_jobs_that_have_not_begun_take_new_options(tmp_path: Path) -> None:
    study_in(tmp_path / "S")
    folder, _ = study_in(tmp_path / "S", changed("epochs: 2", "epochs: 3"))
    assert folder.state(SEARCH).options["epochs"] == 3


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and no study"):
        study_in(tmp_path)


def test_a_study_runs_on_an_executor_with_files_of_its_own(
    tmp_path: Path, fake_runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's executor keeps files in the study's folder: it is made after the folder was taken for this study."""

    def make(name: str, folder: Path, settings: Any) -> Inline:
        (folder / name).mkdir()
        return Inline(folder)

    monkeypatch.setattr(run, "make_executor", make)
    monkeypatch.setattr(run, "check_study", lambda study, **ignored: {"any": make_config("search")})
    folder = run.run_study(parse_study(SMALL), tmp_path / "S", executor="slurm", say=lambda line: None)
    assert {state.state for state in folder.states().values()} == {"done"}


def test_codes_are_distinct() -> None:
    assert len({DONE, FAILED, REFUSED, AGAIN}) == 4
