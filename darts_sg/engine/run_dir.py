"""A run is a folder that explains itself.

config.yaml      all options, versions, device, data, code state
metrics.csv      one row an epoch
log.txt          what was printed, with the time
tensorboard/     the same for TensorBoard
checkpoints/     the newest two, to continue from; with --keep-every others to go back to
split.json       search: the lists of images it uses, if it was given any
unusual_images.csv  damaged images, and those that are no RGB JPEG, if there are any
genotypes/       search: the genotype after each epoch; alphas/ the mixing weights
genotype.yaml    search: the result; augment: what is trained
result.json      augment: the result
weights.safetensors, weights_best.safetensors
                 augment: the weights after the last and the best epoch, with all that is needed to use them; with
                 --keep-every weights_epoch_*.safetensors as well; with --ema the same of their average, weights_ema*
report.md        the run as a page, with pictures/
search.html      search: its epochs, to leaf through in a browser
"""

import csv
import fcntl
import io
import json
import logging
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml

from darts_sg.config import RunConfig
from darts_sg.errors import UsageError
from darts_sg.files import write_atomically
from darts_sg.yaml_files import read_mapping

TERMINAL = logging.lastResort or logging.NullHandler()
"""Where warnings go as long as there is no other handler."""
PATIENCE = 5.0
"""Seconds to wait for a run folder that another process holds: one that was killed takes a moment to end."""


class RunDir:
    """The folder of one run, held by one process at a time."""

    writes = True
    """Whether this process writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = self._take_lock()
        self._logger = logging.getLogger(f"darts_sg.run.{path}")
        self._logger.propagate = False
        self._logger.setLevel(logging.INFO)
        handler = logging.FileHandler(path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._logger.addHandler(handler)
        for shown in (handler, TERMINAL):
            logging.getLogger("darts_sg.data").addHandler(shown)

    @classmethod
    def create(cls, path: Path) -> "RunDir":
        """A new run folder; UsageError if there is something at `path` already, or it cannot be made."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            if (path / "config.yaml").is_file():
                raise UsageError(
                    f"run folder {path} exists; continue it with --resume {path}, or choose another --run-dir"
                )
            raise UsageError(f"{path} exists and is not empty; choose another --run-dir")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--run-dir {path} cannot be made: {error.strerror}; choose another") from None
        return cls(path)

    @classmethod
    def open(cls, path: Path, job: str) -> tuple["RunDir", dict[str, Any]]:
        """An existing run folder with the content of its config.yaml; UsageError if it is not a run of `job`."""
        config = path / "config.yaml"
        if not config.is_file():
            raise UsageError(f"{path} is not a run folder: it has no config.yaml")
        try:
            content = read_mapping(config)
            found, _, _ = content["job"], content["options"], content["environment"]
        except KeyError:
            raise UsageError(f"{config} is not the config of a run") from None
        if found != job:
            raise UsageError(f"{path} is a run of {found}, not of {job}: continue it with {found}")
        return cls(path), content

    def write_config(self, job: str, config: RunConfig, environment: Mapping[str, Any]) -> None:
        """Write config.yaml."""
        content = {"job": job, "options": config.as_dict(), "environment": dict(environment)}
        self.write("config.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))

    def log(self, text: str) -> None:
        """A line for log.txt."""
        self._logger.info(text)

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the run atomically; returns its path."""
        path = self.path / name
        write_atomically(path, content)
        return path

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a JSON file of the run atomically."""
        return self.write(name, json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n")

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        """Write metrics.csv whole, so that it never runs ahead of a checkpoint that the run falls back to."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.10g}" for k, v in row.items() if v == v})
        self.write("metrics.csv", text.getvalue())

    def close(self) -> None:
        """Let go of the log file and of the lock."""
        for handler in list(self._logger.handlers):
            logging.getLogger("darts_sg.data").removeHandler(handler)
            self._logger.removeHandler(handler)
            handler.close()
        self._lock.close()

    def _take_lock(self) -> IO[str]:
        lock = (self.path / ".lock").open("a")
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline:
                    lock.close()
                    raise UsageError(f"another process is running in {self.path}; wait for it or stop it") from None
            except OSError:
                lock.close()
                raise
            time.sleep(0.05)


class OthersRunDir(RunDir):
    """The folder of a run that another rank holds: this one reads it, and writes nothing."""

    writes = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, text: str) -> None:
        """Nothing."""

    def write(self, name: str, content: str | bytes) -> Path:
        """Nothing; returns the path."""
        return self.path / name

    def close(self) -> None:
        """Nothing."""


def default_run_dir(job: str, config: RunConfig, what: str) -> Path:
    """A new folder under runs/ named after the job, its subject, the seed and the time."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    subject = "".join(c if c.isalnum() or c in "+-_." else "-" for c in what)
    return Path("runs") / f"{job}-{subject}-{config.dataset}-seed{config.seed}-{stamp}"
