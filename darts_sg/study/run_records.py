"""What one run of a study measured, as a record: a plain dict that pandas takes."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from darts_sg.analysis.cost import derived_counts
from darts_sg.analysis.curves import CELL_TITLES
from darts_sg.analysis.measured import scale
from darts_sg.analysis.run_folder import Run, SearchEpoch, read_mixing_weights, read_search_epoch, search_epochs
from darts_sg.derive import entropy, num_edges
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS, Genotype
from darts_sg.tasks import Task

Record = dict[str, Any]


class Metric(NamedTuple):
    """The figure in percent by which trainings are compared: the headline of their task."""

    noun: str = "error"
    """error, mAP (VOC07), …"""
    larger_is_better: bool = False

    @property
    def better(self) -> str:
        """How the better of two is called: smaller, or larger."""
        return "larger" if self.larger_is_better else "smaller"

    @property
    def worse(self) -> str:
        return "smaller" if self.larger_is_better else "larger"

    def order(self, value: float) -> float:
        """A key that sorts the best value first."""
        return -value if self.larger_is_better else value


ERROR = Metric()
"""The metric of classification."""


def metric_of(task: Task) -> Metric:
    """The metric of a task; larger is better if its figure grows with the measure that chooses the best epoch."""
    figure = task.headline
    return Metric(figure.noun, figure.value(1.0) > figure.value(0.0))


def arm_name(space: str, method: str) -> str:
    """How a space and a method are called together: `darts · pc-darts`."""
    return " · ".join(part for part in (space, method) if part)


def group_name(record: Mapping[str, Any]) -> str:
    """What a trained genotype stands for: the space and method that found it, or what else it is."""
    match record["kind"]:
        case "reference":
            return "published genotypes"
        case "model":
            return "models"
        case "random":
            return f"random, {record['space']}"
        case "bounded":
            return f"{arm_name(record['space'], record['method'])}, bounded"
    return arm_name(record["space"], record["method"])


def search_record(run: Run) -> Record:
    """Beliefs, cell and cost of a search so far; what a run does not have is None."""
    last = run.rows[-1] if run.rows else {}
    accuracy = last.get("validation_accuracy", math.nan)
    measured = (run.genotype.provenance.get("measured") or {}) if run.finished and run.genotype else {}
    error = 100 * (1 - accuracy) if math.isfinite(accuracy) else None
    if isinstance(found := measured.get("validation_accuracy_percent"), int | float):
        error = 100 - found
    return {
        "setting": _search_setting(run),
        "machine": run.machine,
        "epochs": int(last.get("epoch", 0)),
        "planned_epochs": run.options.get("epochs"),
        "hours": _hours(run),
        "validation_accuracy": error if error is None else 100 - error,
        "validation_error": error,
        "alpha_steps": measured.get("alpha_steps"),
        "eigenvalue": _last_finite(run, "eigenvalue"),
        "skips_by_epoch": _skips_by_epoch(run),
        **beliefs(run),
        **_cells(run.genotype),
    }


def _last_finite(run: Run, name: str) -> float | None:
    """The last value of a column of metrics.csv that is a number; None if there is none."""
    values = [row[name] for row in run.rows if math.isfinite(row.get(name, math.nan))]
    return values[-1] if values else None


def _skips_by_epoch(run: Run, most: int = 5) -> str | None:
    """`epoch: skip connections of the normal cell derived after it`: first and last epoch, and some evenly between."""
    counted = [row for row in run.rows if math.isfinite(row.get("skips_normal", math.nan))]
    if not counted:
        return None
    places = sorted({round(i) for i in np.linspace(0, len(counted) - 1, min(most, len(counted)))})
    return ", ".join(f"{int(counted[i]['epoch'])}: {int(counted[i]['skips_normal'])}" for i in places)


def beliefs(run: Run) -> Record:
    """What a search believes of its cells besides the accuracy of the supernet; larger is better.

    `mixing_weight`: mean mixing weight of the operations that the genotype keeps. Scores that the search wrote into its
    genotype's provenance under `proxies` follow under their names, as `proxy NAME`.
    """
    found: Record = {"mixing_weight": None, "entropy_normal": None, "entropy_reduce": None}
    if run.genotype is None:
        return found
    proxies = run.genotype.provenance.get("proxies")
    if isinstance(proxies, Mapping):
        found |= {f"proxy {name}": value for name, value in proxies.items() if isinstance(value, int | float)}
    try:
        epoch = read_search_epoch(run.folder, run.genotype_epoch)
    except UsageError:  # a method without mixing weights, or a folder without them
        return found
    found["mixing_weight"] = chosen_weight(run.genotype, epoch)
    return found | {f"entropy_{title}": float(entropy(epoch.weights[title]).mean()) for title in CELL_TITLES}


def chosen_weight(genotype: Genotype, epoch: SearchEpoch) -> float | None:
    """Mean mixing weight of the operations that a genotype keeps; None if it does not fit the epoch's weights."""
    weights = []
    for title, cell in genotype.cells():
        table = epoch.weights[title]
        for state, edge in cell.edges():
            row = num_edges(state - NUM_INPUTS) + edge.state
            if edge.operation not in epoch.genotype.operations or row >= len(table):
                return None
            weights.append(table[row, epoch.genotype.operations.index(edge.operation)])
    return float(np.mean(weights))


