"""The run folder: everything about a run, in a form that needs no explanation.

config.yaml         all options, versions, device, data, code state
metrics.csv         one row an epoch
log.txt             what was printed, with the time
events.out.tfevents.*
                    metrics and figures for TensorBoard; W&B and MLflow keep their files in wandb/ and mlflow/
loggers.json        with --logger: the ids of the run at W&B and MLflow, which a resumed run continues
checkpoints/        the newest two, to resume from; with --keep-every older ones, too; damaged ones end in .damaged
split.json          search: a copy of the lists of images given by --split
latency_table.yaml  search: a copy of --latency-table
unusual_images.csv  images that are damaged or no RGB JPEG, if there are any
genotypes/          search: the genotype after each epoch; alphas/ the mixing weights
genotype.yaml       search: the result; augment: the genotype that is trained
result.json         augment: the result
weights.safetensors, weights_best.safetensors
                    augment: the weights after the last and after the best epoch, self-contained; with --keep-every
                    weights_epoch_*.safetensors as well; with --ema weights_ema*, the same of their average
predictions.npz     augment, for classes: what the network said of each test image, which report.md draws
search.html         search: its epochs, to leaf through in a browser
report.md           the run as a page, with pictures/; the last file of a run
"""

import errno
import fcntl
import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml

from darts_sg.analysis.run_folder import typed_environment
from darts_sg.config import RunConfig
from darts_sg.errors import UsageError
from darts_sg.files import write_atomically
from darts_sg.invocation import argument
from darts_sg.yaml_files import read_mapping

TERMINAL = logging.lastResort or logging.NullHandler()
"""Where Python prints warnings if no handler is installed. The run's handler would replace it."""
PATIENCE = 5.0
"""Seconds to wait for the lock of a run folder: a process that was killed takes a moment to release it."""
WITHOUT_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
"""What flock answers on file systems that have no locks: some network and cluster file systems, and FUSE."""

EPOCH_FILES = ("alphas/epoch_*.npz", "genotypes/epoch_*.yaml", "weights_*epoch_*.safetensors")
FILES_OF_THE_END = ("weights.safetensors", "weights_ema.safetensors", "predictions.npz")
REPORT_FILES = ("report.md", "search.html")
BEFORE_THE_START = (".lock", "log.txt", "genotype.yaml", "split.json", "latency_table.yaml")
"""What a new run writes before its config.yaml."""
HALF_WRITTEN = (".config.yaml.", ".genotype.yaml.", ".split.json.", ".latency_table.yaml.")
"""How the temporary files of `write_atomically` begin, which a kill leaves."""

SUBFOLDERS = ("checkpoints", "alphas", "genotypes", "pictures")
TEMPORARY = re.compile(r"\..+\.(pt|npz|yaml|json|csv|md|html|svg|png|gif|safetensors)\.[a-z0-9_]{8}")
"""The names of the temporary files of `write_atomically`: the file's, and what tempfile adds."""


class InUse(UsageError):
    """Another process holds the lock of a run folder."""


