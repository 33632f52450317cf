"""Reads run folders, finished or not; names a damaged or missing file in one line."""

import csv
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from darts_sg.derive import Array, num_edges
from darts_sg.errors import UsageError, first_line, quoted
from darts_sg.files import read_text, refuse_irregular, size_text, why
from darts_sg.genotype import Cell, Genotype, load_genotype
from darts_sg.networks.derived import NetworkShape
from darts_sg.options import read_value
from darts_sg.records import MetricsRow
from darts_sg.tasks import Task, task_of
from darts_sg.yaml_files import read_yaml

JOBS = ("search", "augment")
OWN_IMAGES = ("folder", "coco", "yolo")  # data sets of images of one's own, which their folder names
MOST_PROCESSES = 2**16
LARGEST_METRICS = 2**26  # bytes of a metrics.csv: a row has 300
LARGEST_RESULT = 2**22  # bytes of a result.json
LARGEST_ARRAY = 2**22  # bytes of an array of mixing weights: DARTS has 14 edges with 8 operations
DAMAGED = (ValueError, LookupError, TypeError, SyntaxError, OverflowError, MemoryError)
"""Errors that numpy raises for damaged array headers."""
MOST_ARRAYS = 64  # in a file of mixing weights

COPY = "restore the file from a copy, or leave this run out"
"""The way out where a file of a run is damaged that nothing can write anew."""
RESULT = "remove the file and continue the run with --resume, which writes it anew from the newest checkpoint"
ANEW = "restore the file from a copy; --resume writes it anew if the run is not finished"

OPTION_TYPES: Mapping[str, Any] = {
    "epochs": int, "seed": int, "batch_size": int, "cutout_length": int,
    "channels": int | str | None, "cells": int | None,
    "dataset": str, "data_note": str, "space": str, "genotype": str, "model": str | None, "task": str | None,
    "finetune": str | None, "network": NetworkShape,
    "ema": float, "learning_rate": float, "weight_decay": float, "label_smoothing": float, "colour_jitter": float,
    "drop_path_prob": float | None, "auxiliary_weight": float | None,
}  # fmt: skip
"""The options in config.yaml that reports read. Others may be of any type: a run may be of another version."""
ENVIRONMENT_TYPES: Mapping[str, Any] = {
    "threads": int | None, "processes": int | None, "device": str | None, "device_name": str | None,
    "command": str | None, "kernels": str | None, "epochs": int | None,
}  # fmt: skip
DATA_TYPES: Mapping[str, Any] = {
    "fingerprint": str | None, "name": str | None, "note": str | None, "remark": str | None, "train_images": int | None,
    "validation_images": int | None, "test_images": int | None,
}  # fmt: skip


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
    def planned(self) -> int | None:
        """Epochs of the whole run: of a search whose selection goes on after --epochs, more than these."""
        return self.environment.get("epochs") or self.options.get("epochs")

    @property
    def baseline(self) -> bool:
        """Whether this is a search without alphas, and so without mixing weights."""
        return self.job == "search" and str(self.options.get("strategy") or "gradient") != "gradient"

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
        if (processes := env.get("processes") or 1) > 1:
            parts.append(f"{processes} processes")
        return ", ".join(parts)

    @property
    def title(self) -> str:
        model = self.options.get("model")
        what = "Search" if self.job == "search" else "Training" if model else "Retraining"
        trained = model or (self.genotype and self.genotype.name)
        subject = self.options.get("space") if self.job == "search" else trained
        return f"{what}: {subject} on {self.data_title}"

    @property
    def data_title(self) -> str:
        """The data in a title: as beside every figure, but for images of one's own the name of their folder."""
        data = self.environment.get("data") or {}
        folder = Path(str(self.options.get("data") or "")).name
        if data.get("name") in OWN_IMAGES and folder:
            return described_data(folder, data.get("note"))
        return self.data

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
    """A data set with its remarks in parentheses; what stands in parentheses within them follows a comma instead."""
    said = "; ".join(re.sub(r"\s*\(([^()]*)\)", r", \1", remark) for remark in remarks if remark)
    return f"{name} ({said})" if said else name


def read_run(run_dir: Path) -> Run:
    """Read a run folder, finished or not. Raises UsageError naming the file that is missing or damaged."""
    config_path = run_dir / "config.yaml"
    if not config_path.is_file():
        why = "it has no config.yaml" if run_dir.is_dir() else "there is no such folder"
        raise UsageError(
            f"{run_dir} is not the folder of a run: {why}; give the folder that search.py or augment.py named"
        )
    job, options, environment = read_run_config(config_path)
    metrics, final = run_dir / "metrics.csv", run_dir / "genotype.yaml"
    derived = _by_epoch(run_dir / "genotypes", "yaml")
    genotype, epoch = None, None
    if final.is_file():
        genotype = load_genotype(final)
    elif derived:
        epoch = max(derived)
        genotype = load_genotype(derived[epoch])
    if job == "search" and genotype is not None:
        _check_early_end(genotype, final)
    return Run(
        folder=run_dir,
        job=job,
        options=options,
        environment=environment,
        rows=read_metrics(metrics) if metrics.is_file() else [],
        genotype=genotype,
        genotype_epoch=epoch,
        result=_read_result(run_dir / "result.json", options) if job == "augment" else None,
    )