def training_record(run: Run) -> Record:
    """Figures and cost of a training so far; what a run does not have is None.

    `metric` names what trainings of its task are compared by, and `figure` is its value after the last epoch in
    percent; `error` and `best_error` are those of a classifier.
    """
    result, last = run.result or {}, run.rows[-1] if run.rows else {}
    key, metric = run.task.headline.key("test"), metric_of(run.task)
    return {
        "metric": metric.noun,
        "larger_is_better": metric.larger_is_better,
        "figure": result.get(f"{key}_last"),
        "best_figure": result.get(f"{key}_best"),
        "machine": run.machine,
        "epochs": int(last.get("epoch", 0)),
        "planned_epochs": run.options.get("epochs"),
        "hours": _hours(run),
        "error": result.get("test_error_last"),
        "best_error": result.get("test_error_best"),
        "best_chosen_on": result.get("best_chosen_on"),
        "params": result.get("params"),
        "macs": result.get("macs"),
        "train_images": (run.environment.get("data") or {}).get("train_images"),
        "genotype_params": _cells(run.genotype)["genotype_params"],
    }


def training_setting(run: Run) -> str:
    """Data and scale, as they must stand beside every figure of a training."""
    return f"{any_seed(run.data)}: {scale(run)}"


def any_seed(data: str) -> str:
    """The name of data without the seed that they were rendered from, so that runs differ in nothing but their seeds.

    The images of the data set `synthetic` follow from the seed of the run: its spread over the seeds includes theirs.
    """
    return re.sub(r"\brendered from seed \d+", "rendered from the seed of the run", data)


def operations_by_epoch(run: Run, most: int = 24) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """By cell: epochs, at most `most` of them, each with the mixing weight of every operation, averaged over the edges.

    Empty for a search without mixing weights.
    """
    there = search_epochs(run.folder)
    if not there or run.genotype is None:
        return {}
    operations = run.genotype.operations
    found: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for number in sorted({there[round(i)] for i in np.linspace(0, len(there) - 1, min(most, len(there)))}):
        try:
            weights = read_mixing_weights(run.folder, number)
        except UsageError:  # still being written, or damaged: the curve goes on with the next
            continue
        for title in CELL_TITLES:
            table = weights.get(title)
            if table is not None and table.ndim == 2 and table.shape[1] == len(operations):  # else of another space
                means = dict(zip(operations, table.mean(axis=0).tolist(), strict=True))
                found.setdefault(title, []).append((number, means))
    return found


def _search_setting(run: Run) -> str:
    if run.finished and run.genotype is not None and run.genotype.provenance.get("train_images"):
        return any_seed(run.genotype.search_size)
    options, data = run.options, run.environment.get("data") or {}
    images = [
        f"{data[key]:,}" if isinstance(data.get(key), int) else "?" for key in ("train_images", "validation_images")
    ]
    return (
        f"{any_seed(run.data)}, C={options.get('channels')}, {options.get('cells')} cells, {images[0]} images for the "
        f"weights and {images[1]} for the alphas, {options.get('epochs')} epochs"
    )


def _hours(run: Run) -> float | None:
    seconds = run.rows[-1].get("seconds", math.nan) if run.rows else math.nan
    return seconds / 3600 if math.isfinite(seconds) else None


def _cells(genotype: Genotype | None) -> Record:
    """Name, counted costs in the papers' shape, and skip connections of a genotype."""
    keys = ("genotype", "genotype_params", "genotype_macs", "skips_normal", "skips_reduce")
    if genotype is None:
        return dict.fromkeys(keys)
    counts: tuple[int | None, int | None]
    try:
        (counts,) = derived_counts([genotype])
    except UsageError:  # an operation that is unknown here
        counts = None, None
    return dict(zip(keys, (genotype.name, *counts, *genotype.count("skip_connect")), strict=True))
