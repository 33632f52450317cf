"""The training loop of search and augment: runs epochs and steps, logs, saves checkpoints, stops and resumes."""

import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from darts_sg import process
from darts_sg.engine.checkpoint import (
    checkpoints,
    load_newest,
    random_state,
    save_checkpoint,
    set_aside_later,
    set_random_state,
)
from darts_sg.engine.distributed import Ranks, fingerprint
from darts_sg.engine.loggers import LoggedRun, Loggers
from darts_sg.engine.run_dir import RunDir
from darts_sg.errors import RunError, Stopped, first_line
from darts_sg.methods.early_stopping import EarlyStop
from darts_sg.records import MetricsRow
from darts_sg.tasks.columns import clock, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYNC_STEPS = 20  # steps between two reads of the losses: each waits for the GPU
CHECKPOINT_FORMAT = 2
ENTRIES: dict[str, Any] = {
    "epoch": int, "step": int, "sums": dict, "counts": dict, "images": int, "epoch_seconds": float | int,
    "seconds": float | int, "rows": list, "random": dict, "state": dict,
}  # fmt: skip
"""What a checkpoint of this format holds beside `format` and `job`."""


class StepResult(NamedTuple):
    """The result of a training step, over all ranks."""

    num_images: int
    """Images of the weights' step."""
    means: Mapping[str, Tensor]
    """Means over the batch by name: scalar tensors on the device, which only the loop reads."""


class Piece(NamedTuple):
    """A piece of work that is done: see `Job.after_steps`."""

    title: str
    """What it belongs to, for the progress bar."""
    done: int
    """Pieces of this title that are done, and `total` in all."""
    total: int
    lines: tuple[str, ...] = ()
    """Results to print and log."""


class Job(Protocol):
    """A search or a training, as the loop sees it. Epochs and steps count from 0."""

    name: str
    num_epochs: int
    steps_per_epoch: int

    @property
    def warm_up_steps(self) -> int:
        """Steps at the start that are slower than the others: a dry run takes them before the one that it times."""

    def learning_rate(self, epoch: int) -> float: ...

    def step(self, epoch: int, step: int) -> StepResult:
        """One training step."""

    def attempt(self, batch_size: int, *, recompute: bool, side: int | None = None) -> int:
        """Compute a step with `batch_size` images and discard the result, to see what memory it takes.

        Leaves the state of the job as it was. On this rank alone: without collectives, which the other ranks would have
        to join. side: the images are cropped to this many pixels a side where the network takes images of any size.
        Returns the pixels of the batch.
        """

    def after_steps(self, epoch: int) -> Iterator[Piece]:
        """What is left to do between the last step of `epoch` and its end, piece by piece; most epochs have nothing.

        The loop may save and stop after each piece: `state_dict` says which are done. Called on all ranks.
        """

    def end_epoch(self, epoch: int, means: dict[str, float], run: RunDir) -> dict[str, float]:
        """Evaluate after an epoch; returns its columns of metrics.csv except epoch, images_per_second and seconds."""

    def early_stop(self, rows: Sequence[MetricsRow]) -> EarlyStop | None:
        """The early end of the job, if it ends after the last of `rows`. Depends on these rows only."""

    def figures(self, epoch: int) -> "dict[str, Figure]":
        """Pictures for the loggers after `epoch` epochs, by title."""

    def share(self) -> None:
        """Exchange between the ranks what each of them found alone. Called on all ranks before a checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def match_files(self, run: RunDir, epoch: int) -> None:
        """Bring the job's files in line with the checkpoint just loaded, which is after `epoch` whole epochs.

        They may be of later epochs, if the user went back to an older checkpoint. Called on all ranks.
        """


class Meter:
    """Means over an epoch of the results of its steps. Reads the device only when flushed."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.pending: list[tuple[int, StepResult]] = []

    def add(self, step: int, result: StepResult) -> None:
        self.pending.append((step, result))

    def flush(self) -> tuple[int, str] | None:
        """Add the pending results to the means; returns the first (step, name) whose value is not finite, or None."""
        if not self.pending:
            return None
        # one transfer from the device for all values of all pending steps
        names = [(step, n, name) for step, (n, means) in self.pending for name in means]
        values = torch.stack([m.float() for _, (_, means) in self.pending for m in means.values()]).tolist()
        self.pending.clear()
        for (step, n, name), value in zip(names, values, strict=True):
            if not abs(value) < float("inf"):
                return step, name
            self.sums[name] = self.sums.get(name, 0.0) + n * value
            self.counts[name] = self.counts.get(name, 0) + n
        return None

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


@contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """Within the context Ctrl-C and SIGTERM are noted instead of ending the process; a second Ctrl-C ends it.

    Python allows signal handlers in the main thread only; in any other thread nothing is noted.
    """
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is note:  # not if SIGTERM is ignored because another rank was lost
                signal.signal(number, handler)


def broken(text: str, width: int) -> list[str]:
    """A text of parts separated by commas as lines of at most `width` characters where that is possible."""
    lines: list[str] = []
    for part in text.split(", "):
        if lines and len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f", {part}"
        else:
            lines = [*lines[:-1], f"{lines[-1]},", f"  {part}"] if lines else [part]
    return lines


class Display:
    """Progress bars with images/s and time left in a terminal, plain lines elsewhere."""

    def __init__(self, job: Job) -> None:
        self.console = Console(highlight=False)
        self.job = job
        self.progress: Progress | None = None
        self.pieces: TaskID | None = None
        if sys.stdout.isatty():
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self.console,
            )
            self.all = self._task("epochs", job.num_epochs)
            self.epoch = self._task("steps", job.steps_per_epoch)

    @contextmanager
    def context(self) -> Iterator[None]:
        """Shows the bars; in the end, also after Ctrl-C, that of the epochs alone stays."""
        with self.progress or nullcontext():
            try:
                yield
            finally:
                if self.progress is not None:
                    for task in self.progress.task_ids:
                        if task != self.all:
                            self.progress.remove_task(task)

    def line(self, text: str) -> None:
        """Print a line; in a terminal one that is too long is broken after a comma."""
        if self.progress is not None:
            text = "\n".join(broken(text, self.console.width))
        self.console.print(text, markup=False, soft_wrap=True)

    def update(self, epoch: int, step: int, speed: float, seconds_left: float) -> None:
        if self.progress is not None:
            self.progress.update(self.all, completed=epoch, speed="", left=f"{clock(seconds_left)} left")
            self.progress.update(self.epoch, completed=step, speed=f"{speed:.0f} images/s", left="")

    def piece(self, piece: Piece) -> None:
        """A bar for the pieces of work after the steps of an epoch, from the first of them to the end of the epoch."""
        if self.progress is not None:
            if self.pieces is None:
                self.pieces = self._task(piece.title, piece.total)
            self.progress.update(self.pieces, description=piece.title, completed=piece.done, total=piece.total)

    def epoch_done(self, epoch: int) -> None:
        if self.progress is not None:
            if self.pieces is not None:
                self.progress.remove_task(self.pieces)
                self.pieces = None
            self.progress.update(self.all, completed=epoch)
            self.progress.update(self.epoch, completed=0)

    def _task(self, title: str, total: int) -> TaskID:
        assert self.progress is not None
        return self.progress.add_task(title, total=total, speed="", left="")