def read_run_config(path: Path) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """(job, options, environment) of a run's config.yaml; an environment that is missing is empty.

    Raises UsageError if it is no such file, or if a value that reports read is not of its type.
    """
    config = read_yaml(path)
    job, options, environment = (
        (config.get(key) for key in ("job", "options", "environment")) if isinstance(config, dict) else (None,) * 3
    )
    if not isinstance(job, str) or job not in JOBS or not isinstance(options, dict):
        raise UsageError(f"{path} does not belong to a run: it needs job (search or augment) and options; {COPY}")
    return job, _typed(options, OPTION_TYPES, f"{path}: options"), typed_environment(environment, path)


def typed_environment(environment: Any, path: Path) -> dict[str, Any]:
    """The environment in the config.yaml at `path`; {} for None. UsageError if a value is not of its type."""
    environment = {} if environment is None else environment
    data = environment.get("data") if isinstance(environment, dict) else None
    for name, part in (("environment", environment), ("environment: data", {} if data is None else data)):
        if not isinstance(part, dict):
            raise UsageError(f"{path}: {name}: expected a mapping, found {quoted(part)}; {COPY}")
    facts = _typed(environment, ENVIRONMENT_TYPES, f"{path}: environment")
    for name in ("threads", "processes"):
        if (number := facts.get(name)) is not None and not 1 <= number <= MOST_PROCESSES:
            raise UsageError(f"{path}: environment: {name}: must be from 1 to {MOST_PROCESSES}, found {number}; {COPY}")
    plugins = facts.get("plugins")
    if plugins is not None and not (isinstance(plugins, list) and all(isinstance(each, dict) for each in plugins)):
        raise UsageError(f"{path}: environment: plugins: expected a list of mappings, found {quoted(plugins)}; {COPY}")
    origin = facts.get("finetuned_from")
    if origin is not None and not isinstance(origin, dict):
        raise UsageError(f"{path}: environment: finetuned_from: expected a mapping, found {quoted(origin)}; {COPY}")
    facts.pop("data", None)
    return facts if data is None else facts | {"data": _typed(data, DATA_TYPES, f"{path}: environment: data")}


