"""Latency tables: the time of every operation of a space at every place of a derived network, measured on one device.

The latency of a network is predicted as a sum, times a factor: its stem, what every cell costs beside its operations
(input layers, sums and concatenation), its operations, and its head. The factor is measured on whole networks. It makes
up for what differs for parts that run alone, such as the content of the caches.

Networks run in PyTorch (eager), in inference mode and in the layout channels_last. BatchNorm uses its running
statistics and is not folded into the convolutions before it. `genotype cost` measures whole networks in the same way.
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from darts_sg.analysis.compare import timed
from darts_sg.analysis.cost import (
    CELLS,
    CHANNELS,
    IMAGE_SIZE,
    NUM_CLASSES,
    EdgePlace,
    cell_places,
    derived_cost,
    edge_places,
)
from darts_sg.derive import Costs, num_edges, random_cell
from darts_sg.errors import UsageError, cut, quoted
from darts_sg.genotype import MOST_NODES, NUM_INPUTS, Cell, Edge, Genotype
from darts_sg.networks.derived import DerivedCell, DerivedNetwork, NetworkShape
from darts_sg.networks.skeleton import MOST_CELLS, MOST_CHANNELS, CellSpec, State
from darts_sg.ops import OPERATIONS
from darts_sg.ops.drop_path import drop_path
from darts_sg.spaces import Space, parse_space
from darts_sg.yaml_files import read_mapping

FORMAT = "darts_sg latency table, version 1"
ROUNDS, CHECK_ROUNDS = 100, 30
LEAST_SECONDS = 0.002
"""On a GPU a part is called so often in a row that its time spans that long, so that launches overlap with kernels as
in a network. On a CPU it is called once a round, when the parts before it have evicted its weights from the caches."""
MOST_IMAGES, MOST_PIXELS = 4096, 2**12
CALIBRATION, CALIBRATION_SEED = 4, 2**32 - 1
"""Number of random genotypes whose networks give the factor, and the seed that they are drawn by."""
MOST_FACTOR = 100.0
NEGLIGIBLE = 1.0  # microseconds: an identity takes less, and its time is mostly that of the clock
NOISY = 0.1
"""A part is reported if its times scatter by more than this share of their median."""


@dataclass(frozen=True, kw_only=True)
class DerivedShape:
    """All that decides a derived network's latency on a device, apart from its genotype."""

    network: NetworkShape = "cifar"
    channels: int
    cells: int
    nodes: int = 4
    image_size: int
    batch_size: int = 1
    num_classes: int
    in_channels: int = 3

    @property
    def size(self) -> str:
        """Width and depth, as for other costs: C=36, 20 cells."""
        return f"C={self.channels}, {self.cells} cells"

    @property
    def is_published(self) -> bool:
        """True if width and depth are those of the papers."""
        return (self.channels, self.cells) == (CHANNELS[self.network], CELLS[self.network])

    def __str__(self) -> str:
        images = f"{self.batch_size} {'image' if self.batch_size == 1 else 'images'}"
        return f"{self.network} shape, {self.size}, {self.nodes} nodes, {images} of {self.image_size}×{self.image_size}"


def derived_shape(
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
    image_size: int | None = None,
    **more: Any,
) -> DerivedShape:
    """A shape, by default in the papers' size: C=36 and 20 cells on CIFAR, C=48 and 14 cells on ImageNet."""
    return DerivedShape(
        network=network,
        channels=channels or CHANNELS[network],
        cells=cells or CELLS[network],
        image_size=image_size or IMAGE_SIZE[network],
        num_classes=NUM_CLASSES[network],
        **more,
    )


class Timing(NamedTuple):
    """A measured time: the median in microseconds, and the interquartile range as a share of it."""

    microseconds: float
    spread: float


@dataclass(frozen=True)
class FixedPart:
    """A part of every derived network: the stem, cells without their operations, or the head."""

    name: str
    count: int
    """Number of times that the network contains it."""
    timing: Timing


