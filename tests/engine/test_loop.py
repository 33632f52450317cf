"""Runs of a job that computes next to nothing: how they end, go on, and say what went wrong."""

import errno
import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from darts_sg import process
from darts_sg.config import AugmentConfig, SearchConfig
from darts_sg.engine import environment, setup
from darts_sg.engine.augment import AugmentJob, run_augment
from darts_sg.engine.checkpoint import checkpoints, read_torch, write_torch
from darts_sg.engine.loggers import LOGGERS, Logger
from darts_sg.engine.loop import Display, Piece, StepResult, stop_signals
from darts_sg.engine.run_dir import OthersRunDir, RunDir
from darts_sg.engine.setup import Setting, dry_run, run_job
from darts_sg.errors import RunError, Stopped
from darts_sg.invocation import program
from darts_sg.tasks.columns import summary
from tests.engine.test_search_step import setting
from tests.test_command_line import MODEL, in_process


class CountingJob:
    """Two epochs of three steps. Its whole state is the number of steps taken."""

    name = "search"
    num_epochs = 2
    steps_per_epoch = 3
    warm_up_steps = 1

    def __init__(self, before_step: Callable[[int], None] = lambda number: None) -> None:
        self.before_step = before_step
        self.steps = 0
        self.drawn: list[int] = []

    def learning_rate(self, epoch: int) -> float:
        return 0.1

    def step(self, epoch: int, step: int) -> StepResult:
        self.before_step(self.steps)
        self.steps += 1
        return StepResult(8, {"train_loss": torch.tensor(1.0 / self.steps)})

    def attempt(self, batch_size: int, *, recompute: bool, side: int | None = None) -> int:
        return 0

    def after_steps(self, epoch: int) -> Iterator[Piece]:
        return iter(())

    def end_epoch(self, epoch: int, means: dict[str, float], run: RunDir) -> dict[str, float]:
        return means

    def early_stop(self, rows: Sequence[Any]) -> None: ...

    def figures(self, epoch: int) -> dict[str, Any]:
        self.drawn.append(epoch)
        return {}

    def share(self) -> None: ...

    def match_files(self, run: RunDir, epoch: int) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


@dataclass
class Runner:
    """Runs jobs in one folder: the first is a new run, the others continue it."""

    folder: Path
    setting: Setting

    def __call__(self, job: Any, finish: Any = lambda run, config, loop: None, **options: Any) -> Path:
        control = {name: options.pop(name) for name in ("callbacks", "stop", "started") if name in options}
        config = SearchConfig(dataset="synthetic", **options)
        run = None
        if self.folder.exists():
            run, self.setting.earlier = RunDir.open(self.folder, "search")
        else:
            config = SearchConfig(dataset="synthetic", run_dir=self.folder, **options)
        return run_job(
            job, config, self.setting, run, title="counting", sizes={}, prepare_run=lambda run: None, finish=finish,
            **control,
        )  # fmt: skip


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    where = setting()
    where.environment.update(environment.describe(torch.device("cpu")))
    return Runner(tmp_path / "run", where)


def fail_at(number: int, error: BaseException) -> Callable[[int], None]:
    def fail(steps: int) -> None:
        if steps == number:
            raise error

    return fail


@pytest.mark.parametrize("way", ["event", "function", "object"])
def test_a_run_in_a_thread_is_stopped_from_outside_and_goes_on(way: str, runner: Runner) -> None:
    stop = threading.Event()
    rows: list[Any] = []

    class AtStep:
        def step(self, values: dict[str, float], number: int) -> str:
            return "stop"

    control: dict[str, Any] = {
        "event": {"stop": stop},
        "function": {"callbacks": [lambda row: "stop"]},
        "object": {"callbacks": [AtStep(), rows.append]},
    }[way]
    caught: list[BaseException] = []

    def in_thread() -> None:
        try:
            runner(CountingJob(lambda number: stop.set() if number == 1 else None), **control)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    (stopped,) = caught
    assert isinstance(stopped, Stopped)
    assert "stopped on request; saved at epoch" in str(stopped)
    assert f"Continue with: {program('search')} --resume {runner.folder}" in str(stopped)
    steps = read_torch(checkpoints(runner.folder / "checkpoints")[-1])["state"]["steps"]
    assert steps == (2 if way == "event" else 3)
    assert len(rows) == (way == "object")
    job = CountingJob()
    runner(job, callbacks=[rows.append])
    assert job.steps == 6
    assert rows[-1]["train_loss"] == pytest.approx((1 / 4 + 1 / 5 + 1 / 6) / 3)


