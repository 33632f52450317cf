"""Runs one job of a study in this process: `python -m darts_sg.study.worker STUDY ID`.

All executors start jobs this way. The worker claims the job, says every few seconds that it is alive, and writes the
outcome; whoever starts it learns everything from the folder. It may be killed at any moment: the next worker finds the
state `running` without a living owner, and continues the run from its newest checkpoint.
"""

import argparse
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from darts_sg import process
from darts_sg.analysis.run_folder import read_metrics, read_run_config
from darts_sg.api import retrain, search
from darts_sg.engine.checkpoint import checkpoints
from darts_sg.engine.run_dir import InUse
from darts_sg.engine.setup import is_out_of_memory, peak_memory
from darts_sg.errors import RunError, Stopped, UsageError, first_line, one_line
from darts_sg.files import write_atomically
from darts_sg.study import claims
from darts_sg.study.energy import GpuPower, Rapl
from darts_sg.study.file import StudyFile
from darts_sg.study.folder import JobState, StudyFolder, now, plain
from darts_sg.study.genotypes import write_genotype
from darts_sg.study.plan import StudyJob, jobs_of
from darts_sg.study.ranks import run_ranks

DONE, FAILED, REFUSED, AGAIN = 0, 1, 3, 75
"""Exit codes: done (or nothing to do), failed, claimed by another process, saved and to be started again."""
LONGEST_FAILURE = 600  # characters of an error in a job's state