class RunDir:
    """The folder of one run, locked by one process at a time."""

    writes = True
    """Whether this process writes to the folder."""

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
        if self._lock is not None:
            self._remove_half_written()
        else:
            text = f"note: the file system of {path} has no locks: make sure that no other process runs in this folder"
            print(text, file=sys.stderr)
            self.log(text)

    @classmethod
    def create(cls, path: Path) -> "RunDir":
        """A new run folder. UsageError as in `refuse_existing`, or if the folder cannot be created."""
        cls.refuse_existing(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--run-dir {path} cannot be made: {error.strerror}; choose another") from None
        try:
            run = cls(path)
        except InUse as error:
            raise UsageError(f"{error}, or choose another --run-dir") from None
        try:
            cls.refuse_existing(path)  # another process may have been faster
            for left in path.iterdir():
                if left.name not in (".lock", "log.txt"):
                    left.unlink()
        except BaseException:
            run.close()
            raise
        return run

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """UsageError if `path` exists, unless it is empty or what a process leaves that is killed while starting."""
        if not path.exists():
            return
        if (path / "config.yaml").is_file():
            raise UsageError(
                f"run folder {path} exists; continue it with --resume {argument(path)}, or choose another --run-dir"
            )
        found = [each.name for each in path.iterdir()] if path.is_dir() else [path.name]
        unfinished = ".lock" in found and all(
            name in BEFORE_THE_START or name.startswith(HALF_WRITTEN) for name in found
        )
        if found and not unfinished:
            raise UsageError(f"{path} exists and is not empty; choose another --run-dir")

    @classmethod
    def open(cls, path: Path, job: str) -> tuple["RunDir", dict[str, Any]]:
        """An existing run folder and the content of its config.yaml. UsageError if it is not a run of `job`."""
        config = path / "config.yaml"
        if not config.is_file():
            raise UsageError(f"{path} is not a run folder: it has no config.yaml; start a new run")
        try:
            content = read_mapping(config)
            content["environment"] = typed_environment(content["environment"], config)
            found, _, _ = content["job"], content["options"], content["environment"]
        except KeyError:
            raise UsageError(
                f"{config} is not the config of a run; restore it from a copy, or start a new run"
            ) from None
        if found != job:
            raise UsageError(f"{path} is a run of {found}, not of {job}: continue it with {found}")
        return cls(path), content

    def write_config(self, job: str, config: RunConfig, environment: Mapping[str, Any]) -> None:
        """Write config.yaml."""
        content = {"job": job, "options": config.as_dict(), "environment": dict(environment)}
        self.write("config.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))

    def log(self, text: str) -> None:
        """Add a line to log.txt."""
        self._logger.info(text)

    def warn(self, text: str) -> None:
        """Print a warning and add it to log.txt."""
        print(f"warning: {text}", file=sys.stderr)
        self.log(f"warning: {text}")

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the run atomically; returns its path."""
        path = self.path / name
        write_atomically(path, content)
        return path

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a JSON file of the run atomically."""
        return self.write(name, json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n")

    def remove(self, name: str) -> None:
        """Remove a file of the run, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def remove_later(self, epoch: int, *, at_end: bool) -> list[str]:
        """Remove the files that epochs after `epoch` (counted from 1) have left; returns their names.

        at_end: whether `epoch` is the last one. If not, the files of the end are later ones, too.
        """
        later = [
            path
            for pattern in EPOCH_FILES
            for path in sorted(self.path.glob(pattern))
            if (number := path.stem.rpartition("_")[2]).isdecimal() and int(number) > epoch
        ]
        if not at_end:
            later += [path for name in FILES_OF_THE_END if (path := self.path / name).is_file()]
        if later or _num_rows(self.path / "metrics.csv") > epoch:
            later += [path for name in REPORT_FILES if (path := self.path / name).is_file()]
        for path in later:
            path.unlink()
        return [str(path.relative_to(self.path)) for path in later]

    def close(self) -> None:
        """Close the log file and release the lock."""
        for handler in list(self._logger.handlers):
            logging.getLogger("darts_sg.data").removeHandler(handler)
            self._logger.removeHandler(handler)
            handler.close()
        if self._lock is not None:
            self._lock.close()

    def _remove_half_written(self) -> None:
        """Remove the temporary files that a kill in `write_atomically` has left: nobody else writes under the lock."""
        for folder in (self.path, *(self.path / name for name in SUBFOLDERS)):
            for path in folder.glob(".*") if folder.is_dir() else ():
                if TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def _take_lock(self) -> IO[str] | None:
        """Lock the folder until the file returned is closed, or the process ends however it ends.

        None if the file system has no locks. UsageError if another process holds the lock.
        """
        lock = (self.path / ".lock").open("a")
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline:
                    lock.close()
                    raise InUse(f"another process is running in {self.path}; wait for it or stop it") from None
            except OSError as error:
                lock.close()
                if error.errno in WITHOUT_LOCKS:
                    return None
                raise
            time.sleep(0.05)


class OthersRunDir(RunDir):
    """The run folder as the other ranks see it: rank 0 writes to it, they only read."""

    writes = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, text: str) -> None:
        """Does nothing."""

    def warn(self, text: str) -> None:
        """Does nothing."""

    def write(self, name: str, content: str | bytes) -> Path:
        """Writes nothing; returns the path."""
        return self.path / name

    def remove(self, name: str) -> None:
        """Removes nothing."""

    def close(self) -> None:
        """Does nothing."""


def default_run_dir(job: str, config: RunConfig, what: str) -> Path:
    """A new folder under runs/, named after the job, its subject, the data set, the seed and the time."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    subject = "".join(c if c.isalnum() or c in "+-_." else "-" for c in what)
    return Path("runs") / f"{job}-{subject}-{config.dataset}-seed{config.seed}-{stamp}"


def _num_rows(metrics: Path) -> int:
    """The number of whole lines of a metrics.csv without its header; 0 if there is none."""
    return max(0, metrics.read_bytes().count(b"\n") - 1) if metrics.is_file() else 0
