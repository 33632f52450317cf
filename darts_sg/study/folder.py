"""The folder of a study, which is the only truth about it: nothing of a study lives in memory alone.

study.yaml            the file as it was given
runs/ID/              an ordinary run folder for each job
jobs/ID.json          a JobState for each job: waiting, running, done or failed; attempts, owner, costs
claims/ID.N           who runs a job, or ran it; see claims.py
genotypes/NAME.yaml   each genotype of the study once it is known: found, derived, drawn, or of the zoo
log.txt               what the coordinators and workers did, with the time, host and process
jobs/ID.out           what the worker of a job printed
stop                  while it exists, jobs save and end, and none is started; jobs/ID.stop for one job alone
results.json          statistics of the finished study; report.md and its pictures stand beside it
"""

import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from darts_sg.engine.run_dir import TEMPORARY
from darts_sg.errors import UsageError, one_line, quoted
from darts_sg.files import read_text, why, write_atomically
from darts_sg.study.file import StudyFile, parse_study
from darts_sg.study.plan import StudyJob
from darts_sg.yaml_files import read_yaml_text

State = Literal["waiting", "running", "done", "failed"]
MAX_BYTES = 2**20  # a state has about 2 KiB
WRITTEN_WITHIN = 600.0  # seconds that no file of a study takes to be written


@dataclass(frozen=True)
class JobState:
    """What is known of a job: the content of jobs/ID.json. Only the owner of the job's claim replaces it."""

    id: str
    kind: str
    """search or retrain."""
    space: str
    method: str
    genotype: str
    genotype_kind: str
    seed: int
    depends_on: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the run that the study sets, as plain values."""
    state: State = "waiting"
    attempts: int = 0
    """Attempts that ended with an error; more than executor.retries fail the job."""
    losses: int = 0
    """How often in a row the process of the job was lost without a newer checkpoint."""
    progress: str = ""
    """The newest checkpoint when the job was last started."""
    owner: str = ""
    """HOST:PID of the process that runs the job, or was the last to run it."""
    heartbeat: float | None = None
    """When the owner last said that it is alive, in seconds since 1970."""
    failure: str = ""
    """The last line of the last error; kept when a later attempt succeeds."""
    seconds: float = 0.0
    """Wall-clock seconds over all attempts, also those that failed or were stopped; up to the heartbeat if lost."""
    cpu_seconds: float = 0.0
    """Processor time of the job's processes over all attempts, all threads together. Unlike `seconds` it hardly depends
    on what else runs on the machine."""
    startup: float = 0.0
    """Seconds from the start of the job's processes until each began to work, over all attempts; not in `seconds`."""
    device: str = ""
    """The device with its model and the number of threads."""
    images_per_second: float | None = None
    """Mean over the epochs so far, or what the last one measured; None before the first is finished."""
    peak_memory: int | None = None
    """Bytes at the peak: the allocator's on a GPU, the resident set of the process on a CPU."""
    cpu_joules: float | None = None
    """Energy of the whole processor package (RAPL) while the job ran, whatever else ran there; None if unreadable."""
    gpu_joules: float | None = None
    """Energy of the GPU while the job ran; None without one, or if it does not tell."""
    out_of_memory: int = 0
    """How often the job ran out of memory."""
    started: float | None = None
    """When the job was first started, in seconds since 1970."""
    ended: float | None = None
    """When it was done or failed."""

    def changed(self, **values: Any) -> "JobState":
        """A copy with other values."""
        return replace(self, **values)


REMOVE = "remove the file: `study run` finds out anew how far the job has got"
"""The way out where the state of a job is damaged."""