class Work:
    """One attempt at a job whose claim this process holds."""

    def __init__(
        self, folder: StudyFolder, study: StudyFile, job: StudyJob, claim: claims.Claim, startup: float = 0.0
    ) -> None:
        """startup: seconds that the process of this attempt has taken so far."""
        self.folder, self.study, self.job, self.claim = folder, study, job, claim
        self.state = folder.state(job.id)
        self.state = self.state.changed(startup=round(self.state.startup + startup, 2))
        self.stop = threading.Event()
        """Set when the run shall save and end."""
        self.lost = False
        """Whether another process has taken the job over."""
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._begun, self._cpu_begun = time.monotonic(), _cpu_seconds()
        self._seconds_before, self._cpu_before = self.state.seconds, self.state.cpu_seconds
        self._rapl, self._gpu = Rapl(), GpuPower()
        self._joules_before = self.state.cpu_joules or 0.0, self.state.gpu_joules or 0.0

    @property
    def processes(self) -> int:
        """The processes of the run; more than one are started by torchrun."""
        return self.study.executor.processes_of(self.job.kind)

    @property
    def run_dir(self) -> Path:
        return self.folder.run_dir(self.job.id)

    def update(self, **values: Any) -> None:
        """Write the state with new values, unless the job belongs to another process now."""
        with self._lock:
            if self.lost or not self.claim.beat():
                self.lost = True
                self.stop.set()
                return
            self.state = self.state.changed(heartbeat=now(), **self._costs(), **values)
            self.folder.write_state(self.state)

    def _costs(self) -> dict[str, Any]:
        """What the job has taken so far, over all attempts."""
        found: dict[str, Any] = {
            "seconds": round(self._seconds_before + time.monotonic() - self._begun, 2),
            "cpu_seconds": round(self._cpu_before + _cpu_seconds() - self._cpu_begun, 2),
        }
        energies = {"cpu_joules": self._rapl.joules(), "gpu_joules": self._gpu.joules()}
        for (name, joules), before in zip(energies.items(), self._joules_before, strict=True):
            if joules is not None:
                found[name] = round(before + joules, 1)
        return found | _measured(self.run_dir, self.state, self.processes)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Within the context a thread writes heartbeats and looks for the study's stop file."""
        thread = threading.Thread(target=self._heartbeats, name="heartbeats", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _heartbeats(self) -> None:
        beats = time.monotonic()
        while not self._ended.wait(min(1.0, claims.BEAT)):
            if self.folder.stop_file.exists() or self.folder.job_stop_file(self.job.id).exists():
                self.stop.set()
            if time.monotonic() - beats >= claims.BEAT:
                beats = time.monotonic()
                try:
                    self.update()
                except OSError as error:  # a full disk ends the run itself, which says so
                    print(f"warning: no heartbeat: {error}", file=sys.stderr)

    def run(self, threads: int | None, minutes: float | None, started: float | None) -> int:
        """Run the job and write the outcome; returns an exit code."""
        newest = _newest_checkpoint(self.run_dir)
        if self.state.state == "running" and not self.after_loss(newest):
            return FAILED
        self.update(
            state="running",
            owner=self.claim.owner.title,
            progress=newest,
            started=self.state.started or now(),
            ended=None,
        )
        try:
            with self.alive():
                self._run_job(threads, minutes, started)
        except Stopped as stopped:
            self.update(state="waiting", losses=0)
            self.folder.log(f"{self.job.id}: {one_line(str(stopped), LONGEST_FAILURE)}")
            return AGAIN
        except InUse as error:  # a process that was given up still writes there
            self.update(state="waiting")
            self.folder.log(f"{self.job.id}: {error}")
            return AGAIN
        except Exception as error:
            traceback.print_exc()
            return self.failed(error)
        if self.lost:
            return REFUSED
        self.update(state="done", losses=0, ended=now())
        self.folder.log(f"{self.job.id}: done in {self.state.seconds:.1f} s")
        return DONE

    def after_loss(self, newest: str) -> bool:
        """Count a worker that was lost; False if the job has failed by that."""
        losses = 1 if newest != self.state.progress else self.state.losses + 1
        most = self.study.executor.losses
        if losses <= most:
            self.update(losses=losses)
            self.folder.log(f"{self.job.id}: {self.state.owner} is gone; continuing from {newest or 'the start'}")
            return True
        text = f"its process was lost {losses} times in a row without a new checkpoint (killed, or the memory ran out)"
        self.update(state="failed", losses=losses, failure=text, ended=now())
        self.folder.log(f"{self.job.id}: failed: {text}")
        return False

    def failed(self, error: Exception) -> int:
        """Write an error down: the job waits for its next attempt, or has failed."""
        expected = isinstance(error, RunError | UsageError | OSError)
        text = str(error) if expected and str(error) else f"{type(error).__name__}: {first_line(error)}"
        text = one_line(" ".join(text.split()), LONGEST_FAILURE)
        memory = is_out_of_memory(error) or (isinstance(error, RunError) and "out of memory" in text)
        attempts = self.state.attempts + 1
        final = attempts > self.study.executor.retries
        self.update(
            state="failed" if final else "waiting",
            attempts=attempts,
            failure=text,
            out_of_memory=self.state.out_of_memory + memory,
            **({"ended": now()} if final else {}),
        )
        self.folder.log(f"{self.job.id}: attempt {attempts} failed: {text}")
        return FAILED

    def _run_job(self, threads: int | None, minutes: float | None, started: float | None) -> None:
        """The run of a job, new or continued, and the genotypes that it leads to."""
        job, folder = self.job, self.folder
        of_process: dict[str, Any] = {"time_budget": minutes, "stop": self.stop, "started": started}
        start: Callable[..., Any] = search if job.kind == "search" else retrain
        if self.processes > 1:
            self._run_ranks(threads, minutes, started)
        elif (self.run_dir / "config.yaml").is_file():
            start(resume=self.run_dir, **of_process)
        else:
            start(**self._options(threads), **of_process)
        if job.kind == "search":
            for genotype in self.study.genotypes():
                if (genotype.space, genotype.method, genotype.seed) == (job.space, job.method, job.seed):
                    write_genotype(folder, self.study, genotype, job.id)

    def _options(self, threads: int | None) -> dict[str, Any]:
        """The options of a new run."""
        job = self.job
        options = {"threads": threads, **job.options, "run_dir": self.run_dir}
        if job.kind == "retrain" and job.genotype_kind != "model":
            assert job.found is not None
            needed = job.depends_on[0] if job.depends_on else ""
            options["genotype"] = str(write_genotype(self.folder, self.study, job.found, needed))
        return options

    def _run_ranks(self, threads: int | None, minutes: float | None, started: float | None) -> None:
        """The run of a job in several processes, by the command that starts them by hand."""
        words: list[str] = [self.job.name]
        if (self.run_dir / "config.yaml").is_file():
            words += ["--resume", str(self.run_dir)]
        else:
            file = self.folder.path / "jobs" / f"{self.job.id}.yaml"
            options = {name: plain(value) for name, value in self._options(threads).items() if value is not None}
            write_atomically(file, yaml.safe_dump(options, allow_unicode=True))
            words += ["--config", str(file)]
        if minutes is not None:
            taken = 0.0 if started is None else (time.monotonic() - started) / 60
            words += ["--time-budget", f"{max(0.01, minutes - taken):.4f}"]
        code, problem = run_ranks(words, self.processes, self.stop)
        if (self.run_dir / "report.md").is_file():  # the last file of a run
            return
        if self.stop.is_set() or code == 0:
            raise Stopped("stopped on request" if self.stop.is_set() else "time budget used up", 0)
        if "another process is running in" in problem:  # ranks of a worker that was lost still save
            raise InUse(problem)
        raise RunError(problem or f"torchrun ended with code {code}; see jobs/{self.job.id}.out")


def work(
    folder: StudyFolder,
    job_id: str,
    *,
    over: str = "",
    patience: float = 0.0,
    threads: int | None = None,
    minutes: float | None = None,
    started: float | None = None,
) -> int:
    """Claim a job and run it; returns one of the exit codes above.

    over: the token of a claim that may be taken over (claims.Watch). patience: seconds to wait for a claim whose owner
    may be gone. threads: CPU threads of a new run. minutes: time budget, from `started` on the clock of time.monotonic,
    which is when the process of this job began.
    """
    startup = 0.0 if started is None else time.monotonic() - started
    study = folder.study()
    job = next((job for job in jobs_of(study) if job.id == job_id), None)
    if job is None:
        raise UsageError(f"{folder.file} has no job {job_id}")
    claim = _claim(folder, job_id, over, patience)
    if claim is None:
        return REFUSED
    try:
        if folder.state(job_id).state in ("done", "failed"):
            return DONE
        stops = folder.stop_file, folder.job_stop_file(job_id)
        if any(file.exists() for file in stops) or any(folder.state(each).state != "done" for each in job.depends_on):
            return AGAIN
        attempt = Work(folder, study, job, claim, startup)
        with _stopping(attempt.stop):
            return attempt.run(threads, minutes, started)
    finally:
        claim.release()


def note_end(folder: StudyFolder, job_id: str, text: str, *, killed: bool) -> None:
    """Write down that a worker ended before it could write anything.

    killed: by a signal, which counts as a loss; otherwise as a failed attempt, for the reason in `text`.
    """
    study = folder.study()
    job = next(job for job in jobs_of(study) if job.id == job_id)
    claim = claims.take(folder.path / "claims", job_id)
    if claim is None:
        return
    try:
        if folder.state(job_id).state in ("waiting", "running"):
            work = Work(folder, study, job, claim)
            if not killed:
                work.failed(RunError(text))
            elif work.after_loss(_newest_checkpoint(work.run_dir)):
                work.update(state="waiting")
    finally:
        claim.release()


def _claim(folder: StudyFolder, job_id: str, over: str, patience: float) -> claims.Claim | None:
    """The claim on a job; waits until its owner is known to be gone for at most `patience` seconds."""
    watch, deadline = claims.Watch(folder.path / "claims"), time.monotonic() + patience
    while True:
        claim = claims.take(folder.path / "claims", job_id, over=over)
        if claim is not None or time.monotonic() > deadline:
            return claim
        over = watch.lost(job_id) or over
        time.sleep(min(2.0, claims.BEAT))


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Within the context SIGTERM and Ctrl-C set `stop`, also before and after the loop, which has handlers of its own.

    Python allows signal handlers in the main thread only; in any other thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cpu_seconds() -> float:
    """Processor time so far of this process, all its threads, and of the processes that it started and that ended."""
    return sum(os.times()[:4])


def _newest_checkpoint(run_dir: Path) -> str:
    found = checkpoints(run_dir / "checkpoints")
    return found[-1].name if found else ""


def _measured(run_dir: Path, state: JobState, processes: int = 1) -> dict[str, Any]:
    """Device, speed and memory of a run as far as it has got; empty before it has begun."""
    config, metrics = run_dir / "config.yaml", run_dir / "metrics.csv"
    if not config.is_file():
        return {}
    found: dict[str, Any] = {}
    try:
        import torch

        _, _, environment = read_run_config(config)
        threads = environment.get("threads")
        device = str(environment.get("device", ""))
        plural = "" if threads == 1 else "s"
        several = f"{processes} processes, " if processes > 1 else ""
        found["device"] = f"{device} ({environment.get('device_name', 'unknown')}, {several}{threads} thread{plural})"
        if processes == 1:
            peak = peak_memory(torch.device(device))
        else:  # of the ranks, once they have ended; what their GPUs held is not known here
            largest = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            peak = processes * largest if device == "cpu" else 0
        found["peak_memory"] = max(peak, state.peak_memory or 0)
        if metrics.is_file() and (rows := read_metrics(metrics)):
            speeds = [row["images_per_second"] for row in rows if row.get("images_per_second")]
            if speeds:  # epochs have equally many images: their mean speed is the harmonic mean
                found["images_per_second"] = round(len(speeds) / sum(1 / speed for speed in speeds), 2)
    except (UsageError, RuntimeError):  # a file of the run is damaged, which the run itself reports
        return found
    return found


def main() -> int:
    """The command line of a worker; executors write it."""
    parser = argparse.ArgumentParser(prog="darts_sg.study.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("job")
    parser.add_argument("--over", default="")
    parser.add_argument("--patience", type=float, default=0.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--minutes", type=float)
    given = parser.parse_args()
    try:
        return work(
            StudyFolder.open(given.folder),
            given.job,
            over=given.over,
            patience=given.patience,
            threads=given.threads,
            minutes=given.minutes,
            started=process.started(),
        )
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    process.end(main())