def test_no_signal_handler_is_installed_in_a_thread() -> None:
    found: list[Any] = []

    def in_thread() -> None:
        with stop_signals() as received:
            found.append(received)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert found == [[]]


def test_a_time_budget_counts_from_the_start_that_is_given_or_from_the_call(runner: Runner) -> None:
    with pytest.raises(Stopped, match=r"time budget used up; saved at epoch 1 of 2, step 1\."):
        runner(CountingJob(), time_budget=1.0, started=time.monotonic() - 90)
    runner(CountingJob(), time_budget=1.0)


@pytest.mark.usefixtures("rendered_once")
def test_the_time_budget_of_a_command_counts_from_the_start_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data are loaded and kernels compiled within the budget."""
    hour_ago = time.monotonic() - 3600
    monkeypatch.setattr(process, "started", lambda: hour_ago)
    options = ["--kernels=pytorch", "--time-budget=59", "--run-dir", str(tmp_path / "run")]
    code, out, err = in_process(capsys, "augment", *MODEL[1:], *options)
    assert code == 0, err
    assert f"time budget used up; saved at epoch 1 of 3, step 1. Continue with: {program('augment')} --resume" in out


@pytest.mark.usefixtures("rendered_once")
def test_the_time_budget_of_a_call_counts_from_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook may have been running for hours. Loading the data is within the budget."""
    loaded = setup.load_dataset

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.3)
        return loaded(*arguments, **options)

    monkeypatch.setattr(setup, "load_dataset", slowly)
    small: dict[str, Any] = {"dataset": "synthetic", "train_images": 40, "batch_size": 8, "epochs": 1, "threads": 1}
    config = AugmentConfig(
        recipe="mobilenext", model="mobilenext_0.1_id2", channels=None, cells=None, auxiliary_weight=None,
        drop_path_prob=None, run_dir=tmp_path / "run", time_budget=0.3 / 60, **small,
    )  # fmt: skip
    monkeypatch.setattr(AugmentJob, "step", lambda job, epoch, step: StepResult(8, {"train_loss": torch.ones(())}))
    with pytest.raises(Stopped, match=r"time budget used up; saved at epoch 1 of 1, step 1\."):
        run_augment(config)


def test_the_start_of_the_process_lies_before_its_first_import() -> None:
    started = process.started()
    assert 0 <= process.IMPORTED - started < 600
    assert abs(process.started() - started) < 0.05


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "m.csv"), "cannot write to m.csv: No space left on device; "
         "the checkpoints are whole: make room, then continue with PROGRAM --resume"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "cannot write to RUN: Disk quota exceeded; the checkpoints are "
         "whole: make room, then continue with"),
        (PermissionError(errno.EACCES, "Permission denied", "m.csv"), "no access to m.csv: Permission denied; the "
         "checkpoints are whole: make it accessible, then continue with"),
        (OSError(errno.EMFILE, "Too many open files", "x.jpg"), "Too many open files (this process may open "),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.jpg"), "x.jpg: No such file or directory; the "
         "checkpoints are whole: continue with PROGRAM --resume"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe: the program that read this output, or a process of "
         "this run, has ended; the checkpoints are whole: continue with"),
        (TimeoutError("timed out"), "timed out; the checkpoints are whole: continue with"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, OSError) else "",
)  # fmt: skip
def test_an_error_of_the_system_says_what_it_is(error: OSError, expected: str, runner: Runner) -> None:
    with pytest.raises(RunError) as caught:
        runner(CountingJob(fail_at(4, error)))
    for name, value in (("RUN", str(runner.folder)), ("PROGRAM", program("search"))):
        expected = expected.replace(name, value)
    assert str(caught.value).startswith(expected)
    assert ("make room" in str(caught.value)) == (error.errno in (errno.ENOSPC, errno.EDQUOT))
    job = CountingJob()
    runner(job)
    assert job.steps == 6


