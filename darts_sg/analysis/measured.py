"""Test errors found in run folders, pooled over the trainings that differ in nothing but their seed."""

import os
import statistics
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from darts_sg.analysis.run_folder import Run, read_run
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell, Genotype

IN_SCALE = ("network", "channels", "cells", "epochs", "train_images", "cutout_length", "drop_path_prob")
"""Options that the scale of a training spells out, with the number of images that it really used."""


def runs_in(folder: Path, *, of_models: bool = False) -> list[Run]:
    """Read the finished runs below `folder`, at any depth, sorted by path: those of genotypes, or those of models.

    Raises UsageError if `folder` is not a folder, or if a file of such a run is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give the one that holds run folders, such as results or runs")
    return [run for run in map(read_run, sorted(_run_folders(folder, of_models))) if run.finished]


def _run_folders(folder: Path, of_models: bool) -> Iterator[Path]:
    """Find the folders below `folder` that hold options and a genotype, or options, a result and no genotype.

    Hidden folders are skipped, and so is everything inside a run folder. A symbolic link counts if it leads to a run
    folder; no other link is followed, since it may lead round in a circle.
    """

    def is_run(path: Path) -> bool:
        has_genotype = (path / "genotype.yaml").is_file()
        wanted = (path / "result.json").is_file() and not has_genotype if of_models else has_genotype
        return wanted and (path / "config.yaml").is_file()

    for here, names, _ in os.walk(folder):
        inner = {name: Path(here, name) for name in names if not name.startswith(".")}
        found = {name for name, path in inner.items() if is_run(path)}
        yield from (inner[name] for name in found)
        names[:] = inner.keys() - found


def wiring(genotype: Genotype) -> tuple[Any, ...]:
    """A key of the network: equal for genotypes that differ only in name, space and the order of a node's edges."""

    def content(cell: Cell) -> tuple[Any, ...]:
        return tuple(tuple(sorted((e.state, e.operation) for e in node)) for node in cell.nodes), cell.concat

    return tuple(content(cell) for _, cell in genotype.cells())


def same_cells(a: Genotype, b: Genotype) -> bool:
    """Tell whether both give the same network, whatever their names, spaces and the order of a node's edges."""
    return wiring(a) == wiring(b)


class Score(NamedTuple):
    """Test errors in percent after the last epoch, of trainings that differ in nothing but their seed."""

    errors: tuple[float, ...]
    seeds: tuple[int, ...]
    params: tuple[int, ...]
    """Parameters of the networks at this scale, without the auxiliary head."""
    data: str
    scale: str
    """Channels, cells, epochs, images, cutout, drop path; then options that tell it from scores of the same scale."""
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
        """Everything that must be quoted beside the figure."""
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        trained = f"{len(self.errors)} trained to the last epoch, {seeds}"
        return f"{self.data}: {self.scale}; {trained}; {', '.join(self.machines)}"

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread} on {self.setting}"

    def as_dict(self) -> dict[str, Any]:
        """The fields, with mean and deviation, for JSON."""
        return {"mean": self.mean, "deviation": self.deviation, **self._asdict()}


def scores(runs: Iterable[Run], compared: Mapping[str, Any]) -> list[Score]:
    """Pool the trainings among `runs` that differ in nothing but the seed; copies of a run count once.

    compared: the options that they must share, with their defaults (config.compared_options).
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.result is None or "test_error_last" not in run.result:  # not finished, or another task
            continue
        group = groups.setdefault(setting(run, compared), [])
        if all(run.result != other.result for other in group):
            group.append(run)
    apart = distinctions(groups, compared)
    return [
        Score(
            errors=tuple(float(run.result["test_error_last"]) for run in group if run.result),
            seeds=tuple(run.options.get("seed", 0) for run in group),
            params=tuple(int(run.result["params"]) for run in group if run.result),
            data=key[0],
            scale=key[1] + apart[key],
            machines=machines(group),
        )
        for key, group in groups.items()
    ]


def setting(run: Run, compared: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key by which trainings are pooled: (data, scale, the other options in `compared`)."""
    return run.data, scale(run), *option_values(run.options, _beside_scale(compared))


def distinctions(settings: Collection[tuple[Any, ...]], compared: Mapping[str, Any]) -> dict[tuple[Any, ...], str]:
    """For each setting the options that tell it from others of the same data and scale: `, sync_batchnorm true`.

    Empty for a setting whose data and scale no other one has.
    """
    found = {}
    for key in settings:
        alike = [other[2:] for other in settings if other[:2] == key[:2]]
        options = zip(_beside_scale(compared), key[2:], zip(*alike, strict=True), strict=True)
        differing = [f", {name} {_shown(value)}" for name, value, values in options if len(set(values)) > 1]
        found[key] = "".join(differing)
    return found


def _beside_scale(compared: Mapping[str, Any]) -> dict[str, Any]:
    return {name: default for name, default in compared.items() if name not in IN_SCALE}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value) or "none"


def option_values(options: Mapping[str, Any], compared: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of the options in `compared`, or the defaults where `options` lacks them, as a key of a dict."""
    return tuple(_plain(options.get(name, default)) for name, default in compared.items())


def _plain(value: Any) -> Hashable:
    """A value in one form, whether it comes from config.yaml (lists, texts) or is a default (tuples, paths)."""
    match value:
        case list() | tuple():
            return tuple(map(_plain, value))
        case Path():
            return str(value)
        case dict():
            return tuple((key, _plain(inner)) for key, inner in sorted(value.items()))
    return value if isinstance(value, Hashable) else repr(value)


def machines(runs: Iterable[Run]) -> tuple[str, ...]:
    """The machines of runs, each once."""
    return tuple(dict.fromkeys(run.machine for run in runs))


def scale(run: Run) -> str:
    """Size and length of a training in words: channels, cells, epochs, images, cutout and drop path."""
    options, data = run.options, run.environment.get("data") or {}
    images = data.get("train_images")
    shape = "" if options.get("network", "cifar") == "cifar" else f"{options['network']} shape, "
    return (
        f"{shape}C={options.get('channels')}, {options.get('cells')} cells, {options.get('epochs')} epochs"
        + (f" of {images:,} images" if isinstance(images, int) else "")
        + f", cutout {options.get('cutout_length')}, drop path {options.get('drop_path_prob') or 0:g}"
    )
