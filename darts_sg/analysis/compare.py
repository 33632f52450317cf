"""Comparison of genotypes, and the anatomy of one: costs by cell and operation, memory and latency."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.analysis.cost import (
    CELLS,
    CHANNELS,
    DETECTOR,
    IMAGE_SIZE,
    NUM_CLASSES,
    MacCounter,
    count_params,
    derived_cost,
    model_network,
    saved_bytes,
    uninitialised,
)
from darts_sg.analysis.measured import same_cells, scores
from darts_sg.analysis.run_folder import Run
from darts_sg.genotype import NUM_INPUTS, Cell, Genotype
from darts_sg.networks.derived import DerivedNetwork, NetworkShape
from darts_sg.networks.mobile import Model
from darts_sg.networks.ssdlite import DetectorOutputs, prior_boxes

WARM_UP, REPETITIONS = 3, 20
MOST_CALLS = 1000  # in a row, of a run that is too short to be timed alone
LARGE_SPREAD = 0.1
"""Above this spread a latency is reported with a warning."""


def depth(cell: Cell) -> int:
    """Number of nodes on the longest path from an input to the output."""
    longest = [0] * NUM_INPUTS
    for node in cell.nodes:
        longest.append(1 + max((longest[edge.state] for edge in node), default=-1))
    return max(longest[state] for state in cell.concat)


def width(cell: Cell) -> float:
    """Sum over nodes of the share of their edges that come from the inputs (Shu, Wang, Cai 2020, section 2.2)."""
    return sum(sum(edge.state < NUM_INPUTS for edge in node) / len(node) for node in cell.nodes if node)


def shared_edges(a: Genotype, b: Genotype) -> int:
    """Number of edges with the same operation, state and node in both genotypes, over both cells."""
    return sum(len(set(x.edges()) & set(y.edges())) for (_, x), (_, y) in zip(a.cells(), b.cells(), strict=True))


def compare_genotypes(
    genotypes: Sequence[Genotype],
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
    runs: Sequence[Run] = (),
    compared: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """One row a genotype: its operations, costs and scores, with separate fields for published and measured errors.

    `measured_test_error` is a list of Scores: of those trainings among `runs` (see `runs_in`) that trained the same
    cells, under whatever name. `runs` need `compared`, the options that pooled trainings share (see `scores`).
    """
    if runs and compared is None:
        raise ValueError("runs are pooled by their options: give compared, too")
    rows = []
    for genotype in genotypes:
        cost = derived_cost(genotype, network, channels, cells)
        published = genotype.provenance.get("published") or {}
        row: dict[str, Any] = {"name": genotype.name, "space": genotype.space}
        for title, cell in genotype.cells():
            chosen = [edge.operation for _, edge in cell.edges()]
            row[f"{title}_operations"] = {name: chosen.count(name) for name in dict.fromkeys(sorted(chosen))}
            row[f"{title}_depth"], row[f"{title}_width"] = depth(cell), width(cell)
        row["edges_shared_with_first"] = shared_edges(genotypes[0], genotype)
        row |= {"params": cost.params, "params_with_auxiliary": cost.params_with_auxiliary, "macs": cost.macs}
        row["activation_bytes_an_image"] = activation_bytes(genotype, network, channels, cells)
        for score in ("cifar10_error", "cifar10_error_deviation", "imagenet_top1_error"):
            row[f"published_{score}"] = published.get(score)
        row["measured_test_error"] = scores(
            (run for run in runs if run.genotype and same_cells(run.genotype, genotype)), compared or {}
        )
        rows.append(row)
    return rows


class Part(NamedTuple):
    """A part of a derived network: its parameters, and its multiply-adds for one image."""

    name: str
    params: int
    macs: int


@dataclass(frozen=True)
class Stage:
    """A stage of the stacked network: the stem, a cell, or the head."""

    name: str
    kind: Literal["stem", "normal", "reduction", "head"]
    C: int | None
    """Channels of a cell's nodes."""
    shape: tuple[int, int]
    """(channels, height) of the output; (classes, 1) for the head."""
    parts: tuple[Part, ...]

    @property
    def whole(self) -> Part:
        """The sum of the parts, named after the stage."""
        return _sum(self.name, self.parts)


