"""Test errors that trainings measured, found in run folders by the cells that were trained."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from darts_sg.analysis.run_folder import Run, read_run
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell, Genotype

ALIKE = ("batch_size", "learning_rate", "auxiliary_weight", "label_smoothing", "warmup_epochs")
"""Options that trainings of one Score share, beside those that its scale names."""


def runs_in(folder: Path) -> list[Run]:
    """The finished runs whose folders lie in `folder`, by name.

    Raises UsageError if `folder` is none, or if a file of such a run is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give the one that holds run folders, such as results or runs")
    found = (path.parent for path in sorted(folder.glob("*/config.yaml")) if path.with_name("genotype.yaml").is_file())
    return [run for run in map(read_run, found) if run.finished]


def same_cells(a: Genotype, b: Genotype) -> bool:
    """Whether both are the same network: name, space, and the order of a node's edges do not matter."""

    def content(cell: Cell) -> tuple[Any, ...]:
        return [sorted((edge.state, edge.operation) for edge in node) for node in cell.nodes], cell.concat

    return all(content(x) == content(y) for (_, x), (_, y) in zip(a.cells(), b.cells(), strict=True))


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
        if run.result is None:
            continue
        hidden = [run.options.get(key) or None for key in ALIKE]  # an older run has not all of them
        group = groups.setdefault((run.data, _scale(run), *hidden), [])
        if all(run.result != other.result for other in group):
            group.append(run)
    return [
        Score(
            errors=tuple(float(run.result["test_error_last"]) for run in group if run.result),
            seeds=tuple(run.options.get("seed", 0) for run in group),
            params=tuple(int(run.result["params"]) for run in group if run.result),
            data=data,
            scale=scale,
            machines=tuple(dict.fromkeys(_machine(run) for run in group)),
        )
        for (data, scale, *_), group in groups.items()
    ]


def _scale(run: Run) -> str:
    options, data = run.options, run.environment.get("data") or {}
    images = data.get("train_images")
    shape = "" if options.get("network", "cifar") == "cifar" else f"{options['network']} shape, "
    return (
        f"{shape}C={options.get('channels')}, {options.get('cells')} cells, {options.get('epochs')} epochs"
        + (f" of {images:,} images" if isinstance(images, int) else "")
        + f", cutout {options.get('cutout_length')}, drop path {options.get('drop_path_prob'):g}"
    )


def _machine(run: Run) -> str:
    env = run.environment
    name = str(env.get("device_name") or env.get("device") or "unknown machine")
    return f"{name}, {env['threads']} threads" if env.get("threads") else name
