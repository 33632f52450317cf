"""Runs a study: starts its jobs through an executor until each is done or has failed.

The folder is the only truth. A coordinator keeps nothing that another one could not read there, so it may be killed at
any moment, and several may work in one folder.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType

from darts_sg.config import JOBS
from darts_sg.errors import RunError, Stopped, UsageError
from darts_sg.files import write_atomically
from darts_sg.invocation import argument, program
from darts_sg.study import claims
from darts_sg.study.executors import Ended, Executor, Request
from darts_sg.study.file import StudyFile
from darts_sg.study.folder import JobState, StudyFolder
from darts_sg.study.plan import StudyJob, jobs_of
from darts_sg.study.worker import AGAIN, DONE, FAILED, REFUSED, note_end

POLL = 0.5
"""Seconds between two looks at the folder."""
PAUSE = 5.0
"""Seconds before a job is started again whose claim another process had."""
STOPPING = 600.0
"""Seconds that jobs may take to save."""


def prepare_folder(path: Path, study: StudyFile) -> StudyFolder:
    """The folder of a study, new or continued: study.yaml is the given file, and each job has a state.

    A job that has begun keeps its options. Raises UsageError if the file says other ones now, or if the folder holds
    anything but a study.
    """
    folder = StudyFolder(path)
    if path.exists() and not folder.file.is_file():
        if not path.is_dir():
            raise UsageError(f"{path} is no folder; choose another --dir")
        if any(each.name not in ("jobs", "log.txt") and each.name[0] != "." for each in path.iterdir()):
            raise UsageError(f"{path} is not empty and no study; choose another --dir")
    jobs = jobs_of(study)
    known = folder.states() if path.is_dir() else {}
    for job in jobs:
        if job.id in known:
            _refuse_other_options(folder, job, known[job.id], study)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--dir {path} cannot be made: {error.strerror}; choose another") from None
    folder.remove_half_written()
    for job in jobs:
        folder.add_state(job)
    if not folder.file.is_file() or folder.file.read_text(encoding="utf-8") != study.text:
        write_atomically(folder.file, study.text)
    return folder


def _refuse_other_options(folder: StudyFolder, job: StudyJob, state: JobState, study: StudyFile) -> None:
    """UsageError if a job that has begun would have another result with the options that the file says now.

    A job that has not begun takes them.
    """
    new = folder.first_state(job)
    if new.options == state.options:
        return
    free = {f.name for f in fields(JOBS[job.name]) if f.metadata["free"]}
    names = sorted(name for name in {*new.options, *state.options} - free)
    changed = [name for name in names if new.options.get(name) != state.options.get(name)]
    if changed and (folder.run_dir(job.id) / "config.yaml").is_file():
        name, section = changed[0], "search" if job.kind == "search" else "retrain"
        texts = [str(options[name]) if name in options else "not given" for options in (new.options, state.options)]
        raise study.source.error(
            (section, name),
            f"{job.id} has begun with other options: {name} is {texts[0]}, then {texts[1]}; set it back, or choose "
            "another --dir",
        )
    claim = claims.take(folder.path / "claims", job.id)
    if claim is not None:
        folder.write_state(state.changed(options=new.options))
        claim.release()


@dataclass
class Progress:
    """What a look at the folder found."""

    ready: list[Request]
    others: list[str]
    """Jobs that run in workers of other coordinators."""
    busy: int
    """How many of these run on this machine."""
    waiting: list[str]
    """Jobs whose dependencies still run, and jobs that may start a little later."""
    failed: list[str]
    blocked: list[str]
    """Jobs that depend on a failed one."""
    done: list[str]


class Coordinator:
    """Starts the jobs of a study and waits for them."""

    def __init__(
        self,
        folder: StudyFolder,
        study: StudyFile,
        executor: Executor,
        *,
        deadline: float | None = None,
        started: float | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """deadline: when jobs are to be saved and the coordinator ends, on the clock of time.monotonic.

        started: when the process of the study began, on the same clock; log.txt says how long ago that was.
        say: prints a line.
        """
        self.started = time.monotonic() if started is None else started
        self.folder, self.study, self.executor, self.deadline, self.say = folder, study, executor, deadline, say
        self.jobs = jobs_of(study)
        self.watch = claims.Watch(folder.path / "claims")
        self.before: dict[str, JobState] = {}
        """The states with which the jobs were started here."""
        self.not_before: dict[str, float] = {}
        """When jobs that another process had claimed may be started again."""
        self.received: list[int] = []

    def run(self) -> None:
        """Run to the end.

        Raises Stopped after a signal, `study stop` or the end of the time budget, and RunError if a job has failed.
        """
        total = len(self.jobs)
        self.folder.log(f"coordinator: {total} jobs on {self.executor.describe()}, {self._age():.1f} s after its start")
        self.say(f"{self.study.title}: {total} jobs on {self.executor.describe()}, folder {self.folder.path}")
        try:
            with self._signals():
                while True:
                    self._take_ended()
                    progress = self._look()
                    if reason := self._why_stop():
                        self._stop(*reason)
                    for job_id in self.executor.start(progress.ready, progress.busy):
                        self.say(f"started  {job_id}")
                    active = self.executor.running() or progress.others or progress.waiting or progress.ready
                    if not active:
                        break
                    self.executor.wait(POLL)
        finally:
            if self.executor.running():  # an error here: jobs are saved by their workers
                self.executor.stop()
            self.executor.close()
        self._finish(progress)

    def _look(self) -> Progress:
        """Read the states of all jobs and tell which may start."""
        states, running = self.folder.states(), self.executor.running()
        found = Progress([], [], 0, [], [], [], [])
        for job in self.jobs:
            state = states[job.id]
            if state.state in ("done", "failed"):
                (found.done if state.state == "done" else found.failed).append(job.id)
                continue
            if job.id in running:
                continue
            if set(job.depends_on) & {*found.failed, *found.blocked}:
                found.blocked.append(job.id)
            elif any(states[each].state != "done" for each in job.depends_on):
                found.waiting.append(job.id)
            elif (token := self.watch.lost(job.id)) is None:
                found.others.append(job.id)
                owner = claims.owner_of(self.watch.folder, job.id)
                found.busy += owner is not None and claims.is_here(owner)
            elif time.monotonic() < self.not_before.get(job.id, 0.0):
                found.waiting.append(job.id)
            else:
                self.before[job.id] = state
                found.ready.append(self._request(job, token, states))
        return found

    def _request(self, job: StudyJob, token: str, states: Mapping[str, JobState]) -> Request:
        processes = self.study.executor.processes_of(job.kind)
        return Request(job.id, token, self._minutes(), self._memory(job, states), processes)

    def _minutes(self) -> float | None:
        """The time budget of a job that starts now."""
        minutes = self.study.executor.minutes
        if self.deadline is None:
            return minutes
        left = max(0.01, (self.deadline - time.monotonic()) / 60)
        return left if minutes is None else min(minutes, left)

    def _memory(self, job: StudyJob, states: Mapping[str, JobState]) -> int | None:
        """Bytes that a job needs: as the file says, or at most that jobs like it have taken on a CPU."""
        if self.study.executor.memory is not None:
            return self.study.executor.memory
        alike = [
            state.peak_memory
            for state in states.values()
            if (state.kind, state.space, state.method) == (job.kind, job.space, job.method)
            and state.peak_memory
            and state.device.startswith("cpu")
        ]
        return max(alike, default=None)

    def _take_ended(self) -> None:
        """Report the workers that have ended, and write down what they could not."""
        for ended in self.executor.ended():
            state = self.folder.state(ended.job_id)
            if ended.code == REFUSED:
                self.not_before[ended.job_id] = time.monotonic() + PAUSE
            elif ended.code not in (DONE, AGAIN):
                state = self._crashed(ended, state)
            self._report(state, ended)

    def _crashed(self, ended: Ended, state: JobState) -> JobState:
        """A worker ended without an outcome. If it had begun its job, the next one finds that out and continues."""
        if state != self.before.get(ended.job_id) or ended.code in (None, AGAIN, DONE):
            return state
        killed = ended.code is not None and ended.code < 0
        how = f"by signal {-(ended.code or 0)}" if killed else f"with code {ended.code}"
        text = f"the worker ended {how} before it began{f': {ended.text}' if ended.text else ''}"
        note_end(self.folder, ended.job_id, text, killed=killed)
        return self.folder.state(ended.job_id)

    def _report(self, state: JobState, ended: Ended) -> None:
        states = self.folder.states()
        done = sum(states[job.id].state == "done" for job in self.jobs)
        place = f"({done}/{len(self.jobs)} done)"
        if state.state == "done":
            self.say(f"done     {state.id}, {state.seconds:.0f} s {place}")
        elif state.state == "failed":
            self.say(f"failed   {state.id}: {state.failure} {place}")
        elif ended.code == FAILED:
            self.say(f"again    {state.id}: {state.failure}")
        elif ended.code == AGAIN:
            self.say(f"saved    {state.id}")
        elif ended.code != REFUSED:
            self.say(f"lost     {state.id}: its process is gone; it continues from its newest checkpoint")

    def _why_stop(self) -> tuple[str, int] | None:
        """The reason to stop, with the exit code; None to go on."""
        if self.received:
            number = self.received[0]
            return f"stopped by {signal.Signals(number).name}", 128 + number
        if self.folder.stop_file.exists():
            return "stopped by `study stop`", 0
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "time budget used up", 0
        return None

    def _stop(self, reason: str, code: int) -> None:
        """Have all jobs saved, then raise Stopped."""
        self.say(f"{reason}; waiting until {len(self.executor.running())} jobs are saved")
        self.executor.stop()
        deadline = time.monotonic() + STOPPING
        while self.executor.running() and time.monotonic() < deadline and len(self.received) < 2:
            self._take_ended()
            time.sleep(min(POLL, 0.2))
        if self.executor.running():
            self.executor.kill()
        self._take_ended()
        self.folder.log(f"coordinator: {reason}")
        raise Stopped(f"{reason}. Continue with: {continue_command(self.folder)}", code)

    def _finish(self, progress: Progress) -> None:
        """Write the results, and report what failed."""
        from darts_sg.study.results import write_results  # not before: it imports matplotlib

        write_results(self.folder.path)
        outcome = f"{len(progress.done)} jobs done, {len(progress.failed)} failed"
        self.folder.log(f"coordinator: {outcome}, {self._age():.1f} s after its start")
        if progress.failed:
            states = self.folder.states()
            first = states[progress.failed[0]]
            more = f"; {len(progress.blocked)} more wait for them" if progress.blocked else ""
            number = len(progress.failed)
            raise RunError(
                f"{number} job{'s' * (number > 1)} failed{more}: {first.id}: {first.failure}; start again with "
                f"{study_command('retry', self.folder)}, then {continue_command(self.folder)}"
            )
        self.say(f"all {len(progress.done)} jobs are done: {self.folder.path}")

    def _age(self) -> float:
        return time.monotonic() - self.started

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Within the context Ctrl-C and SIGTERM are noted; a second one ends the jobs at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self.received.append(number)

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def study_command(word: str, folder: StudyFolder) -> str:
    """The command line `study WORD DIR`."""
    return f"{program('study')} {word} {argument(folder.path)}"


def continue_command(folder: StudyFolder) -> str:
    """The command line that continues a study."""
    return f"{program('study')} run {argument(folder.file)} --dir {argument(folder.path)}"


def reset(folder: StudyFolder, job_ids: Sequence[str] = ()) -> list[str]:
    """Let failed jobs start anew, all or those named; returns their ids.

    Raises UsageError if a name is none of the folder, or the job has not failed.
    """
    states = folder.states()
    for job_id in job_ids:
        if job_id not in states:
            raise UsageError(f"{folder.path} has no job {job_id}; see {study_command('status', folder)}")
        if states[job_id].state != "failed":
            raise UsageError(f"{job_id} has not failed: it is {states[job_id].state}")
    found = [state for state in states.values() if state.state == "failed" and (not job_ids or state.id in job_ids)]
    reset_ids = []
    for state in found:
        claim = claims.take(folder.path / "claims", state.id)
        if claim is not None:
            folder.write_state(state.changed(state="waiting", attempts=0, losses=0, ended=None))
            claim.release()
            reset_ids.append(state.id)
    folder.log(f"retry: {', '.join(reset_ids) or 'nothing'}")
    return reset_ids


def stop(folder: StudyFolder, patience: float = STOPPING, say: Callable[[str], None] = print) -> None:
    """Have all jobs of a study saved and its coordinators end; waits for the jobs.

    Raises RunError if one of them is still alive after `patience` seconds.
    """
    write_atomically(folder.stop_file, "")
    folder.log("stop asked for")
    watch, deadline = claims.Watch(folder.path / "claims"), time.monotonic() + patience
    while True:
        alive = [state.id for state in folder.states().values() if watch.lost(state.id) is None]
        if not alive:
            break
        if time.monotonic() > deadline:
            raise RunError(f"{len(alive)} jobs are still running after {patience:.0f} s, among them {alive[0]}")
        time.sleep(POLL)
    say(f"nothing runs in {folder.path} any more; continue with: {continue_command(folder)}")
