"""Test errors that trainings measured, found in run folders by the cells that were trained."""

import os
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from darts_sg.analysis.run_folder import Run, read_run
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell, Genotype

ALIKE = {
    "batch_size": None, "learning_rate": None, "learning_rate_min": None, "momentum": None, "weight_decay": None,
    "gradient_clip": None, "auxiliary_weight": None, "label_smoothing": None, "warmup_epochs": None,
    "schedule": "cosine", "precision": "float32", "colour_jitter": None, "finetune": None,
}  # fmt: skip
"""Options that trainings of one Score share, beside those that its scale names, each with what it was in runs that are
older than the option."""


def runs_in(folder: Path) -> list[Run]:
    """The finished runs whose folders lie in `folder` at any depth, by their paths.

    Raises UsageError if `folder` is none, or if a file of such a run is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give the one that holds run folders, such as results or runs")
    return [run for run in map(read_run, sorted(_run_folders(folder))) if run.finished]


def _run_folders(folder: Path) -> Iterator[Path]:
    """The folders below `folder` with options and a genotype; what lies in such a one, or is hidden, is not looked at.

    A link counts if it leads to such a folder, and is not followed further.
    """

    def is_run(path: Path) -> bool:
        return (path / "config.yaml").is_file() and (path / "genotype.yaml").is_file()

    for here, names, _ in os.walk(folder):
        inner = {name: Path(here, name) for name in names if not name.startswith(".")}
        found = {name for name, path in inner.items() if is_run(path)}
        yield from (inner[name] for name in found)
        names[:] = inner.keys() - found


def wiring(genotype: Genotype) -> tuple[Any, ...]:
    """What makes the network: equal for genotypes that differ in name, space and the order of a node's edges only."""

    def content(cell: Cell) -> tuple[Any, ...]:
        return tuple(tuple(sorted((e.state, e.operation) for e in node)) for node in cell.nodes), cell.concat

    return tuple(content(cell) for _, cell in genotype.cells())


def same_cells(a: Genotype, b: Genotype) -> bool:
    """Whether both are the same network: name, space, and the order of a node's edges do not matter."""
    return wiring(a) == wiring(b)


class Score(NamedTuple):
    """Test errors after the last epoch, in percent, of trainings that differ by nothing but their seed."""

    errors: tuple[float, ...]
    seeds: tuple[int, ...]
    params: tuple[int, ...]
    """Of the networks at this scale, auxiliary head excluded."""
    data: str
    scale: str
    """Channels, cells, epochs, images, cutout and drop path."""
    machines: tuple[str, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.errors)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for one training."""
        return statistics.stdev(self.errors) if len(self.errors) > 1 else None

    @property
    def setting(self) -> str:
        """All that must stand beside the figure."""
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        trained = f"{len(self.errors)} trained to the last epoch, {seeds}"
        return f"{self.data}: {self.scale}; {trained}; {', '.join(self.machines)}"

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread} ({self.setting})"

    def as_dict(self) -> dict[str, Any]:
        """The fields with mean and deviation."""
        return {"mean": self.mean, "deviation": self.deviation, **self._asdict()}


def scores(runs: Iterable[Run]) -> list[Score]:
    """The trainings among `runs` that are alike but for the seed, as one Score each; copies of a run count once."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.result is None or "test_error_last" not in run.result:  # not finished, or another task
            continue
        group = groups.setdefault(setting(run), [])
        if all(run.result != other.result for other in group):
            group.append(run)
    return [
        Score(
            errors=tuple(float(run.result["test_error_last"]) for run in group if run.result),
            seeds=tuple(run.options.get("seed", 0) for run in group),
            params=tuple(int(run.result["params"]) for run in group if run.result),
            data=data,
            scale=scale,
            machines=machines(group),
        )
        for (data, scale, *_), group in groups.items()
    ]


def setting(run: Run) -> tuple[Any, ...]:
    """What trainings must share to be compared: (data, scale, the options in ALIKE)."""
    return (run.data, _scale(run), *(run.options.get(key, older) or None for key, older in ALIKE.items()))


def machines(runs: Iterable[Run]) -> tuple[str, ...]:
    """The machines of runs, each once."""
    return tuple(dict.fromkeys(run.machine for run in runs))


def _scale(run: Run) -> str:
    options, data = run.options, run.environment.get("data") or {}
    images = data.get("train_images")
    shape = "" if options.get("network", "cifar") == "cifar" else f"{options['network']} shape, "
    return (
        f"{shape}C={options.get('channels')}, {options.get('cells')} cells, {options.get('epochs')} epochs"
        + (f" of {images:,} images" if isinstance(images, int) else "")
        + f", cutout {options.get('cutout_length')}, drop path {options.get('drop_path_prob'):g}"
    )