@dataclass(frozen=True)
class LatencyTable:
    """The times of one space and shape on one device."""

    space: str
    operations: tuple[str, ...]
    shape: DerivedShape
    choices: Mapping[tuple[str, EdgePlace], Timing]
    """By operation and place. `none` is not among them, because no derived network has it."""
    fixed: tuple[FixedPart, ...]
    factor: float
    """Latencies of whole networks relative to the sums of their parts."""
    machine: Mapping[str, Any]
    """Where, when and how it was measured: device, device_name, threads, versions, command, …"""
    source: str = "the latency table"
    """The file, for messages."""

    @property
    def fixed_microseconds(self) -> float:
        """The time of all that no choice changes."""
        return self.factor * sum(part.count * part.timing.microseconds for part in self.fixed)

    @property
    def place(self) -> str:
        """The device, with its threads: AMD EPYC, 1 thread."""
        threads = self.machine.get("threads")
        return f"{self.machine.get('device_name')}, {threads} {'thread' if threads == 1 else 'threads'}"

    @property
    def noisy(self) -> list[str]:
        """The parts whose times scatter by more than NOISY, apart from those too short to matter."""
        parts = [(f"{name} {_place_text(place)}", timing) for (name, place), timing in self.choices.items()]
        parts += [(part.name, part.timing) for part in self.fixed]
        return [name for name, timing in parts if timing.spread > NOISY and timing.microseconds > NEGLIGIBLE]

    def microseconds(self, operations: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Unrounded times of the (normal, reduction) cells' edges, summed over the network's cells, times the factor.

        (num_edges, num_operations) each; 0 for `none`. Raises UsageError if the table lacks an operation.
        """
        missing = [name for name in operations if name not in self.operations]
        if missing:
            raise UsageError(
                f"{self.source} is of the space {cut(self.space)}, without {missing[0]}; measure one with "
                f"python -m darts_sg latency-table --space {'+'.join(operations)}"
            )
        shape = self.shape
        tables = [np.zeros((num_edges(shape.nodes), len(operations))) for _ in range(2)]
        for reduction, edge, place in edge_places(
            shape.network, shape.channels, shape.cells, shape.nodes, shape.image_size
        ):
            for i, name in enumerate(operations):
                if name != "none":
                    tables[reduction][edge, i] += self.factor * self.choices[name, place].microseconds
        return tables[0], tables[1]

    def costs(self, operations: Sequence[str]) -> Costs:
        """The table as costs of the edges, in whole microseconds: exact sums over cells, rounded once."""
        normal, reduce = (np.rint(table).astype(np.int64) for table in self.microseconds(operations))
        return Costs(normal, reduce, max(1, round(self.fixed_microseconds)), self.shape.size, "us")

    def predict(self, genotype: Genotype) -> float:
        """The latency of the genotype's network in microseconds. Raises UsageError if the table does not cover it."""
        self.refuse_other(genotype.normal.num_nodes)
        costs = self.costs(genotype.operations)
        return float(costs.of((genotype.normal, genotype.reduce), genotype.operations))

    def refuse_other(
        self,
        nodes: int,
        network: NetworkShape | None = None,
        channels: int | None = None,
        cells: int | None = None,
        way_out: str = "measure one of that shape",
    ) -> None:
        """UsageError if the table is of another number of nodes, or of another shape where one is given.

        way_out: what to do then, for the message.
        """
        shape, wrong = self.shape, []
        if network is not None and network != shape.network:
            wrong.append(f"--network {network}")
        if channels is not None and channels != shape.channels:
            wrong.append(f"C={channels}")
        if cells is not None and cells != shape.cells:
            wrong.append(f"{cells} cells")
        if nodes != shape.nodes:
            wrong.append(f"cells of {nodes} nodes")
        if wrong:
            raise UsageError(
                f"{self.source} is of the {shape.network} shape, {shape.size}, {shape.nodes} nodes, not of "
                f"{', '.join(wrong)}; {way_out}"
            )

    def foreign(self, device_name: str, threads: int | None = None) -> str:
        """A warning if the table was measured on another device, or with another number of threads; empty if not."""
        same = device_name == self.machine.get("device_name")
        if same and (threads is None or threads == self.machine.get("threads")):
            return ""
        here = device_name if threads is None else f"{device_name}, {threads} {'thread' if threads == 1 else 'threads'}"
        return f"{self.source} was measured on {self.place}, and this is {here}: latencies are those of the former"

    def as_dict(self) -> dict[str, Any]:
        """The content of the file."""
        shape = {name: getattr(self.shape, name) for name in DerivedShape.__dataclass_fields__}
        return {
            "format": FORMAT,
            "space": self.space,
            "operations": list(self.operations),
            "shape": shape,
            "measured": dict(self.machine),
            "factor": round(self.factor, 4),
            "fixed": [{"part": part.name, "count": part.count, **_timing_fields(part.timing)} for part in self.fixed],
            "choices": [
                {"operation": name, **place._asdict(), **_timing_fields(timing)}
                for (name, place), timing in self.choices.items()
            ],
        }


def _timing_fields(timing: Timing) -> dict[str, float]:
    return {"microseconds": round(timing.microseconds, 3), "spread": round(timing.spread, 4)}


def _place_text(place: EdgePlace) -> str:
    return f"at C={place.C}, {place.size}×{place.size}, stride {place.stride}"


# Measuring


class _Given(nn.Module):
    """Stands for an operation whose output is there already, to time what surrounds the operations of a cell."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output


def measure_table(
    space: Space,
    shape: DerivedShape,
    device: torch.device,
    machine: Mapping[str, Any],
    rounds: int = ROUNDS,
) -> LatencyTable:
    """Measure a table on `device`: each distinct part once a round, all in turns, after a warm-up.

    machine: what the table records of the device. Raises UsageError if the parts do not fit into memory.
    """
    sizes = shape.network, shape.channels, shape.cells, shape.nodes, shape.image_size
    names = [name for name in space.operations if name != "none"]
    places = dict.fromkeys(place for _, _, place in edge_places(*sizes))
    cells = Counter(cell_places(*sizes))
    with _answering_memory(shape), torch.inference_mode():
        inputs = _Inputs(shape.batch_size, device)
        runs: dict[Any, Callable[[], object]] = {}
        for place in places:  # one place after the other, as the operations of a cell read the same states
            for name in names:
                module = _ready(OPERATIONS[name].build(place.C, place.stride, True), device)
                runs[name, place] = partial(_run_operation, module, inputs(place.C, place.size))
        runs |= {cell: _frame_run(*cell, shape.nodes, inputs, device) for cell in cells}
        stem, head = _ends(shape, device)
        images = inputs(shape.in_channels, shape.image_size)
        last, side = list(cell_places(*sizes))[-1]
        joined = State(inputs(shape.nodes * last.C, -(-side // 2) if last.reduction else side))
        known = random_genotypes(space, shape.nodes, CALIBRATION, CALIBRATION_SEED)
        runs |= {genotype.name: partial(_ready(_network(genotype, shape), device), images) for genotype in known}
        runs["stem"] = lambda: stem(images)
        runs["head"] = lambda: head(joined.joined())
        least = LEAST_SECONDS if device.type == "cuda" else 0.0
        found = timed(list(runs.values()), shape.batch_size, device, rounds, least)
    timings = {key: Timing(1e6 * time.median, time.spread) for key, time in zip(runs, found, strict=True)}
    fixed = [FixedPart("stem", 1, timings["stem"])]
    fixed += [FixedPart(_cell_name(*cell), count, timings[cell]) for cell, count in cells.items()]
    fixed.append(FixedPart("head", 1, timings["head"]))
    choices = {(name, place): timings[name, place] for place in places for name in names}
    table = LatencyTable(space.name, space.operations, shape, choices, tuple(fixed), 1.0, dict(machine))
    ratios = [timings[genotype.name].microseconds / table.predict(genotype) for genotype in known]
    return replace(table, factor=round(statistics.geometric_mean(ratios), 4))


class _Inputs:
    """Random states (N, C, size, size), one of each size: the operations at a place read the same one."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.batch_size, self.device = batch_size, device
        self.states: dict[tuple[int, int], Tensor] = {}

    def __call__(self, C: int, size: int) -> Tensor:
        if (C, size) not in self.states:
            values = torch.rand(self.batch_size, C, size, size, device=self.device)
            self.states[C, size] = values.contiguous(memory_format=torch.channels_last)
        return self.states[C, size]


def _run_operation(module: nn.Module, x: Tensor) -> Tensor:
    return drop_path(module(x), None)  # as a cell calls it


def _ready(module: nn.Module, device: torch.device) -> nn.Module:
    return module.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _frame_run(spec: CellSpec, size: int, nodes: int, inputs: _Inputs, device: torch.device) -> Callable[[], object]:
    """A pass of a cell whose operations cost nothing: the ReLU of c_{k-1}, both input layers, sums, concatenation."""
    side = -(-size // 2) if spec.reduction else size
    edges = tuple((Edge("skip_connect", 0), Edge("skip_connect", 1)) for _ in range(nodes))
    cell = DerivedCell(Cell(edges, tuple(range(NUM_INPUTS, NUM_INPUTS + nodes))), spec)
    cell.ops = nn.ModuleList(_Given(inputs(spec.C, side)) for _ in cell.ops)
    ready = _ready(cell, device)
    older = State(inputs(spec.C_pp, 2 * size if spec.reduction_before else size).clone())
    older.rectified()  # c_{k-2} was rectified for the cell before
    newer = inputs(spec.C_p, size).clone()
    return lambda: ready(older, State(newer), None)


def _ends(shape: DerivedShape, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Stem and head of a network of this shape."""
    edges = tuple((Edge("skip_connect", 0), Edge("skip_connect", 1)) for _ in range(shape.nodes))
    cell = Cell(edges, tuple(range(NUM_INPUTS, NUM_INPUTS + shape.nodes)))
    network = _network(Genotype("any", "", ("skip_connect",), cell, cell), shape)
    assert network.head is not None
    return _ready(network.stem, device), _ready(network.head, device)


def _network(genotype: Genotype, shape: DerivedShape) -> DerivedNetwork:
    return DerivedNetwork(
        genotype,
        network=shape.network,
        channels=shape.channels,
        cells=shape.cells,
        num_classes=shape.num_classes,
        in_channels=shape.in_channels,
    )


def _cell_name(spec: CellSpec, size: int) -> str:
    kind = "reduction" if spec.reduction else "normal"
    after = ", after a reduction" if spec.reduction_before else ""
    return f"{kind} cell without operations, C={spec.C} from {spec.C_pp} and {spec.C_p}, {size}×{size}{after}"


@contextmanager
def _answering_memory(shape: DerivedShape) -> Iterator[None]:
    """Context in which PyTorch's errors about memory become a UsageError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UsageError(f"{shape}: this does not fit into memory; make it smaller") from None


# Checking


class Checked(NamedTuple):
    """A random genotype: predicted and measured latency of its network in microseconds."""

    predicted: float
    measured: float
    spread: float
    macs: int


class Agreement(NamedTuple):
    """The accuracy of a table's predictions for whole networks."""

    rank_correlation: float
    """Spearman's, of predicted and measured latency."""
    rank_correlation_of_macs: float
    """The same for the number of multiply-adds instead of the prediction."""
    mean_absolute_relative_error: float
    mean_relative_error: float
    """Positive where the predictions are too large."""


def random_genotypes(space: Space, nodes: int, count: int, seed: int) -> list[Genotype]:
    """Genotypes drawn uniformly from a space."""
    generator = np.random.default_rng(seed)
    tables = space.allowed or (None, None)
    found = []
    for i in range(count):
        normal, reduce = (random_cell(nodes, space.operations, generator, table) for table in tables)
        found.append(Genotype(f"random_{i}", space.name, space.operations, normal, reduce))
    return found


def check_table(
    table: LatencyTable, count: int, seed: int, device: torch.device, rounds: int = CHECK_ROUNDS
) -> list[Checked]:
    """Predict and measure the latencies of `count` random genotypes of the table's space on `device`, in turns."""
    shape = table.shape
    genotypes = random_genotypes(parse_space(table.space), shape.nodes, count, seed)
    with _answering_memory(shape), torch.inference_mode():
        networks = [_ready(_network(genotype, shape), device) for genotype in genotypes]
        images = _Inputs(shape.batch_size, device)(shape.in_channels, shape.image_size)
        found = timed([partial(network, images) for network in networks], shape.batch_size, device, rounds)
    sizes = shape.network, shape.channels, shape.cells, shape.num_classes, shape.image_size, shape.in_channels
    return [
        Checked(table.predict(genotype), 1e6 * time.median, time.spread, derived_cost(genotype, *sizes).macs)
        for genotype, time in zip(genotypes, found, strict=True)
    ]


def agreement(checked: Sequence[Checked]) -> Agreement:
    """Spearman's rank correlations and relative errors of the predictions, over three genotypes or more."""
    predicted, measured, _, macs = (np.array(column) for column in zip(*checked, strict=True))
    errors = predicted / measured - 1
    return Agreement(
        _rank_correlation(predicted, measured),
        _rank_correlation(macs, measured),
        float(np.abs(errors).mean()),
        float(errors.mean()),
    )


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; nan if one of the two is constant."""
    from scipy.stats import spearmanr  # takes a second to import

    return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else math.nan


# Reading


def read_latency_table(path: Path) -> LatencyTable:
    """Read a table that `latency-table` wrote. Raises UsageError, in one line, for anything else."""
    content = read_mapping(path)
    if content.get("format") != FORMAT:
        raise UsageError(
            f"{path} is no latency table: expected format: {FORMAT}, found {quoted(content.get('format'))}"
        )
    try:
        operations = tuple(_text(name, "operations") for name in _list(content, "operations"))
        shape = _shape(_mapping(content, "shape"))
        choices = {}
        for entry in _entries(content, "choices"):
            place = EdgePlace(*(_whole(entry, key, MOST_CHANNELS) for key in EdgePlace._fields))
            choices[_text(entry.get("operation"), "operation"), place] = _timing(entry)
        fixed = tuple(
            FixedPart(_text(entry.get("part"), "part"), _whole(entry, "count", MOST_CELLS), _timing(entry))
            for entry in _entries(content, "fixed")
        )
        sizes = shape.network, shape.channels, shape.cells, shape.nodes, shape.image_size
        names = [name for name in operations if name != "none"]
        for place in dict.fromkeys(place for _, _, place in edge_places(*sizes)):
            for name in names:
                if (name, place) not in choices:
                    raise UsageError(f"it lacks {name} {_place_text(place)}")
        if sum(part.count for part in fixed) != shape.cells + 2:
            raise UsageError(f"fixed: expected the stem, {shape.cells} cells and the head")
        machine = _mapping(content, "measured")
        factor = _number(content, "factor", MOST_FACTOR)
        if not factor:
            raise UsageError("factor: expected a number above 0, found 0")
        space = _text(content.get("space"), "space")
    except UsageError as error:
        raise UsageError(f"latency table {path}: {error}") from None
    return LatencyTable(space, operations, shape, choices, fixed, factor, machine, f"latency table {path}")


def _shape(found: Mapping[str, Any]) -> DerivedShape:
    if found.get("network") not in ("cifar", "imagenet"):
        raise UsageError(f"network: expected cifar or imagenet, found {quoted(found.get('network'))}")
    most = {
        "channels": MOST_CHANNELS, "cells": MOST_CELLS, "nodes": MOST_NODES, "image_size": MOST_PIXELS,
        "batch_size": MOST_IMAGES, "num_classes": 2**20, "in_channels": MOST_CHANNELS,
    }  # fmt: skip
    return DerivedShape(network=found["network"], **{key: _whole(found, key, limit) for key, limit in most.items()})


def _mapping(content: Mapping[Any, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key)
    if not isinstance(found, dict):
        raise UsageError(f"{key}: expected a mapping, found {quoted(found)}")
    return found


def _list(content: Mapping[Any, Any], key: str) -> list[Any]:
    found = content.get(key)
    if not isinstance(found, list) or not found:
        raise UsageError(f"{key}: expected a list, found {quoted(found)}")
    return found


def _entries(content: Mapping[Any, Any], key: str) -> Iterable[Mapping[str, Any]]:
    return (_mapping({key: entry}, key) for entry in _list(content, key))


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{key}: expected a text, found {quoted(value)}")
    return value


def _whole(entry: Mapping[str, Any], key: str, most: int) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise UsageError(f"{key}: expected a whole number from 1 to {most:,}, found {quoted(value)}")
    return value


def _timing(entry: Mapping[str, Any]) -> Timing:
    return Timing(_number(entry, "microseconds", 1e12), _number(entry, "spread", 1e12))


def _number(entry: Mapping[str, Any], key: str, most: float) -> float:
    value = entry.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:  # nan is not, either
        raise UsageError(f"{key}: expected a number from 0 to {most:g}, found {quoted(value)}")
    return float(value)