def _typed(given: Mapping[Any, Any], hints: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A mapping whose values in `hints` are of these types, the others as they are; keys are texts."""
    found = {str(key): value for key, value in given.items()}
    for name in hints.keys() & found.keys():
        try:
            found[name] = read_value(hints[name], found[name])
        except UsageError as error:
            raise UsageError(f"{source}: {name}: {error}; {COPY}") from None
        if isinstance(found[name], int | float) and found[name] < 0:
            raise UsageError(f"{source}: {name}: must not be negative, found {quoted(found[name])}; {COPY}")
    return found


def _check_early_end(genotype: Genotype, path: Path) -> None:
    """UsageError unless what the genotype says of the early end of its search has the form that the search writes."""
    found = genotype.provenance.get("stopped_early")
    whole = found is None or (
        isinstance(found, dict)
        and all(type(found.get(key)) is int for key in ("after_epoch", "chosen_epoch"))
        and isinstance(found.get("reason"), str)
    )
    if not whole:
        raise UsageError(
            f"{path}: provenance.stopped_early: expected after_epoch, chosen_epoch and reason, found {quoted(found)}; "
            f"{COPY}"
        )


def read_metrics(path: Path) -> list[MetricsRow]:
    """The rows of a metrics.csv. An empty field becomes NaN; an incomplete last line is left out.

    Raises UsageError with file, line and column for anything that is not a number.
    """
    try:
        text = read_text(path, LARGEST_METRICS)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: no epoch of this run is finished, or it is not a run") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from None
    lines = text[: text.rfind("\n") + 1].splitlines()
    try:
        table = list(csv.DictReader(lines))
    except csv.Error as error:
        raise UsageError(f"{path} is no table of numbers: {error}; {ANEW}") from None
    rows: list[MetricsRow] = []
    for number, fields in enumerate(table, start=2):
        row = {}
        for column, value in fields.items():
            if column is None or value is None:
                raise UsageError(f"{path}, line {number}: expected as many fields as the first line has; {ANEW}")
            try:
                row[column] = float(value) if value else math.nan
            except ValueError:
                raise UsageError(f"{path}, line {number}, {column}: {quoted(value)} is not a number; {ANEW}") from None
        if "epoch" not in row:
            raise UsageError(f"{path} has no column epoch: it is not the metrics.csv of a run; {ANEW}")
        if not (row["epoch"].is_integer() and row["epoch"] >= 0):
            raise UsageError(f"{path}, line {number}, epoch: {row['epoch']} is not a whole number; {ANEW}")
        rows.append(row)
    return rows


def _read_result(path: Path, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        result = json.loads(read_text(path, LARGEST_RESULT))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {first_line(error)[:200]}; {RESULT}") from None
    figure = task_of(options).headline.key("test")
    needed = (f"{figure}_last", f"{figure}_best", "best_epoch", "best_chosen_on", "params", "macs")
    for key in needed:
        if not isinstance(result, dict) or key not in result:
            raise UsageError(f"{path} lacks {key}: it is not the result of a retraining; {RESULT}")
    for key, value in result.items():
        if (expected := _wrong_in_result(key, value)) is not None:
            raise UsageError(f"{path}: {key}: expected {expected}, found {quoted(value)}; {RESULT}")
    return result


def _wrong_in_result(key: str, value: Any) -> str | None:
    """The type that an entry of result.json should have; None if it has it, or if reports do not read the entry."""
    is_whole = type(value) is int and 0 <= value < 2**63
    if key in ("params", "macs", "params_with_auxiliary") or key.endswith("best_epoch"):
        return None if is_whole else "a whole number"
    if key == "best_chosen_on":
        return None if isinstance(value, str) else "a text"
    if key == "unusual_images":
        fits = isinstance(value, dict) and all(type(count) is int for count in value.values())
        return None if fits else "numbers of images"
    if re.fullmatch(r"(ema_)?test_\w+_(last|best)", key):
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        return None if is_number or value != value else "a number"
    return None


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


def read_mixing_weights(run_dir: Path, epoch: int) -> dict[str, Array]:
    """The mixing weights after an epoch, as they are in the file: `normal`, `reduce` and whatever else is there.

    Much faster than `read_search_epoch`, which also reads the genotype and checks them against it. Raises UsageError if
    the file is missing or damaged.
    """
    path = run_dir / "alphas" / f"epoch_{epoch:04}.npz"
    return {
        name: array for name, array in _read_arrays(path, epoch).items() if not name.startswith(("alpha_", "beta_"))
    }


def read_search_epoch(run_dir: Path, epoch: int | None = None) -> SearchEpoch:
    """The state of a search after an epoch, by default the epoch of its genotype, or the last one so far.

    Raises UsageError if `run_dir` is not a search or lacks the epoch, or if a file is damaged.
    """
    run = read_run(run_dir)
    if run.job != "search":
        raise UsageError(f"{run_dir} is the folder of a retraining; mixing weights are in that of a search")
    if run.baseline:
        raise UsageError(f"{run_dir} is a search without alphas ({run.options['strategy']}): it has no mixing weights")
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
    weights = {
        name: array
        for name, array in _read_arrays(path, epoch).items()
        if not name.startswith(("alpha_", "beta_"))  # raw, not weights
    }
    edges = num_edges(genotype.normal.num_nodes)
    for name in ("normal", "reduce", *weights):
        expected = (edges,) if name.startswith("edge_") else (edges, len(genotype.operations))
        found = f"shape {weights[name].shape}" if name in weights else "no values"
        if found != f"shape {expected}":
            raise UsageError(
                f"{path}: {name!r} has {found}, but {genotype.normal.num_nodes} nodes and "
                f"{len(genotype.operations)} operations need {expected}: the file belongs to another space; "
                f"remove it to go without epoch {epoch}"
            )
        wrong = weights[name][~(np.isfinite(weights[name]) & (weights[name] >= 0))]
        if wrong.size:
            raise UsageError(
                f"{path}: {name!r} holds {wrong[0]:g}, which is no mixing weight, so nothing can be derived from it; "
                f"remove the file to go without epoch {epoch}"
            )
    return SearchEpoch(epoch, genotype, weights)


def _by_epoch(folder: Path, suffix: str) -> dict[int, Path]:
    """The files named epoch_NUMBER, by epoch."""
    found = ((re.fullmatch(r"epoch_(\d{1,9})", path.stem), path) for path in folder.glob(f"*.{suffix}"))
    return {int(match[1]): path for match, path in found if match}


def _read_arrays(path: Path, epoch: int) -> dict[str, Array]:
    """The arrays of an npz file as float64, by name. Raises UsageError if it is none, or its arrays are too large.

    The header of an array is read before the array, and must agree with the bytes that follow: np.load allocates what
    the header says, whatever the file holds.
    """
    try:
        refuse_irregular(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MOST_ARRAYS or any(member.file_size > LARGEST_ARRAY for member in members):
                raise ValueError(
                    f"it has more than {MOST_ARRAYS} arrays, or one of more than {size_text(LARGEST_ARRAY)}"
                )
            return {m.filename.removesuffix(".npy"): _array(m.filename, archive.read(m)) for m in members}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, *DAMAGED) as error:
        reason = why(error) if isinstance(error, OSError) else first_line(error)[:200]
        raise UsageError(f"{path} cannot be read: {reason}; remove it to go without epoch {epoch}") from None


def _array(name: str, content: bytes) -> Array:
    """The array in the bytes of a .npy file; ValueError if it is none of one or two dimensions of numbers."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"{name} has an unknown format")
    shape, _, dtype = read_header[version](file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "fiu" or len(shape) > 2 or min(shape, default=0) < 0 or size != len(content) - file.tell():
        raise ValueError(f"{name} holds {quoted(shape)} values of {quoted(dtype.str)}, and other bytes than these")
    file.seek(0)
    return np.asarray(np.lib.format.read_array(file, allow_pickle=False), dtype=np.float64)
