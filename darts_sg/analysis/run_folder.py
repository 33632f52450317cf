"""Reads run folders, finished or not; names a damaged or missing file in one line."""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from darts_sg.derive import Array, num_edges
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell, Genotype, load_genotype
from darts_sg.records import MetricsRow
from darts_sg.tasks import Task, task_of
from darts_sg.yaml_files import read_yaml

JOBS = ("search", "augment")


@dataclass(frozen=True)
class Run:
    """The content of a run folder so far."""

    folder: Path
    job: str
    options: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: Sequence[MetricsRow]
    genotype: Genotype | None
    genotype_epoch: int | None
    """The genotype was derived after this epoch; None for the final one of a search, or the one being trained."""
    result: Mapping[str, Any] | None

    @property
    def finished(self) -> bool:
        if self.job == "augment":
            return self.result is not None
        return self.genotype is not None and self.genotype_epoch is None

    @property
    def stopped(self) -> Mapping[str, Any] | None:
        """`after_epoch`, `chosen_epoch` and `reason` of a search that was stopped early; None otherwise."""
        if self.job != "search" or self.genotype is None:
            return None
        found: Mapping[str, Any] | None = self.genotype.provenance.get("stopped_early")
        return found

    @property
    def task(self) -> Task:
        """The task that the network is trained for; UsageError if its name is unknown here."""
        return task_of(self.options)

    @property
    def machine(self) -> str:
        """Model of the device, number of threads and of processes."""
        env = self.environment
        parts = [str(env.get("device_name") or env.get("device") or "unknown machine")]
        if threads := env.get("threads"):
            parts.append("1 thread" if threads == 1 else f"{threads} threads")
        if (processes := env.get("processes", 1)) > 1:
            parts.append(f"{processes} processes")
        return ", ".join(parts)

    @property
    def title(self) -> str:
        model = self.options.get("model")
        what = "Search" if self.job == "search" else "Training" if model else "Retraining"
        trained = model or (self.genotype and self.genotype.name)
        subject = self.options.get("space") if self.job == "search" else trained
        return f"{what}: {subject} on {self.data}"

    @property
    def data(self) -> str:
        """The data as named beside every figure: the data set, and how it differs from the published one."""
        data = self.environment.get("data") or {}
        name = str(data.get("name") or self.options.get("dataset", "unknown data"))
        return described_data(name, data.get("note"), data.get("remark"))

    @property
    def shown_path(self) -> Path:
        """The folder as one would type it in the current directory."""
        path = self.folder.resolve()
        return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else self.folder


def described_data(name: str, *remarks: str | None) -> str:
    """A data set with its remarks in parentheses."""
    said = "; ".join(remark for remark in remarks if remark)
    return f"{name} ({said})" if said else name


def read_run(run_dir: Path) -> Run:
    """Read a run folder, finished or not. Raises UsageError naming the file that is missing or damaged."""
    config_path = run_dir / "config.yaml"
    if not config_path.is_file():
        why = "it has no config.yaml" if run_dir.is_dir() else "there is no such folder"
        raise UsageError(
            f"{run_dir} is not the folder of a run: {why}; give the folder that search.py or augment.py named"
        )
    config = read_yaml(config_path)
    job = config.get("job") if isinstance(config, dict) else None
    if job not in JOBS or not isinstance(config.get("options"), dict):
        raise UsageError(f"{config_path} does not belong to a run: it needs job (search or augment) and options")
    options: Mapping[str, Any] = config["options"]
    metrics, final = run_dir / "metrics.csv", run_dir / "genotype.yaml"
    derived = _by_epoch(run_dir / "genotypes", "yaml")
    genotype, epoch = None, None
    if final.is_file():
        genotype = load_genotype(final)
    elif derived:
        epoch = max(derived)
        genotype = load_genotype(derived[epoch])
    return Run(
        folder=run_dir,
        job=job,
        options=options,
        environment=config.get("environment") or {},
        rows=read_metrics(metrics) if metrics.is_file() else [],
        genotype=genotype,
        genotype_epoch=epoch,
        result=_read_result(run_dir / "result.json", options) if job == "augment" else None,
    )


