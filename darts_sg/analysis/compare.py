"""Genotypes side by side, and one taken apart: what each cell and operation costs, memory and latency."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from darts_sg.analysis.cost import (
    CELLS,
    CHANNELS,
    IMAGE_SIZE,
    LAYERS,
    NUM_CLASSES,
    count_params,
    derived_cost,
    saved_bytes,
)
from darts_sg.genotype import NUM_INPUTS, Cell, Genotype
from darts_sg.networks.derived import DerivedNetwork, NetworkShape

WARM_UP, REPETITIONS = 3, 20


def depth(cell: Cell) -> int:
    """Nodes on the longest way from an input to the output."""
    longest = [0] * NUM_INPUTS
    for node in cell.nodes:
        longest.append(1 + max(longest[edge.state] for edge in node))
    return max(longest[state] for state in cell.concat)


def width(cell: Cell) -> float:
    """Sum over the nodes of the share of their edges that come from the inputs (Shu, Wang, Cai 2020, section 2.2)."""
    return sum(sum(edge.state < NUM_INPUTS for edge in node) / len(node) for node in cell.nodes)


def shared_edges(a: Genotype, b: Genotype) -> int:
    """Edges with the same operation, state and node in both, over the two cells."""
    return sum(len(set(x.edges()) & set(y.edges())) for (_, x), (_, y) in zip(a.cells(), b.cells(), strict=True))


def comparison(
    genotypes: Sequence[Genotype],
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
) -> list[dict[str, Any]]:
    """For each genotype what it chose, costs and scores; published and measured errors stand in fields of their own."""
    rows = []
    for genotype in genotypes:
        cost = derived_cost(genotype, network, channels, cells)
        published = genotype.provenance.get("published") or {}
        measured = genotype.provenance.get("measured") or {}
        row: dict[str, Any] = {"name": genotype.name, "space": genotype.space}
        for title, cell in genotype.cells():
            chosen = [edge.operation for _, edge in cell.edges()]
            row[f"{title}_operations"] = {name: chosen.count(name) for name in dict.fromkeys(sorted(chosen))}
            row[f"{title}_depth"], row[f"{title}_width"] = depth(cell), width(cell)
        row["edges_shared_with_first"] = shared_edges(genotypes[0], genotype)
        row |= {"params": cost.params, "params_with_auxiliary": cost.params_with_auxiliary, "macs": cost.macs}
        row["published_cifar10_error"] = published.get("cifar10_error")
        row["measured_test_error"] = measured.get("test_error_percent")
        rows.append(row)
    return rows


class Part(NamedTuple):
    """A part of a derived network with its parameters and multiply-adds for one image."""

    name: str
    params: int
    macs: int


class Anatomy(NamedTuple):
    """A derived network by cells and by operations; the parts of either list add up to the whole network."""

    cells: list[Part]
    operations: list[Part]


def anatomy(
    genotype: Genotype, network: NetworkShape = "cifar", channels: int | None = None, cells: int | None = None
) -> Anatomy:
    """What each cell and each operation of the network costs, by torch's own counter (auxiliary head excluded)."""
    with torch.device("meta"):
        model = _network(genotype, network, channels, cells).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, IMAGE_SIZE[network], IMAGE_SIZE[network]))
    counts = counter.get_flop_counts()

    def macs_of(path: str) -> int:
        found = counts.get(f"DerivedNetwork.{path}", {})
        return sum(found.get(layer, 0) for layer in LAYERS) // 2

    by_cell = [Part("stem", count_params(model.stem), macs_of("stem"))]
    by_operation: dict[str, list[int]] = {}
    for i, cell in enumerate(model.cells):
        reduction = i in (len(model.cells) // 3, 2 * len(model.cells) // 3)
        plan, kind = (genotype.reduce, "reduction") if reduction else (genotype.normal, "normal")
        by_cell.append(Part(f"cell {i} ({kind})", count_params(cell), macs_of(f"cells.{i}")))
        named = [("input layers", f"input_{j}") for j in (0, 1)]
        named += [(edge.operation, f"ops.{j}") for j, (_, edge) in enumerate(plan.edges())]
        for name, path in named:
            total = by_operation.setdefault(name, [0, 0])
            total[0] += count_params(cell.get_submodule(path))
            total[1] += macs_of(f"cells.{i}.{path}")
    head = Part("head", count_params(model.head), macs_of("head"))
    by_cell.append(head)
    operations = [Part(name, *total) for name, total in sorted(by_operation.items(), key=lambda item: -item[1][0])]
    return Anatomy(by_cell, [by_cell[0], *operations, head])


def activation_bytes(
    genotype: Genotype, network: NetworkShape = "cifar", channels: int | None = None, cells: int | None = None
) -> int:
    """Bytes that a training step keeps of one image for its backward pass, in float32; parameters not counted."""
    model = _network(genotype, network, channels, cells)
    images = torch.zeros(2, 3, IMAGE_SIZE[network], IMAGE_SIZE[network]).to(memory_format=torch.channels_last)
    return saved_bytes(model, lambda: model(images)) // len(images)


class Latency(NamedTuple):
    """Seconds of a forward pass: the median, the smallest and the largest of `repetitions`."""

    batch: int
    median: float
    smallest: float
    largest: float
    repetitions: int

    def __str__(self) -> str:
        median, smallest, largest = (f"{1e3 * seconds:.1f}" for seconds in self[1:4])
        return f"{median} ms ({smallest} to {largest}, {self.repetitions} times)"


def latency(
    genotype: Genotype,
    batch: int,
    device: torch.device,
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
) -> Latency:
    """Of the network in eval mode on `device`, after a warm-up."""
    model = _network(genotype, network, channels, cells).eval().to(device)
    images = torch.randn(batch, 3, IMAGE_SIZE[network], IMAGE_SIZE[network], device=device)
    images = images.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return timed([lambda: model(images)], batch, device)[0]


def timed(runs: Sequence[Callable[[], object]], batch: int, device: torch.device) -> list[Latency]:
    """Of each of `runs`, which take turns, after a warm-up."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(WARM_UP + REPETITIONS):
        for run, seconds in zip(runs, times, strict=True):
            begun = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= WARM_UP:
                seconds.append(time.perf_counter() - begun)
    return [Latency(batch, statistics.median(t), min(t), max(t), REPETITIONS) for t in times]


def _network(genotype: Genotype, network: NetworkShape, channels: int | None, cells: int | None) -> DerivedNetwork:
    model = DerivedNetwork(
        genotype,
        network=network,
        channels=channels or CHANNELS[network],
        cells=cells or CELLS[network],
        num_classes=NUM_CLASSES[network],
    )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
