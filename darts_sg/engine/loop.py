"""The loop over epochs and steps that search and augment share: it measures, reports, saves, stops and resumes."""

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from darts_sg.engine.checkpoint import checkpoints, load_newest, random_state, save_checkpoint, set_random_state
from darts_sg.engine.distributed import Ranks, fingerprint
from darts_sg.engine.run_dir import RunDir
from darts_sg.errors import RunError, Stopped
from darts_sg.methods.early_stopping import EarlyStop, Row
from darts_sg.tasks.columns import clock, summary

SYNC_STEPS = 20  # steps between two looks at the losses, which a GPU has to be waited for
CHECKPOINT_FORMAT = 2


class StepResult(NamedTuple):
    """What a step gives back, over all ranks: images of its weight step, and means over a batch (scalar tensors, on
    the device)."""

    num_images: int
    means: Mapping[str, Tensor]


class Job(Protocol):
    """What the loop runs. Epochs and steps count from 0."""

    name: str
    num_epochs: int
    steps_per_epoch: int

    def learning_rate(self, epoch: int) -> float: ...

    def step(self, epoch: int, step: int) -> StepResult:
        """One training step."""

    def attempt(self, batch_size: int, *, recompute: bool) -> None:
        """Compute what a step with `batch_size` images computes and throw it away: does it fit into memory?"""

    def end_epoch(self, epoch: int, means: dict[str, float], run: RunDir) -> dict[str, float]:
        """Evaluate after an epoch; returns its columns of metrics.csv but epoch, images_per_second and seconds."""

    def early_stop(self, rows: Sequence[Row]) -> EarlyStop | None:
        """Whether the job is at its end after the last of `rows`, those of metrics.csv so far: depends on them only."""

    def log_tensorboard(self, writer: Any, epoch: int) -> None:
        """What goes to TensorBoard after an epoch beside the columns of metrics.csv."""

    def share(self) -> None:
        """Tell the other ranks what this one alone has found; on all of them together, before a checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Meter:
    """Means over an epoch of what the steps give back; reads the device only every few steps."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.pending: list[tuple[int, StepResult]] = []

    def add(self, step: int, result: StepResult) -> None:
        self.pending.append((step, result))

    def flush(self) -> tuple[int, str] | None:
        """Take in what is pending; returns the first (step, name) whose value is not finite, or None."""
        if not self.pending:
            return None
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
    """Within the context Ctrl-C and SIGTERM are noted instead of ending the process; a second Ctrl-C ends it."""
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is note:  # SIGTERM is ignored since another rank was lost
                signal.signal(number, handler)


class Display:
    """Progress bars with images/s and time left in a terminal, plain lines elsewhere."""

    def __init__(self, job: Job) -> None:
        self.console = Console(soft_wrap=True, highlight=False)
        self.job = job
        self.progress: Progress | None = None
        if sys.stdout.isatty():
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self.console,
            )
            self.all = self._task("epochs", job.num_epochs)
            self.epoch = self._task("steps of the epoch", job.steps_per_epoch)

    def context(self) -> AbstractContextManager[Any]:
        return self.progress or nullcontext()

    def line(self, text: str) -> None:
        self.console.print(text, markup=False)

    def update(self, epoch: int, step: int, speed: float, seconds_left: float) -> None:
        if self.progress is not None:
            self.progress.update(self.all, completed=epoch, speed="", left=f"{clock(seconds_left)} left")
            self.progress.update(self.epoch, completed=step, speed=f"{speed:.0f} images/s", left="")

    def epoch_done(self, epoch: int) -> None:
        if self.progress is not None:
            self.progress.update(self.all, completed=epoch)
            self.progress.update(self.epoch, completed=0)

    def _task(self, title: str, total: int) -> TaskID:
        assert self.progress is not None
        return self.progress.add_task(title, total=total, speed="", left="")


