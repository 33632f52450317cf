"""A worker on another machine that shares the study's folder, for Ray and Slurm."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from darts_sg.study.executors import last_line

POLL = 0.05
"""Seconds between two looks at a worker."""
SAVING = 300.0
"""Seconds that a worker may take to save before it is killed."""


class WorkerTask:
    """Runs a worker as a subprocess and returns (exit code, last line of its output). Can be pickled.

    An exception while it waits, such as that of Ray's cancel, lets the worker save first.
    """

    def __init__(self, command: Sequence[str], output: Path, directory: Path, environment: Mapping[str, str]) -> None:
        """output: is added to. directory: the working directory, to which paths in the study are relative."""
        self.command, self.output, self.directory = list(command), output, directory
        self.environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_process": None}

    def __call__(self) -> tuple[int, str]:
        with self.output.open("ab") as file:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.directory if self.directory.is_dir() else None,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        try:
            while (code := self._process.poll()) is None:
                time.sleep(POLL)  # not `wait`, which Ray's cancel does not interrupt
            return code, last_line(self.output)
        except BaseException:
            self.save()
            raise

    def save(self) -> None:
        """Have the worker save and end."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SAVING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def worker_environment(threads: int | None) -> dict[str, str]:
    """Variables of this process that a worker elsewhere needs."""
    found = {"OMP_NUM_THREADS": str(threads or 1)}
    return found | {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
