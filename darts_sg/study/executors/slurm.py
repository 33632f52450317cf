"""Runs workers as Slurm jobs, through submitit. Needs the extra `slurm`.

All jobs that may start are submitted together, as one array. A job has a time limit; the run has a time budget below
it, saves and is submitted again. A preempted job saves, too, and Slurm queues it again by itself. Jobs in the queue do
not depend on the coordinator: another one finds their numbers in slurm/ID.job. The study's folder and the data must be
at the same path on all nodes.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from darts_sg.errors import UsageError, first_line
from darts_sg.files import write_atomically
from darts_sg.study import executors
from darts_sg.study.claims import LOST_AFTER
from darts_sg.study.executors import Ended, Request, Settings, worker_words
from darts_sg.study.executors.remote import WorkerTask, worker_environment
from darts_sg.study.folder import StudyFolder

DEFAULT_MINUTES = 24 * 60
MARGIN = 0.1
"""Part of the time limit that a run leaves for the start of the process and for saving, at least MARGIN_MINUTES."""
MARGIN_MINUTES = 2.0
SIGNAL_DELAY = 90
"""Seconds before the time limit at which Slurm warns a job."""
PATIENCE = 2 * LOST_AFTER
"""Seconds that a worker waits for the heartbeat of an earlier one, for a job that Slurm queues again after a crash."""


class SlurmTask(WorkerTask):
    """A worker in a Slurm job; submitit calls `checkpoint` when Slurm warns the job."""

    def checkpoint(self) -> Any:
        """Save, and have Slurm queue the same job again."""
        from submitit.helpers import DelayedSubmission

        self.save()
        return DelayedSubmission(self)


class OnSlurm:
    """Arrays of Slurm jobs."""

    def __init__(self, executor: Any, folder: Path, settings: Settings, limit: float) -> None:
        """executor: submitit's. limit: minutes of a job."""
        self._executor, self.folder, self.settings, self.limit = executor, StudyFolder(folder), settings, limit
        self.threads = settings.threads or 1
        self._jobs: dict[str, Any] = dict(self._queued())

    def _queued(self) -> Iterator[tuple[str, Any]]:
        """The jobs that an earlier coordinator has submitted and that have not ended."""
        if self._executor.cluster == "debug":
            return  # its jobs run in the process that submits them
        from submitit.core.plugins import get_executors

        job_class = get_executors()[self._executor.cluster].job_class  # AutoExecutor's own asks no cluster
        for path in (self.folder.path / "slurm").glob("*.job"):
            job = job_class(self._executor.folder, path.read_text().strip())
            if not job.done():
                yield path.stem, job

    @property
    def budget(self) -> float:
        """Minutes of a run, below the limit of its job."""
        return max(self.limit / 2, self.limit - max(MARGIN_MINUTES, MARGIN * self.limit))

    def describe(self) -> str:
        most = f", at most {self.settings.jobs} at a time" if self.settings.jobs else ""
        return f"Slurm, arrays of jobs of {self.limit:g} minutes{most}"

    def start(self, requests: Sequence[Request], busy: int = 0) -> list[str]:
        if not requests:
            return []
        memory = max((request.memory or 0 for request in requests), default=0)
        if memory and "mem" not in self.settings.slurm:
            self._executor.update_parameters(mem_gb=max(1, -(-memory // 2**30)))
        started: list[str] = []
        for processes in sorted({request.processes for request in requests}):
            started += self._submit([request for request in requests if request.processes == processes], processes)
        return started

    def _submit(self, requests: Sequence[Request], processes: int) -> list[str]:
        """Submit jobs of so many processes as one array; each job has them on one node."""
        self._executor.update_parameters(**_places(self.settings, processes))
        tasks = []
        for request in requests:
            minutes = self.budget if request.minutes is None else min(self.budget, request.minutes)
            words = worker_words(self.folder.path, request._replace(minutes=minutes), self.threads, PATIENCE)
            output = (self.folder.path / "jobs" / f"{request.job_id}.out").absolute()
            self.folder.job_stop_file(request.job_id).unlink(missing_ok=True)
            environment = worker_environment(self.threads)
            tasks.append(SlurmTask([*executors.WORKER, *words], output, Path.cwd(), environment))
        with self._executor.batch():
            jobs = [self._executor.submit(task) for task in tasks]
        for request, job in zip(requests, jobs, strict=True):
            self._jobs[request.job_id] = job
            write_atomically(self.folder.path / "slurm" / f"{request.job_id}.job", f"{job.job_id}\n")
        return [request.job_id for request in requests]

    def running(self) -> set[str]:
        return set(self._jobs)

    def ended(self) -> list[Ended]:
        found = []
        for job_id, job in list(self._jobs.items()):
            if not job.done():
                continue
            del self._jobs[job_id]
            self.folder.job_stop_file(job_id).unlink(missing_ok=True)
            try:
                found.append(Ended(job_id, *job.result()))
            except Exception as error:  # submitit's, for a job that was cancelled or lost with its node
                found.append(Ended(job_id, None, first_line(error)))
        return found

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)  # asking Slurm more often would be a load for it

    def stop(self) -> None:
        """Cancel what has not begun; what runs finds its stop file at the next heartbeat."""
        for job_id, job in list(self._jobs.items()):
            if job.state == "RUNNING":
                self.folder.job_stop_file(job_id).touch()
            else:
                job.cancel(check=False)
                del self._jobs[job_id]

    def kill(self) -> None:
        for job in self._jobs.values():
            job.cancel(check=False)

    def close(self) -> None:
        """Nothing to give back."""


def make(folder: Path, settings: Settings) -> OnSlurm:
    """An executor that submits to Slurm from this machine; UsageError if submitit or Slurm is missing.

    The setting `cluster` may be `local` or `debug`, submitit's executors that need no Slurm: to rehearse a study.
    """
    try:
        import submitit
    except ImportError:
        raise UsageError("--executor slurm needs the package submitit: pip install 'darts_sg[slurm]'") from None
    given = dict(settings.slurm)
    cluster = str(given.pop("cluster", "slurm"))
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise UsageError("--executor slurm: there is no sbatch on this machine; run it where Slurm jobs are submitted")
    limit_of_job = given.pop("time", None)
    if limit_of_job is not None and (not isinstance(limit_of_job, int) or limit_of_job <= 0):
        raise UsageError(f"--slurm time={limit_of_job}: expected the time limit of a job in minutes, such as 60")
    limit = float(limit_of_job or (settings.minutes and settings.minutes + MARGIN_MINUTES) or DEFAULT_MINUTES)
    try:
        executor = submitit.AutoExecutor(folder=(folder / "slurm").absolute(), cluster=cluster)
        executor.update_parameters(**parameters(given, settings, limit))
    except (ValueError, NameError, AssertionError, RuntimeError) as error:
        raise UsageError(f"--executor slurm: {first_line(error)}") from None
    return OnSlurm(executor, folder, settings, limit)


def _places(settings: Settings, processes: int) -> dict[str, int]:
    """CPUs and GPUs of a job of so many processes, unless the settings name GPUs in their own way."""
    found = {"cpus_per_task": (settings.threads or 1) * processes}
    if settings.device.startswith("cuda") and not {"gres", "gpus_per_node"} & settings.slurm.keys():
        found["gpus_per_node"] = processes
    return found


def parameters(given: dict[str, str | int], settings: Settings, limit: float) -> dict[str, Any]:
    """What submitit is told: settings that it knows by name, all others as options of sbatch."""
    from submitit.slurm.slurm import SlurmExecutor

    found: dict[str, Any] = {
        "name": "study",
        "timeout_min": max(1, round(limit)),
        "slurm_signal_delay_s": SIGNAL_DELAY,
    }
    found |= _places(settings, 1)
    if settings.jobs:
        found["slurm_array_parallelism"] = settings.jobs
    known, others = SlurmExecutor._valid_parameters(), {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name in known:
            found[f"slurm_{name}"] = value
        else:
            others[key.replace("_", "-")] = value
    if others:
        found["slurm_additional_parameters"] = others
    return found