class Loop:
    """Runs a job in its run folder to the end, from the newest checkpoint if there is one.

    All ranks run it, and stop and save at the same steps; the first one writes. Raises Stopped after Ctrl-C, SIGTERM
    or the time budget, with everything saved; RunError when a loss is not finite, or the ranks have come to differ;
    RankLost when one is gone; OSError when the folder cannot be written.
    """

    def __init__(
        self,
        job: Job,
        run: RunDir,
        ranks: Ranks,
        *,
        time_budget: float | None,
        checkpoint_minutes: float,
        keep_every: int | None,
        resume_command: str,
    ) -> None:
        self.job, self.run, self.ranks = job, run, ranks
        self.deadline = None if time_budget is None else time.monotonic() + 60 * time_budget
        self.checkpoint_seconds = 60 * checkpoint_minutes
        self.keep_every = keep_every
        self.resume_command = resume_command
        self.folder = run.path / "checkpoints"
        self.rows: list[dict[str, float]] = []
        self.meter = Meter()
        self.epoch = self.next_step = 0
        self.seconds_before = 0.0  # of the processes that ran this job before
        self.images = 0
        self.epoch_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds that the run took so far, over all processes."""
        return self.seconds_before + time.monotonic() - self.started

    def execute(self) -> list[dict[str, float]]:
        """Run to the end; returns the rows of metrics.csv."""
        self.started = time.monotonic()
        self._load()
        self.display = Display(self.job)
        with (
            self._tensorboard() as writer,
            stop_signals() as self.received,
            self.display.context(),
        ):
            while not self._at_end():
                self._run_epoch()
                self._finish_epoch(writer)
        return self.rows

    def _at_end(self) -> bool:
        """The same on all ranks, which have the same rows, and after a resumption, which has them, too."""
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
                self._check_finite()  # waits for a GPU
            now = time.monotonic()
            self.epoch_seconds = before + now - begun
            self._show(images_here / (now - begun), now - begun, images_here)
            if self.next_step < self.job.steps_per_epoch:
                self._stop_or_save(due=now - self.last_saved > self.checkpoint_seconds)

    def _finish_epoch(self, writer: Any) -> None:
        means = self.meter.means()
        row = {"epoch": float(self.epoch + 1), **self.job.end_epoch(self.epoch, means, self.run)}
        row["images_per_second"] = self.images / self.epoch_seconds
        row["seconds"] = self.seconds
        self.rows.append(row)
        if writer is not None:
            for name, value in row.items():
                if name != "epoch":
                    writer.add_scalar(name, value, self.epoch + 1)
            self.job.log_tensorboard(writer, self.epoch + 1)
            writer.flush()
        self.run.write_metrics(self.rows)
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
        """Stop or save, all ranks together, if one of them is asked to or finds it due."""
        number = self.received[0] if self.received else 0
        late = self.deadline is not None and time.monotonic() >= self.deadline
        number, out_of_time, save = self.ranks.largest(number, late, due)
        if number:
            reason, code = f"stopped by {signal.Signals(number).name}", 128 + number
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
        """RunError if not all ranks have the same weights, alphas, statistics and optimizers."""
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

    def _load(self) -> None:
        found = self.ranks.from_first(lambda: load_newest(self.folder, self._warn))
        if found is None:
            self._compare()
            return
        path, state = found
        if state.get("format") != CHECKPOINT_FORMAT or state.get("job") != self.job.name:
            raise RunError(f"{path} was written by another version of darts_sg, or another job")
        self.job.load_state_dict(state["state"])
        self.epoch, self.next_step = state["epoch"], state["step"]
        self.meter.sums, self.meter.counts = state["sums"], state["counts"]
        self.images, self.epoch_seconds = state["images"], state["epoch_seconds"]
        self.seconds_before = state["seconds"]
        self.rows = state["rows"]
        set_random_state(state["random"])
        self._compare()
        self.run.log(f"continued from {path.name}")

    def _tensorboard(self) -> AbstractContextManager[Any]:
        """The writer of the run's TensorBoard events; None where another rank writes them."""
        if not self.run.writes:
            return nullcontext()
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        writer: AbstractContextManager[Any]
        writer = SummaryWriter(str(self.run.path / "tensorboard"), purge_step=self.epoch + 1)
        return writer

    def _show(self, speed: float, seconds_here: float, images_here: int) -> None:
        steps_left = (self.job.num_epochs - self.epoch) * self.job.steps_per_epoch - self.next_step
        images_a_step = self.images / self.next_step
        self.display.update(self.epoch, self.next_step, speed, steps_left * images_a_step / speed)

    def _say(self, text: str) -> None:
        self.display.line(text)
        self.run.log(text)

    def _warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)
        self.run.log(f"warning: {text}")