class StudyFolder:
    """Reads and writes the files of a study's folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path) -> "StudyFolder":
        """The folder of a study that exists; UsageError if there is none."""
        folder = cls(path)
        if not folder.file.is_file():
            raise UsageError(f"{path} is not the folder of a study: it has no study.yaml")
        return folder

    @property
    def file(self) -> Path:
        """study.yaml."""
        return self.path / "study.yaml"

    def study(self) -> StudyFile:
        """The study as its file says it."""
        return parse_study(read_yaml_text(self.file), str(self.file))

    def run_dir(self, job_id: str) -> Path:
        """The run folder of a job."""
        return self.path / "runs" / job_id

    def genotype_file(self, name: str) -> Path:
        """Where a genotype of the study stands once it is known."""
        return self.path / "genotypes" / f"{name}.yaml"

    @property
    def stop_file(self) -> Path:
        """While it exists, jobs save and end, and none is started."""
        return self.path / "stop"

    def job_stop_file(self, job_id: str) -> Path:
        """While it exists, that job saves and ends."""
        return self.path / "jobs" / f"{job_id}.stop"

    def state_file(self, job_id: str) -> Path:
        """jobs/ID.json."""
        return self.path / "jobs" / f"{job_id}.json"

    def state(self, job_id: str) -> JobState:
        """The state of a job; UsageError if its file is damaged or missing."""
        return read_state(self.state_file(job_id))

    def states(self) -> dict[str, JobState]:
        """The states of all jobs that the folder has ever had, by id."""
        folder = self.path / "jobs"
        found = (read_state(path) for path in sorted(folder.glob("[!.]*.json")) if path.is_file())
        return {state.id: state for state in found}

    def write_state(self, state: JobState) -> None:
        """Replace the state of a job; only for the owner of its claim."""
        write_atomically(self.state_file(state.id), _json(state))

    @staticmethod
    def first_state(job: StudyJob) -> JobState:
        """The state of a job that has not begun."""
        values = {f.name: getattr(job, f.name) for f in fields(StudyJob) if f.name not in ("options", "found")}
        return JobState(**values, options={name: plain(value) for name, value in job.options.items()})

    def add_state(self, job: StudyJob) -> None:
        """Write the first state of a job, unless it has one. Several coordinators may try at once."""
        state = self.first_state(job)
        path = self.state_file(job.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(_json(state))
            Path(name).chmod(0o644)
            with suppress(FileExistsError):
                os.link(name, path)
        finally:
            Path(name).unlink(missing_ok=True)

    def remove_half_written(self) -> None:
        """Remove the temporary files that a kill in `write_atomically` has left, once nobody can be writing them."""
        for path in (*(self.path / "jobs").glob(".*"), *(self.path / "genotypes").glob(".*")):
            with suppress(OSError):  # another coordinator was faster
                if TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > WRITTEN_WITHIN:
                    path.unlink()

    def log(self, text: str) -> None:
        """Add a line to log.txt, with the time, the host and the process; what cannot be written is dropped."""
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {socket.gethostname()}:{os.getpid()} {one_line(text)}\n"
        with suppress(OSError), (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line)

    def log_lines(self) -> Iterator[str]:
        """The lines of log.txt."""
        if (self.path / "log.txt").is_file():
            with (self.path / "log.txt").open(encoding="utf-8", errors="replace") as file:
                yield from (line.rstrip("\n") for line in file)


def read_state(path: Path) -> JobState:
    """Read jobs/ID.json; UsageError in one line if it is damaged."""
    try:
        content = json.loads(read_text(path, MAX_BYTES))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is damaged: it is not JSON; {REMOVE}") from None
    known = {f.name: f for f in fields(JobState)}
    if not isinstance(content, dict):
        raise UsageError(f"{path} is damaged: expected a mapping; {REMOVE}")
    kept = {key: value for key, value in content.items() if key in known}
    for key, value in kept.items():
        if not _fits(key, value):
            raise UsageError(f"{path} is damaged: {key} is {quoted(value)}; {REMOVE}")
    missing = [key for key in ("id", "kind", "space", "method", "genotype", "genotype_kind", "seed") if key not in kept]
    if missing:
        raise UsageError(f"{path} is damaged: {missing[0]} is missing; {REMOVE}")
    return JobState(**kept | {"depends_on": tuple(kept.get("depends_on", ()))})


def _fits(key: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match key:
        case "state":
            return value in get_args(State)
        case "depends_on":
            return isinstance(value, list) and all(isinstance(each, str) for each in value)
        case "options":
            return isinstance(value, dict)
        case "seed" | "attempts" | "losses" | "out_of_memory":
            return isinstance(value, int) and number
        case "seconds" | "cpu_seconds" | "startup":
            return number
        case "heartbeat" | "images_per_second" | "peak_memory" | "cpu_joules" | "gpu_joules" | "started" | "ended":
            return value is None or number
    return isinstance(value, str)


def _json(state: JobState) -> str:
    return json.dumps(asdict(state), indent=1, ensure_ascii=False) + "\n"


def plain(value: Any) -> Any:
    """The value of an option as JSON and YAML can hold it."""
    return str(value) if isinstance(value, Path) else value


def now() -> float:
    """The time of heartbeats, in seconds since 1970."""
    return time.time()
