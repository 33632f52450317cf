"""Executors: what starts the workers of a study. Each is one module beside this one.

An executor starts `python -m darts_sg.study.worker` somewhere and tells when it has ended. It decides nothing: which
jobs may start, and what their end means, stands in the study's folder.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from darts_sg.errors import UsageError
from darts_sg.registry import unknown_name

EXECUTORS = ("local", "ray", "slurm")
WORKER = (sys.executable, "-m", "darts_sg.study.worker")
"""The command of a worker, without its arguments."""


class Request(NamedTuple):
    """A job that may start."""

    job_id: str
    over: str
    """The token of the claim of a lost worker, or an empty text."""
    minutes: float | None
    """Time budget of this attempt."""
    memory: int | None
    """Bytes that the job needs, if that is known."""
    processes: int = 1
    """Processes of the job, each with a GPU of its own where jobs use GPUs."""


class Ended(NamedTuple):
    """A worker that has ended."""

    job_id: str
    code: int | None
    """Its exit code, negative for a signal; None if it was lost with its machine."""
    text: str = ""
    """The last line of its output."""


@dataclass(frozen=True)
class Settings:
    """Where and how jobs run, from the command line and the file."""

    jobs: int | None = None
    """Jobs at a time; None: as many as there is room for."""
    threads: int | None = None
    """CPU threads of a process."""
    processes: int = 1
    """Processes of the largest job."""
    device: str = "auto"
    """The option --device of the jobs, which decides whether they need a GPU."""
    address: str | None = None
    """ray: the cluster to join; None starts one on this machine."""
    slurm: dict[str, str | int] = field(default_factory=dict)
    """slurm: partition, account and the like."""
    minutes: float | None = None
    """Time budget of an attempt."""


class Executor(Protocol):
    """Starts workers and tells which have ended."""

    def start(self, requests: Sequence[Request], busy: int = 0) -> list[str]:
        """Start those jobs for which there is room now, in this order; returns their ids.

        busy: jobs that other coordinators run on this machine.
        """

    def running(self) -> set[str]:
        """The ids of the jobs whose worker has not ended."""

    def ended(self) -> list[Ended]:
        """The workers that have ended since the last call."""

    def wait(self, seconds: float) -> None:
        """Return once a worker has ended, after that time at the latest."""

    def stop(self) -> None:
        """Ask all workers to save and end."""

    def kill(self) -> None:
        """End all workers at once; their jobs continue from the newest checkpoint some day."""

    def close(self) -> None:
        """Give resources back, once nothing runs any more."""

    def describe(self) -> str:
        """Where jobs run, in words."""


def make_executor(name: str, folder: Path, settings: Settings) -> Executor:
    """The executor called `name`; UsageError if there is none, or if its package is not installed."""
    if name not in EXECUTORS:
        raise UsageError(unknown_name("executor", name, list(EXECUTORS)))
    module: Any = importlib.import_module(f"darts_sg.study.executors.{name}")
    executor: Executor = module.make(folder, settings)
    return executor


def worker_words(folder: Path, request: Request, threads: int | None, patience: float = 0.0) -> list[str]:
    """The arguments of the worker for a job."""
    words = [str(folder.absolute()), request.job_id]
    for flag, value in (("--over", request.over), ("--threads", threads), ("--minutes", request.minutes)):
        if value not in (None, ""):
            words += [flag, str(value)]
    return [*words, "--patience", str(patience)] if patience else words


def last_line(path: Path) -> str:
    """The last line of a worker's output that is not blank."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