@dataclass(frozen=True)
class Anatomy:
    """Two views of a derived network without its auxiliary head; the parts of each add up to the whole network."""

    stages: tuple[Stage, ...]
    auxiliary_after: int
    """The cell that the auxiliary head follows."""
    auxiliary_params: int

    @property
    def whole(self) -> Part:
        """The whole network."""
        return _sum("network", self.cells)

    @property
    def cells(self) -> list[Part]:
        """One part a stage."""
        return [stage.whole for stage in self.stages]

    @property
    def operations(self) -> list[Part]:
        """One part an operation, summed over all cells, largest first, between the stem and the head."""
        found: dict[str, list[Part]] = {}
        for stage in self.stages[1:-1]:
            for part in stage.parts:
                found.setdefault(part.name, []).append(part)
        sums = [_sum(name, parts) for name, parts in found.items()]
        ordered = sorted(sums, key=lambda part: (-part.params, -part.macs, part.name))
        return [self.stages[0].whole, *ordered, self.stages[-1].whole]


def _sum(name: str, parts: Iterable[Part]) -> Part:
    _, params, macs = zip(*parts, strict=True)
    return Part(name, sum(params), sum(macs))


def anatomy(
    genotype: Genotype, network: NetworkShape = "cifar", channels: int | None = None, cells: int | None = None
) -> Anatomy:
    """The cost of each cell and each operation, counted by MacCounter; the auxiliary head is excluded."""
    counter = MacCounter()
    shapes: dict[nn.Module, tuple[int, int]] = {}
    macs: dict[nn.Module, int] = {}

    def begin(module: nn.Module, inputs: Any) -> None:
        macs[module] = -counter.macs

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        macs[module] += counter.macs
        last = output[-1] if isinstance(output, tuple) else output
        shapes[module] = (last.shape[1], last.shape[2] if len(last.shape) == 4 else 1)

    model = uninitialised(lambda: _network(genotype, network, channels, cells, auxiliary=True))
    assert model.head is not None
    for module in [*model.stem.modules(), *model.cells.modules(), *model.head.modules()]:
        module.register_forward_pre_hook(begin)
        module.register_forward_hook(note)
    with counter, torch.no_grad():
        model(torch.empty(0, 3, IMAGE_SIZE[network], IMAGE_SIZE[network]))

    def part(name: str, path: str) -> Part:
        module = model.get_submodule(path)
        return Part(name, count_params(module), macs[module])

    stages = [Stage("stem", "stem", None, shapes[model.stem], (part("stem", "stem"),))]
    for i, (cell, spec) in enumerate(zip(model.cells, model.specs, strict=True)):
        plan = genotype.reduce if spec.reduction else genotype.normal
        kind: Literal["reduction", "normal"] = "reduction" if spec.reduction else "normal"
        named = [("input layers", f"input_{j}") for j in (0, 1)]
        named += [(edge.operation, f"ops.{j}") for j, (_, edge) in enumerate(plan.edges())]
        parts = tuple(part(name, f"cells.{i}.{path}") for name, path in named)
        stages.append(Stage(f"cell {i} ({kind})", kind, spec.C, shapes[cell], parts))
    assert model.head is not None
    stages.append(Stage("head", "head", None, shapes[model.head], (part("head", "head"),)))
    return Anatomy(tuple(stages), model.auxiliary_after, count_params(model.get_submodule("auxiliary_head")))


def activation_bytes(
    genotype: Genotype, network: NetworkShape = "cifar", channels: int | None = None, cells: int | None = None
) -> int:
    """Bytes that a float32 training step saves per image for the backward pass, without parameters."""
    model = _network(genotype, network, channels, cells)
    images = torch.zeros(2, 3, IMAGE_SIZE[network], IMAGE_SIZE[network]).to(memory_format=torch.channels_last)
    return saved_bytes(model, lambda: model(images)) // len(images)


class Latency(NamedTuple):
    """Seconds of a pass or a step: median, minimum and maximum of `repetitions`."""

    batch: int
    median: float
    smallest: float
    largest: float
    repetitions: int
    spread: float
    """The interquartile range as a share of the median."""

    def __str__(self) -> str:
        median, smallest, largest = (f"{1e3 * seconds:.1f}" for seconds in self[1:4])
        return f"{median} ms ({smallest} to {largest}, {self.repetitions} times)"

    @property
    def doubt(self) -> str:
        """A warning if the times scatter widely, because the machine did other work meanwhile; empty otherwise."""
        if self.spread <= LARGE_SPREAD:
            return ""
        return (
            f"the latency at batch {self.batch} scatters by {100 * self.spread:.0f}% (interquartile range / median): "
            "measure again on an idle machine"
        )