def test_a_dry_run_times_the_step_after_those_that_warm_up(runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a GPU, where some steps run launch by launch and one is captured before they are replayed."""
    job = CountingJob(lambda number: time.sleep(0.3 if number < 3 else 0))
    job.warm_up_steps = 3
    dry_run(
        job, SearchConfig(dataset="synthetic"), runner.setting, None, title="counting", first_epoch=0, facts=list,
        writes="",
    )  # fmt: skip
    assert "one step of batch 8: 0.00 s (" in capsys.readouterr().out
    assert job.steps == 4 + 3  # then the last batch, whose graph needs memory as well


@pytest.mark.parametrize("event", ["run_started", "step", "epoch", "artifact", "run_ended"])
def test_a_logger_that_fails_does_not_end_a_run(
    event: str, runner: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Logger):
        def __init__(self) -> None:
            setattr(self, event, self.fail)

        def fail(self, *arguments: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(LOGGERS._entries, "broken", Broken)
    runner(CountingJob(), finish=lambda run, config, loop: run.write("result.json", "{}"), logger="broken")
    line = f"the logger broken failed in {event} and is dropped, the run goes on: OSError: [Errno 28] No space"
    assert capsys.readouterr().err.count(line) == 1
    assert (runner.folder / "log.txt").read_text().count(line) == 1
    assert len((runner.folder / "metrics.csv").read_text().splitlines()) == 3


def test_loggers_hear_how_a_run_ended_and_only_finished_runs_leave_artifacts(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    class Ears(Logger):
        def artifact(self, path: Path) -> None:
            heard.append(path.name)

        def run_ended(self, status: str) -> None:
            heard.append(status)

    monkeypatch.setitem(LOGGERS._entries, "ears", Ears)
    with pytest.raises(ZeroDivisionError):
        runner(CountingJob(fail_at(1, ZeroDivisionError())), logger="ears")
    with pytest.raises(Stopped):
        runner(CountingJob(), logger="ears", time_budget=1e-9)
    runner(CountingJob(), finish=lambda run, config, loop: run.write("result.json", "{}"), logger="ears")
    assert heard == ["failed", "stopped", "config.yaml", "result.json", "finished"]


def test_only_rank_0_logs(runner: Runner) -> None:
    runner.folder.mkdir()
    runner.setting.earlier = {"environment": runner.setting.environment}
    rows: list[Any] = []
    run_job(
        CountingJob(), SearchConfig(dataset="synthetic"), runner.setting, OthersRunDir(runner.folder), title="counting",
        sizes={}, prepare_run=lambda run: None, finish=lambda run, config, loop: None,
        callbacks=[rows.append],
    )  # fmt: skip
    assert rows == []
    assert list(runner.folder.iterdir()) == []


def test_figures_are_drawn_only_for_loggers_that_want_them(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    wants_figures = "darts_sg.engine.loggers.tensorboard.TensorBoardLogger.wants_figures"
    monkeypatch.setattr(wants_figures, True)
    job = CountingJob()
    runner(job)
    assert job.drawn == [1, 2]
    monkeypatch.setattr(wants_figures, False)
    runner.folder = runner.folder.with_name("without")
    job = CountingJob()
    runner(job)
    assert job.drawn == []


def test_metrics_and_events_of_a_resumed_run_are_those_of_an_undisturbed_one(runner: Runner) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def losses(folder: Path) -> tuple[list[str], list[tuple[int, float]]]:
        lines = (folder / "metrics.csv").read_text().splitlines()
        events = EventAccumulator(str(folder))
        events.Reload()
        return [line.split(",")[1] for line in lines], [(e.step, e.value) for e in events.Scalars("loss/train")]

    with pytest.raises(ZeroDivisionError):
        runner(CountingJob(fail_at(4, ZeroDivisionError())))
    runner(CountingJob())
    killed, runner.folder = runner.folder, runner.folder.with_name("whole")
    runner(CountingJob())
    assert losses(killed) == losses(runner.folder)
    assert len(losses(killed)[1]) == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_resumed_run_goes_on_with_its_loggers(name: str, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name, reason=f"needs the extra {name}")
    if name == "mlflow":
        pytest.importorskip("sqlalchemy", reason="needs the extra mlflow, not mlflow-skinny")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ids = []
    for time_budget in (1e-9, None):
        if time_budget:
            with pytest.raises(Stopped):
                runner(CountingJob(), logger=name, time_budget=time_budget)
        else:
            runner(CountingJob(), logger=name)
        ids.append(json.loads((runner.folder / "loggers.json").read_text())[name])
    assert ids[0] == ids[1]
    assert "is dropped" not in (runner.folder / "log.txt").read_text()
    assert list((runner.folder / name).iterdir())


def save_state(folder: Path, **changes: Any) -> None:
    """Overwrite the newest checkpoint, with a checksum that is right."""
    path = checkpoints(folder)[-1]
    write_torch(path, {name: value for name, value in (read_torch(path) | changes).items() if value is not None})


@pytest.mark.parametrize("changes", [{"rows": None}, {"epoch": "two"}, {"state": [1]}, {"format": None}])
def test_a_checkpoint_that_lacks_something_is_passed_over(
    changes: dict[str, Any], runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError):
        runner(CountingJob(fail_at(4, ZeroDivisionError())), checkpoint_minutes=1e-9)
    save_state(runner.folder / "checkpoints", **changes)
    job = CountingJob()
    runner(job)
    assert job.steps == 6
    assert "damaged checkpoint passed over: " in capsys.readouterr().err
    assert len(list((runner.folder / "checkpoints").glob("*.damaged"))) == 1


@pytest.mark.parametrize("changes", [{"state": {}}, {"random": {}}, {"random": {"python": (1,)}}])
def test_a_checkpoint_of_another_run_is_refused_in_one_line(changes: dict[str, Any], runner: Runner) -> None:
    with pytest.raises(ZeroDivisionError):
        runner(CountingJob(fail_at(4, ZeroDivisionError())))
    save_state(runner.folder / "checkpoints", **changes)
    with pytest.raises(RunError, match=r"does not fit this run \(\w+: .*\); remove it to continue") as caught:
        runner(CountingJob())
    assert "\n" not in str(caught.value)


def test_going_back_to_the_start_leaves_no_metrics_of_the_first_attempt(runner: Runner) -> None:
    with pytest.raises(ZeroDivisionError):
        runner(CountingJob(fail_at(4, ZeroDivisionError())))
    assert (runner.folder / "metrics.csv").is_file()
    for path in checkpoints(runner.folder / "checkpoints"):
        path.unlink()
    with pytest.raises(ZeroDivisionError):
        runner(CountingJob(fail_at(1, ZeroDivisionError())))
    assert not (runner.folder / "metrics.csv").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_of_80_columns_wraps_no_line_and_keeps_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    job = CountingJob()
    job.num_epochs, job.steps_per_epoch = 600, 10_000
    display = Display(job)
    row = {f"{part}_{name}": 0.5 for part in ("train", "validation", "test", "ema_test") for name in ("loss", "score")}
    with suppress(Stopped), display.context():
        display.update(123, 4567, 12345.6, 360_000.0)
        display.piece(Piece("decisions of the selection", 10, 100))
        display.line(f"epoch 123/600: {summary(row)}")
        raise Stopped("stopped", 130)
    for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())):
        assert len(line) <= 80, line
    last = terminal.getvalue().rpartition("\x1b[?25h")[0].rpartition("\x1b[2K")[2]
    assert "epochs" in last
    assert "steps" not in last
