"""Runs workers as subprocesses of this machine: one for each GPU, or one for each few cores."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from darts_sg.engine.environment import usable_cores
from darts_sg.errors import UsageError
from darts_sg.study import executors
from darts_sg.study.executors import Ended, Request, Settings, last_line, worker_words

ASKED = 0.2
"""Seconds between two questions whether a worker has ended, where the system does not tell."""


@dataclass
class Slot:
    """A place where one job runs at a time."""

    gpu: str | None
    """The value of CUDA_VISIBLE_DEVICES; None for the CPU."""
    title: str


@dataclass
class Worker:
    """A subprocess that runs a job."""

    job_id: str
    process: "subprocess.Popen[bytes]"
    slots: list[Slot]
    """One for each process of the job."""
    memory: int
    output: Path


class Local:
    """Subprocesses, each with a GPU or a share of the cores of its own."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.threads, self._free = slots_of(settings)
        self.processes = settings.processes
        self._most = settings.jobs or len(self._free)
        self._workers: list[Worker] = []
        self._memory = available_memory()

    def describe(self) -> str:
        number = min(self._most, len(self._free) + sum(len(worker.slots) for worker in self._workers))
        title = self._free[0].title if self._free else ""
        kind = "GPUs" if title.startswith("GPU") else f"CPU, {self.threads} thread{'s' * (self.threads > 1)} each"
        several = f", up to {self.processes} processes a job" if self.processes > 1 else ""
        most = "at most " if several else ""
        return f"this machine, {most}{number} job{'s' * (number > 1)} at a time ({kind}{several})"

    def start(self, requests: Sequence[Request], busy: int = 0) -> list[str]:
        started: list[str] = []
        for request in requests:
            if len(self._workers) >= self._most or len(self._free) - busy < request.processes:
                break  # a later job that takes fewer places must not delay this one for ever
            used = sum(worker.memory for worker in self._workers)
            if self._workers and request.memory and used + request.memory > self._memory:
                continue  # a job that is larger than the machine runs alone
            slots, self._free = self._free[: request.processes], self._free[request.processes :]
            self._workers.append(self._start(request, slots))
            started.append(request.job_id)
        return started

    def _start(self, request: Request, slots: list[Slot]) -> Worker:
        output = self.folder / "jobs" / f"{request.job_id}.out"
        environment = dict(os.environ)
        environment["OMP_NUM_THREADS"] = str(self.threads)
        if gpus := [slot.gpu for slot in slots if slot.gpu is not None]:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        words = worker_words(self.folder, request, self.threads)
        with output.open("ab") as file:
            process = subprocess.Popen(
                [*executors.WORKER, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the coordinator, which tells the workers
            )
        return Worker(request.job_id, process, slots, request.memory or 0, output)

    def running(self) -> set[str]:
        return {worker.job_id for worker in self._workers}

    def ended(self) -> list[Ended]:
        found = [worker for worker in self._workers if worker.process.poll() is not None]
        for worker in found:
            self._workers.remove(worker)
            self._free += worker.slots
        return [Ended(worker.job_id, worker.process.returncode, last_line(worker.output)) for worker in found]

    def wait(self, seconds: float) -> None:
        wait_for([worker.process for worker in self._workers], seconds)

    def stop(self) -> None:
        for worker in self._workers:
            worker.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()

    def close(self) -> None:
        """Nothing to give back."""


def wait_for(processes: "Sequence[subprocess.Popen[bytes]]", seconds: float) -> None:
    """Return once one of the subprocesses has ended, after that time at the latest.

    Linux tells by a descriptor; other systems, or one that has run out of descriptors, are asked a few times a second.
    """
    handles: list[int] = []
    try:
        with suppress(OSError, AttributeError):
            handles += [os.pidfd_open(process.pid) for process in processes if process.returncode is None]
        if handles and len(handles) == len(processes):
            select.select(handles, [], [], seconds)
        else:
            time.sleep(min(seconds, ASKED))
    finally:
        for handle in handles:
            os.close(handle)


def make(folder: Path, settings: Settings) -> Local:
    """The executor of this machine."""
    return Local(folder, settings)


def slots_of(settings: Settings) -> tuple[int, list[Slot]]:
    """Threads of a job, and the places for jobs; UsageError if the GPU that is asked for is not there.

    On GPUs one process each. On a CPU one for each core by default, with one thread: several jobs share a machine
    better than several threads share a job, and the bits of a result then do not depend on the number of jobs. A job
    of several processes takes as many places.
    """
    cores, device = usable_cores(), settings.device
    gpus = gpus_of(device)
    if gpus:
        number = min((settings.jobs or len(gpus)) * settings.processes, len(gpus))
        threads = settings.threads or max(1, cores // number)
        return threads, [Slot(gpu, f"GPU {gpu}") for gpu in gpus[:number]]
    number = max(settings.processes, cores // (settings.threads or 1))
    if settings.jobs:
        number = settings.jobs * settings.processes
    threads = settings.threads or max(1, cores // number)
    return threads, [Slot(None, "CPU") for _ in range(number)]


def gpus_of(device: str) -> list[str]:
    """The GPUs that jobs with that --device use, as CUDA_VISIBLE_DEVICES names them; UsageError if one is missing.

    Counts them without using one: the coordinator holds no memory of a GPU.
    """
    if device == "cpu" or not device.startswith(("auto", "cuda")):
        return []
    number = torch.cuda.device_count()
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = visible if len(visible) == number else [str(i) for i in range(number)]
    if device == "auto":
        return names
    index = device.partition(":")[2]
    if not number or (index and not (index.isdecimal() and int(index) < number)):
        there = ["cpu", *(f"cuda:{i}" for i in range(number))]
        raise UsageError(f"device {device!r} is not available; there is: {', '.join(there)}")
    return [names[int(index)]] if index else names


def available_memory() -> int:
    """Bytes of memory that programs can still take, within the limit of this process's control group."""
    found = [2**62]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        if limit.isdecimal():
            found.append(int(limit) - int(used))
    except (OSError, ValueError, IndexError):
        pass  # not Linux, or no control groups
    return max(0, min(found))