class Loop:
    """Runs a job in its run folder to the end, from the newest checkpoint if there is one.

    All ranks run the loop; they stop and save at the same steps, and rank 0 writes. Raises Stopped, with everything
    saved, after Ctrl-C, SIGTERM, the end of the time budget or a request by `stop` or a callback; RunError when a loss
    is not finite or the ranks have diverged; RankLost when a rank is gone; OSError when the folder cannot be written.
    """

    def __init__(
        self,
        job: Job,
        run: RunDir,
        ranks: Ranks,
        *,
        loggers: Loggers,
        about: LoggedRun,
        deadline: float | None,
        checkpoint_minutes: float,
        keep_every: int | None,
        resume_command: str,
        stop: threading.Event | None = None,
    ) -> None:
        """about: what loggers are told of the run, without its progress. deadline: when the time budget ends, on the
        clock of time.monotonic. stop: an event that ends the run, for code in other threads."""
        self.job, self.run, self.ranks = job, run, ranks
        self.loggers, self.about = loggers, about
        self.deadline = deadline
        self.stop = stop
        self.checkpoint_seconds = 60 * checkpoint_minutes
        self.keep_every = keep_every
        self.resume_command = resume_command
        self.folder = run.path / "checkpoints"
        self.rows: list[dict[str, float]] = []
        self.meter = Meter()
        self.epoch = self.next_step = 0
        self.seconds_before = 0.0  # taken by earlier processes of this run
        self.images = 0
        self.epoch_seconds = 0.0
        self.started = self.last_saved = time.monotonic()
        self.received: list[signal.Signals] = []
        self.display = Display(job)

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far, over all its processes."""
        return self.seconds_before + time.monotonic() - self.started

    def execute(self) -> list[dict[str, float]]:
        """Run to the end; returns the rows of metrics.csv."""
        self.started = time.monotonic()
        resumed = self._load()
        self.loggers.run_started(dataclasses.replace(self.about, rows=tuple(self.rows), resumed=resumed))
        with stop_signals() as self.received, self.display.context():
            while not self._at_end():
                self._run_epoch()
                self._after_steps()
                self._finish_epoch()
        return self.rows

    def _at_end(self) -> bool:
        """Whether the run is complete. Depends on the rows only, so ranks and resumed runs come to the same answer."""
        if self.next_step or not self.rows:
            return False
        return self.epoch >= self.job.num_epochs or self.job.early_stop(self.rows) is not None

    def _run_epoch(self) -> None:
        self.last_saved = begun = time.monotonic()
        before, images_here = self.epoch_seconds, 0
        while self.next_step < self.job.steps_per_epoch:
            result = self.job.step(self.epoch, self.next_step)
            self.meter.add(self.next_step, result)
            self.images += result.num_images
            images_here += result.num_images
            self.next_step += 1
            if len(self.meter.pending) >= SYNC_STEPS or self.next_step == self.job.steps_per_epoch:
                self._check_finite()  # waits for the GPU
                self.loggers.step(self.meter.means(), self.epoch * self.job.steps_per_epoch + self.next_step)
            now = time.monotonic()
            self.epoch_seconds = before + now - begun
            self._show(images_here / (now - begun), now - begun, images_here)
            if self.next_step < self.job.steps_per_epoch:
                self._stop_or_save(due=now - self.last_saved > self.checkpoint_seconds)

    def _after_steps(self) -> None:
        for piece in self.job.after_steps(self.epoch):
            for text in piece.lines:
                self._say(text)
            self.display.piece(piece)
            self._stop_or_save(due=time.monotonic() - self.last_saved > self.checkpoint_seconds)

    def _finish_epoch(self) -> None:
        means = self.meter.means()
        row = {"epoch": float(self.epoch + 1), **self.job.end_epoch(self.epoch, means, self.run)}
        row["images_per_second"] = self.images / self.epoch_seconds
        row["seconds"] = self.seconds
        self.rows.append(row)
        figures = self.job.figures(self.epoch + 1) if self.loggers.want_figures else {}
        self.loggers.epoch(row, self.epoch + 1, figures)
        self._say(f"epoch {self.epoch + 1}/{self.job.num_epochs}: " + summary(row))
        self.epoch, self.next_step, self.meter = self.epoch + 1, 0, Meter()
        self.images, self.epoch_seconds = 0, 0.0
        self.display.epoch_done(self.epoch)
        self._save()
        if not self._at_end():
            self._stop_or_save(saved=True)

    def _check_finite(self) -> None:
        broken = self.meter.flush()
        if broken is None:
            return
        step, name = broken
        saved = checkpoints(self.folder)
        back = f"the checkpoint before it is {saved[-1]}" if saved else "no checkpoint had been written yet"
        raise RunError(
            f"{name} is not finite at epoch {self.epoch + 1}, step {step + 1}, learning rate "
            f"{self.job.learning_rate(self.epoch):g}; stopped, {back}. Start a new run with a lower --learning-rate"
        )

    def _stop_or_save(self, *, saved: bool = False, due: bool = False) -> None:
        """Stop or save on all ranks together as soon as one of them wants to.

        saved: whether there is a checkpoint of this step already. due: whether it is time for one.
        """
        number = self.received[0] if self.received else 0
        late = self.deadline is not None and time.monotonic() >= self.deadline
        asked = self.loggers.stop_requested or (self.stop is not None and self.stop.is_set())
        number, out_of_time, stop, save = self.ranks.largest(number, late, asked, due)
        if number:
            reason, code = f"stopped by {signal.Signals(number).name}", 128 + number
            if self.ranks.size > 1 and self.ranks.has_launcher() and process.parent_is_gone():
                reason = "stopped because torchrun is gone"
        elif stop:
            reason, code = "stopped on request", 0
        elif out_of_time:
            reason, code = "time budget used up", 0
        else:
            if save:
                self._save()
            return
        if not saved:
            self._check_finite()
            self._save()
        where = f"epoch {self.epoch + 1} of {self.job.num_epochs}, step {self.next_step}"
        self.run.log(f"{reason}; saved at {where}")
        raise Stopped(f"{reason}; saved at {where}. Continue with: {self.resume_command}", code)

    def _save(self) -> None:
        if self.meter.pending:
            self._check_finite()
        self.job.share()
        self._compare()
        if self.run.writes:
            self._write_checkpoint()
        self.last_saved = time.monotonic()

    def _compare(self) -> None:
        """RunError if weights, alphas, statistics or optimizers differ between the ranks."""
        self.ranks.compare(
            lambda: {name: fingerprint(part) for name, part in self.job.state_dict().items()},
            f"stopped at epoch {self.epoch + 1}, step {self.next_step}; the checkpoints are from before",
        )

    def _write_checkpoint(self) -> None:
        state = {
            "format": CHECKPOINT_FORMAT,
            "job": self.job.name,
            "epoch": self.epoch,
            "step": self.next_step,
            "sums": self.meter.sums,
            "counts": self.meter.counts,
            "images": self.images,
            "epoch_seconds": self.epoch_seconds,
            "seconds": self.seconds,
            "rows": self.rows,
            "random": random_state(),
            "state": self.job.state_dict(),
        }
        save_checkpoint(self.folder, self.epoch, self.next_step, state, self.keep_every)

    def _load(self) -> bool:
        """Continue from the newest checkpoint, on all ranks from that of rank 0. Returns whether there is one."""
        found = self.ranks.from_first(lambda: load_newest(self.folder, self._warn, _check_entries))
        if found is None:
            self._match_files()
            self._compare()
            return False
        path, state = found
        if state.get("format") != CHECKPOINT_FORMAT or state.get("job") != self.job.name:
            raise RunError(f"{path} was written by another version of darts_sg, or another job")
        with _fitting(path):
            self.job.load_state_dict(state["state"])
        self.epoch, self.next_step = state["epoch"], state["step"]
        self.meter.sums, self.meter.counts = state["sums"], state["counts"]
        self.images, self.epoch_seconds = state["images"], state["epoch_seconds"]
        self.seconds_before = state["seconds"]
        self.rows = state["rows"]
        if self.run.writes:
            set_aside_later(self.folder, path)
        self._match_files()
        with _fitting(path):
            set_random_state(state["random"])  # last: nothing may draw before the next step does
        self._compare()
        self.run.log(f"continued from {path.name}")
        return True

    def _match_files(self) -> None:
        """Remove what later epochs have left in the run folder: they are about to be repeated."""
        if self.run.writes and (removed := self.run.remove_later(self.epoch, at_end=self._at_end())):
            self.run.log(f"went back to epoch {self.epoch}, step {self.next_step}; removed {', '.join(removed)}")
        self.job.match_files(self.run, self.epoch)

    def _show(self, speed: float, seconds_here: float, images_here: int) -> None:
        steps_left = (self.job.num_epochs - self.epoch) * self.job.steps_per_epoch - self.next_step
        images_a_step = self.images / self.next_step
        self.display.update(self.epoch, self.next_step, speed, steps_left * images_a_step / speed)

    def _say(self, text: str) -> None:
        self.display.line(text)
        self.run.log(text)

    def _warn(self, text: str) -> None:
        self.run.warn(text)


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """RunError if the state in a checkpoint, which is intact, is not one of this run."""
    try:
        yield
    except RunError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if "memory" in str(error):
            raise
        raise RunError(
            f"{path} does not fit this run ({type(error).__name__}: {first_line(error)}); remove it to continue from "
            "the checkpoint before"
        ) from error


def _check_entries(state: dict[str, Any]) -> None:
    """ValueError if a checkpoint of this format lacks an entry, or has one of another type."""
    if state.get("format") != CHECKPOINT_FORMAT:
        if not isinstance(state.get("format"), int):
            raise ValueError("it is no checkpoint of a run")
        return  # of another version, which is an error of its own
    for name, kind in ENTRIES.items():
        if not isinstance(state.get(name), kind):
            raise ValueError(f"it lacks {name}, or has something else in its place")