def read_metrics(path: Path) -> list[MetricsRow]:
    """The rows of a metrics.csv. An empty field becomes NaN; an incomplete last line is left out.

    Raises UsageError with file, line and column for anything that is not a number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: no epoch of this run is finished, or it is not a run") from None
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows: list[MetricsRow] = []
    for number, fields in enumerate(csv.DictReader(lines), start=2):
        row = {}
        for column, value in fields.items():
            if column is None or value is None:
                raise UsageError(f"{path}, line {number}: expected as many fields as the first line has")
            try:
                row[column] = float(value) if value else math.nan
            except ValueError:
                raise UsageError(f"{path}, line {number}, {column}: {value!r} is not a number") from None
        if "epoch" not in row:
            raise UsageError(f"{path} has no column epoch: it is not the metrics.csv of a run")
        rows.append(row)
    return rows


def _read_result(path: Path, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    figure = task_of(options).headline.key("test")
    needed = (f"{figure}_last", f"{figure}_best", "best_epoch", "best_chosen_on", "params", "macs")
    for key in needed:
        if not isinstance(result, dict) or key not in result:
            raise UsageError(f"{path} lacks {key}: it is not the result of a retraining")
    return result


@dataclass(frozen=True)
class SearchEpoch:
    """The state of a search after an epoch."""

    epoch: int
    genotype: Genotype
    weights: Mapping[str, Array]
    """Mixing weights `normal` and `reduce`, (num_edges, num_operations), with edges node by node and by state from 0.
    With edge normalisation also `edge_normal` and `edge_reduce`, (num_edges,)."""

    def cell(self, title: str) -> Cell:
        """The `normal` or the `reduce` cell."""
        return dict(self.genotype.cells())[title]


def search_epochs(run_dir: Path) -> list[int]:
    """The epochs of a search with both mixing weights and a genotype, in order."""
    return sorted(_by_epoch(run_dir / "alphas", "npz").keys() & _by_epoch(run_dir / "genotypes", "yaml").keys())


def read_search_epoch(run_dir: Path, epoch: int | None = None) -> SearchEpoch:
    """The state of a search after an epoch, by default the epoch of its genotype, or the last one so far.

    Raises UsageError if `run_dir` is not a search or lacks the epoch, or if a file is damaged.
    """
    run = read_run(run_dir)
    if run.job != "search":
        raise UsageError(f"{run_dir} is the folder of a retraining; mixing weights are in that of a search")
    there = search_epochs(run_dir)
    if not there:
        raise UsageError(f"{run_dir} has no finished epoch yet")
    if epoch is None and run.stopped is not None:
        epoch = run.stopped["chosen_epoch"]
    if epoch is not None and epoch not in there:
        raise UsageError(f"{run_dir} has no epoch {epoch}; there are {there[0]} to {there[-1]}")
    return _read_search_epoch(run_dir, there[-1] if epoch is None else epoch)


def read_search_epochs(run_dir: Path) -> list[SearchEpoch]:
    """The states of a search after each of its epochs, all with the same operations and edges.

    Raises UsageError if they differ, and as read_search_epoch does.
    """
    found = [_read_search_epoch(run_dir, epoch) for epoch in search_epochs(run_dir)]
    spaces = [(record.genotype.operations, {name: w.shape for name, w in record.weights.items()}) for record in found]
    for record, space in zip(found, spaces, strict=True):
        if space != spaces[-1]:
            raise UsageError(
                f"{run_dir}: epochs {record.epoch} and {found[-1].epoch} are of different searches; "
                "remove the files of the foreign one from alphas/ and genotypes/"
            )
    return found


def _read_search_epoch(run_dir: Path, epoch: int) -> SearchEpoch:
    genotype = load_genotype(_by_epoch(run_dir / "genotypes", "yaml")[epoch])
    path = _by_epoch(run_dir / "alphas", "npz")[epoch]
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [name for name in file.files if not name.startswith(("alpha_", "beta_"))]  # raw, not weights
            weights = {name: np.asarray(file[name], dtype=np.float64) for name in names}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise UsageError(f"{path} cannot be read: {error}; remove it to go without epoch {epoch}") from None
    edges = num_edges(genotype.normal.num_nodes)
    for name in ("normal", "reduce", *weights):
        expected = (edges,) if name.startswith("edge_") else (edges, len(genotype.operations))
        found = f"shape {weights[name].shape}" if name in weights else "no values"
        if found != f"shape {expected}":
            raise UsageError(
                f"{path}: {name!r} has {found}, but {genotype.normal.num_nodes} nodes and "
                f"{len(genotype.operations)} operations need {expected}: the file belongs to another space"
            )
    return SearchEpoch(epoch, genotype, weights)


def _by_epoch(folder: Path, suffix: str) -> dict[int, Path]:
    """The files named epoch_NUMBER, by epoch."""
    found = ((re.fullmatch(r"epoch_(\d+)", path.stem), path) for path in folder.glob(f"*.{suffix}"))
    return {int(match[1]): path for match, path in found if match}
