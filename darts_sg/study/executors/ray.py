"""Runs workers as Ray tasks, on a cluster or on this machine. Needs the extra `ray`.

The study's folder and the data must be at the same path on all nodes. A task asks for CPUs, memory and a GPU; a worker
that is lost with its node is started again once its heartbeat stands still.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from darts_sg.errors import UsageError, first_line
from darts_sg.study import executors
from darts_sg.study.executors import Ended, Request, Settings, worker_words
from darts_sg.study.executors.remote import WorkerTask, worker_environment

OBJECT_STORE = 100 * 2**20
"""Bytes of Ray's object store on this machine: tasks return a few words. The default is a third of the memory."""
PATIENCE = {"RAY_gcs_server_port_wait_time_s": "180", "RAY_NUM_REDIS_GET_RETRIES": "180"}
"""Seconds that Ray waits for its own processes to start; its 20 are too few on a machine that is busy."""


class OnRay:
    """Ray tasks, each of which waits for the subprocess of a worker."""

    def __init__(self, ray: Any, folder: Path, settings: Settings) -> None:
        self._ray, self.folder, self.settings = ray, folder, settings
        resources = ray.cluster_resources()
        gpus = 0 if settings.device == "cpu" else int(resources.get("GPU", 0))
        if settings.device.startswith("cuda") and not gpus:
            raise UsageError(f"--device {settings.device}: the Ray cluster has no GPU; choose cpu or another --address")
        self.threads = settings.threads or 1
        self.gpus = 1 if gpus else 0
        """Of a process."""
        cpus, most = int(resources.get("CPU", 0)), settings.processes
        if cpus < self.threads * most:
            asked = f"{self.threads} threads" if most == 1 else f"{most} processes of {self.threads} threads"
            raise UsageError(f"jobs ask for {asked}, the Ray cluster has {cpus} CPUs; lower the threads or processes")
        if gpus and gpus < most:
            raise UsageError(f"jobs ask for {most} GPUs, the Ray cluster has {gpus}; lower executor.gpus")
        if most > 1 and not any(self._fits(node.get("Resources", {}), most) for node in ray.nodes()):
            asked = f"{most} GPUs" if gpus else f"{most * self.threads} CPUs"
            raise UsageError(f"a job asks for {asked}, and no node of the Ray cluster has as many; lower their number")
        self.most = settings.jobs or max(1, min(cpus // self.threads, gpus or cpus))
        self._tasks: dict[Any, str] = {}

    def _fits(self, resources: Mapping[str, float], processes: int) -> bool:
        """Whether a node has what a job of so many processes asks for: its processes are on one machine."""
        enough = resources.get("GPU", 0) >= processes * self.gpus
        return enough and resources.get("CPU", 0) >= processes * self.threads

    def describe(self) -> str:
        number = len(self._ray.nodes())
        kind = "a GPU" if self.gpus else f"{self.threads} CPU{'s' * (self.threads > 1)}"
        return f"Ray, {number} node{'s' * (number > 1)}, at most {self.most} jobs at a time ({kind} each)"

    def start(self, requests: Sequence[Request], busy: int = 0) -> list[str]:
        started = []
        for request in requests[: max(0, self.most - len(self._tasks))]:
            command = [*executors.WORKER, *worker_words(self.folder, request, self.threads)]
            output = (self.folder / "jobs" / f"{request.job_id}.out").absolute()
            task = WorkerTask(command, output, Path.cwd(), worker_environment(self.threads))
            options = {
                "num_cpus": self.threads * request.processes,
                "num_gpus": self.gpus * request.processes,
                "max_retries": 0,
                "name": request.job_id,
            }
            if request.memory:
                options["memory"] = request.memory
            remote = self._ray.remote(_run).options(**options)
            self._tasks[remote.remote(task)] = request.job_id
            started.append(request.job_id)
        return started

    def running(self) -> set[str]:
        return set(self._tasks.values())

    def ended(self) -> list[Ended]:
        if not self._tasks:
            return []
        ready, _ = self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        found = []
        for reference in ready:
            job_id = self._tasks.pop(reference)
            try:
                found.append(Ended(job_id, *self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:  # the node is gone, or the task was cancelled
                found.append(Ended(job_id, None, first_line(error)))
        return found

    def wait(self, seconds: float) -> None:
        if self._tasks:
            self._ray.wait(list(self._tasks), num_returns=1, timeout=seconds)
        else:
            time.sleep(seconds)

    def stop(self) -> None:
        for reference in self._tasks:
            self._ray.cancel(reference, force=False)

    def kill(self) -> None:
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()


def _run(task: WorkerTask) -> tuple[int, str]:
    return task()


def make(folder: Path, settings: Settings) -> OnRay:
    """Join the Ray cluster at the address, or start one on this machine; UsageError if neither works."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)  # read when Ray is imported
    try:
        import ray
    except ImportError:
        raise UsageError("--executor ray needs the package ray: pip install 'darts_sg[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if settings.address is None:
        quiet |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(address=settings.address, ignore_reinit_error=True, **quiet)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError and others of Ray's own
        where = f"--address {settings.address}" if settings.address else "a Ray cluster on this machine"
        raise UsageError(f"{where} cannot be used: {first_line(error)}") from None
    try:
        return OnRay(ray, folder, settings)
    except UsageError:
        ray.shutdown()
        raise