def latency(
    genotypes: Sequence[Genotype],
    batch: int,
    device: torch.device,
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
) -> list[Latency]:
    """Inference latency of each network on `device`, after a warm-up. They take turns, so that load hits all alike."""
    models = [_network(genotype, network, channels, cells).to(device) for genotype in genotypes]
    return _inference(models, _images(batch, network, device))


def model_latency(
    models: Sequence[Model], batch: int, device: torch.device, shape: str = "imagenet"
) -> list[tuple[Latency, Latency]]:
    """Latencies of each model: inference, and a training step (forward, backward, SGD with momentum).

    After a warm-up; the networks take turns. `batch`: two or more images. Detectors, of the shape voc, have a loss
    over all prior boxes; decoding and NMS are not timed.
    """
    images = _images(batch, shape, device)
    places = len(prior_boxes("authors")) if shape == DETECTOR else 1
    labels = torch.arange(batch * places, device=device) % NUM_CLASSES[shape]

    def training_step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        outputs = net(images)[0]
        if isinstance(outputs, DetectorOutputs):
            loss = F.cross_entropy(outputs.logits.flatten(0, 1), labels) + outputs.offsets.abs().mean()
        else:
            loss = F.cross_entropy(outputs, labels)
        loss.backward()
        optimizer.step()

    networks = [model_network(model, shape) for model in models]
    for net in networks:
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = [
        functools.partial(training_step, net.train(), torch.optim.SGD(net.parameters(), 0.01, momentum=0.9))
        for net in networks
    ]
    training = timed(steps, batch, device)
    return list(zip(_inference(networks, images), training, strict=True))


def _images(batch: int, network: str, device: torch.device) -> Tensor:
    images = torch.randn(batch, 3, IMAGE_SIZE[network], IMAGE_SIZE[network], device=device)
    return images.to(memory_format=torch.channels_last)


def _inference(networks: Sequence[nn.Module], images: Tensor) -> list[Latency]:
    with torch.inference_mode():
        return timed([functools.partial(net.eval(), images) for net in networks], len(images), images.device)


def timed(
    runs: Sequence[Callable[[], object]],
    batch: int,
    device: torch.device,
    repetitions: int | None = None,
    least_seconds: float = 0.0,
) -> list[Latency]:
    """The latency of each of `runs`, which take turns, after a warm-up.

    repetitions: times of each; by default REPETITIONS.
    least_seconds: a run that takes less is called so often in a row that a time spans that long, and divided by the
    number of calls. On a GPU its launches then overlap with the kernels before, as within a network.
    """
    repetitions = REPETITIONS if repetitions is None else repetitions
    times: list[list[float]] = [[] for _ in runs]
    calls = [1] * len(runs)
    for turn in range(WARM_UP + repetitions):
        for i, (run, seconds) in enumerate(zip(runs, times, strict=True)):
            begun = time.perf_counter()
            for _ in range(calls[i]):
                run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken = (time.perf_counter() - begun) / calls[i]
            if turn >= WARM_UP:
                seconds.append(taken)
            elif turn > 0 and least_seconds:  # the first call compiles and allocates
                calls[i] = min(MOST_CALLS, max(1, math.ceil(least_seconds / max(taken, 1e-9))))
    return [Latency(batch, statistics.median(t), min(t), max(t), repetitions, spread_of(t)) for t in times]


def spread_of(times: Sequence[float]) -> float:
    """The interquartile range as a share of the median."""
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return (upper - lower) / median


def _network(
    genotype: Genotype, network: NetworkShape, channels: int | None, cells: int | None, auxiliary: bool = False
) -> DerivedNetwork:
    model = DerivedNetwork(
        genotype,
        network=network,
        channels=channels or CHANNELS[network],
        cells=cells or CELLS[network],
        num_classes=NUM_CLASSES[network],
        auxiliary=auxiliary,
    )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
