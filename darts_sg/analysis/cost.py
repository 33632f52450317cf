"""Costs of networks: parameters (of derived networks with and without the auxiliary head) and multiply-adds."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from darts_sg.derive import Costs, num_edges
from darts_sg.errors import UsageError
from darts_sg.files import size_text
from darts_sg.genotype import NUM_INPUTS, Cell, Edge, Genotype
from darts_sg.networks import ssdlite
from darts_sg.networks.build import NetworkPlan
from darts_sg.networks.derived import DerivedNetwork, NetworkShape
from darts_sg.networks.mobile import MobileNetwork, Model
from darts_sg.networks.skeleton import CellSpec, cell_specs, edge_stride, stem_channels
from darts_sg.ops import OPERATIONS

Network = TypeVar("Network", bound=nn.Module)

DETECTOR = "voc"
"""Among the shapes of models: SSDLite on the model as a backbone, for Pascal VOC."""
IMAGE_SIZE: dict[str, int] = {"cifar": 32, "imagenet": 224, DETECTOR: ssdlite.IMAGE_SIZE}
NUM_CLASSES: dict[str, int] = {"cifar": 10, "imagenet": 1000, DETECTOR: 20}
CHANNELS: dict[str, int] = {"cifar": 36, "imagenet": 48}
CELLS: dict[str, int] = {"cifar": 20, "imagenet": 14}
"""The shapes that the papers report: CIFAR with C=36 and 20 cells, ImageNet with C=48 and 14 cells."""
MOBILE_MACS = 600_000_000
"""Upper limit of the mobile setting on ImageNet."""


@dataclass(frozen=True)
class Cost:
    """Exact counts of one network. MACs count convolutions and linear layers for one image, without auxiliary head."""

    params: int
    params_with_auxiliary: int
    """Equals `params` for a network that has none."""
    macs: int


def count_params(module: nn.Module) -> int:
    """Number of trainable parameters (scale and shift of BatchNorm included)."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def mobile_verdict(network: str, macs: int) -> str:
    """A network's relation to the mobile setting in words; empty for shapes other than imagenet."""
    if network != "imagenet":
        return ""
    return f"{'within' if macs < MOBILE_MACS else 'above'} the mobile limit of {MOBILE_MACS // 10**6}M"


class MacCounter(TorchFunctionMode):
    """Context that adds up, in `macs`, the multiply-adds of the convolutions and linear layers run within it.

    An empty batch counts as one image: its tensors have shapes, but no values to compute. PyTorch's FlopCounterMode
    counts the same, but imports PyTorch's compiler, which takes longer than everything else here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function in (torch.conv2d, F.linear):  # the mixing of a supernet is a plain product and does not count
            weight = args[1]
            self.macs += max(1, out.shape[0]) * out.shape[1:].numel() * weight[0].numel()
        return out


def count_macs(module: nn.Module, *inputs: object) -> int:
    """Multiply-adds of convolutions and linear layers in one forward pass: see MacCounter."""
    with MacCounter() as counter, torch.no_grad():
        module(*inputs)
    return counter.macs


def uninitialised(build: Callable[[], Network]) -> Network:
    """A module in eval mode with uninitialised weights: fast to build, for counting with an empty batch."""
    with torch.device("meta"):
        module = build().eval()
    try:
        # `to_empty` does the same, but imports sympy, which takes 0.8 s
        return module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        needed = size_text(sum(p.numel() * p.element_size() for p in module.parameters()))
        raise UsageError(f"a network of this size takes {needed}, which this machine does not have") from None


def saved_bytes(module: nn.Module, run: Callable[[], object]) -> int:
    """Bytes that `run`, a forward pass of `module`, saves for the backward pass, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def derived_cost(
    genotype: Genotype,
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    in_channels: int = 3,
) -> Cost:
    """The cost of the network derived from a genotype, by default in the papers' size for its shape.

    Nothing is computed or initialised. Raises UsageError as DerivedNetwork does.
    """
    shape = network, channels or CHANNELS[network], cells or CELLS[network]
    return _derived_cost(
        genotype, *shape, num_classes or NUM_CLASSES[network], image_size or IMAGE_SIZE[network], in_channels
    )


@functools.lru_cache(maxsize=256)
def _derived_cost(
    genotype: Genotype, network: NetworkShape, C: int, num_cells: int, num_classes: int, size: int, in_channels: int
) -> Cost:
    shape: Any = {"channels": C, "cells": num_cells, "num_classes": num_classes, "in_channels": in_channels}
    model = uninitialised(lambda: DerivedNetwork(genotype, network=network, auxiliary=True, **shape))
    macs = count_macs(model, torch.empty(0, in_channels, size, size))
    with_auxiliary = count_params(model)
    model.auxiliary_head = None
    return Cost(count_params(model), with_auxiliary, macs)


def model_network(
    model: Model, shape: str = "imagenet", num_classes: int | None = None, in_channels: int = 3
) -> nn.Module:
    """The network of a model in a shape: cifar, imagenet, or voc, which is a detector with 20 classes."""
    classes = num_classes or NUM_CLASSES[shape]
    if shape == DETECTOR:
        plan = NetworkPlan(trained=model, shape="imagenet")
        return ssdlite.SSDLite(plan, num_classes=classes, in_channels=in_channels)
    return MobileNetwork(
        model, network="cifar" if shape == "cifar" else "imagenet", num_classes=classes, in_channels=in_channels
    )


def model_cost(
    model: Model,
    shape: str = "imagenet",
    num_classes: int | None = None,
    image_size: int | None = None,
    in_channels: int = 3,
) -> Cost:
    """The cost of a model, by default in the papers' size for its shape, see `model_network`. Nothing is computed."""
    size = image_size or IMAGE_SIZE[shape]
    built = uninitialised(lambda: model_network(model, shape, num_classes, in_channels))
    macs = count_macs(built, torch.empty(0, in_channels, size, size))
    params = count_params(built)
    return Cost(params, params, macs)


def shape_text(network: NetworkShape = "cifar", channels: int | None = None, cells: int | None = None) -> str:
    """A shape in words, by default in the papers' size."""
    title = {"cifar": "CIFAR", "imagenet": "ImageNet"}[network]
    return f"{title}, C={channels or CHANNELS[network]}, {cells or CELLS[network]} cells"


def cost_text(params: int, macs: int, shape: str) -> str:
    """Parameters and MACs with the counting convention, for captions."""
    return f"{params:,} parameters, {macs / 1e6:.1f}M MACs ({shape}; auxiliary head excluded)"


def cost_caption(
    genotype: Genotype, network: NetworkShape = "cifar", channels: int | None = None, cells: int | None = None
) -> str:
    """The cost_text of a genotype's network."""
    cost = derived_cost(genotype, network, channels, cells)
    return cost_text(cost.params, cost.macs, shape_text(network, channels, cells))


def choice_costs(
    operations: Sequence[str],
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
    num_nodes: int = 4,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    in_channels: int = 3,
) -> tuple[Costs, Costs]:
    """(parameters, MACs) of derived networks as sums over the edges that their cells choose; all nodes are joined.

    By default in the papers' size for the shape. Raises UsageError as DerivedNetwork does.
    """
    shape = network, channels or CHANNELS[network], cells or CELLS[network], num_nodes
    size = image_size or IMAGE_SIZE[network]
    fixed = _fixed_costs(*shape, num_classes or NUM_CLASSES[network], size, in_channels)
    title = f"C={shape[1]}, {shape[2]} cells" + (f", {size}×{size} pixels" if size != IMAGE_SIZE[network] else "")
    params, macs = (
        costs._replace(fixed=rest, size=title)
        for costs, rest in zip(_edge_costs(operations, *shape, size), fixed, strict=True)
    )
    return params, macs


def _edge_costs(
    operations: Sequence[str], network: NetworkShape, C: int, num_cells: int, num_nodes: int, image_size: int
) -> tuple[Costs, Costs]:
    """(parameters, MACs) of the edges alone, without fixed costs."""
    edges = num_edges(num_nodes)
    tables = {reduction: np.zeros((2, edges, len(operations)), dtype=np.int64) for reduction in (False, True)}
    for reduction, edge, place in edge_places(network, C, num_cells, num_nodes, image_size):
        for i, name in enumerate(operations):
            tables[reduction][:, edge, i] += operation_cost(name, *place)
    params, macs = (Costs(tables[False][i], tables[True][i], 0) for i in range(2))
    return params, macs


class EdgePlace(NamedTuple):
    """The shape that decides the cost of an operation on an edge: it maps (N, C, size, size) with this stride."""

    C: int
    stride: int
    size: int


def edge_places(
    network: NetworkShape, C: int, num_cells: int, num_nodes: int, image_size: int
) -> Iterator[tuple[bool, int, EdgePlace]]:
    """Every edge of every cell of a derived network: (whether the cell is a reduction, number of the edge, place)."""
    for spec, size in cell_places(network, C, num_cells, num_nodes, image_size):
        for node in range(num_nodes):
            for state in range(NUM_INPUTS + node):
                stride = edge_stride(spec.reduction, state)
                side = size if stride == 2 or not spec.reduction else -(-size // 2)
                yield spec.reduction, num_edges(node) + state, EdgePlace(spec.C, stride, side)


def cell_places(
    network: NetworkShape, C: int, num_cells: int, num_nodes: int, image_size: int
) -> Iterator[tuple[CellSpec, int]]:
    """Every cell of a derived network whose nodes are all joined, with the height of its state c_{k-1}."""
    size = image_size
    for _ in range(0 if network == "cifar" else 3):  # halvings of the ImageNet stem
        size = -(-size // 2)
    for spec in cell_specs(C, num_cells, stem_channels(network, C), lambda reduction: num_nodes, network == "imagenet"):
        yield spec, size
        size = -(-size // 2) if spec.reduction else size


@functools.cache
def _fixed_costs(
    network: NetworkShape, C: int, num_cells: int, num_nodes: int, num_classes: int, image_size: int, in_channels: int
) -> tuple[int, int]:
    """(parameters, MACs) of stem, input layers and head: those of a known network minus those of its edges."""
    operations = ("skip_connect",)
    nodes = tuple((Edge("skip_connect", 0), Edge("skip_connect", 1)) for _ in range(num_nodes))
    cell = Cell(nodes, tuple(range(NUM_INPUTS, NUM_INPUTS + num_nodes)))
    genotype = Genotype("known", "", operations, cell, cell)
    known = derived_cost(genotype, network, C, num_cells, num_classes, image_size, in_channels)
    params, macs = (
        costs.of((cell, cell), operations)
        for costs in _edge_costs(operations, network, C, num_cells, num_nodes, image_size)
    )
    return known.params - params, known.macs - macs


def derived_counts(genotypes: Sequence[Genotype], network: NetworkShape = "cifar") -> list[tuple[int, int]]:
    """(parameters, MACs) of each genotype's network in the papers' size, as derived_cost counts them.

    Genotypes with equally many nodes share one table of their operations' costs, much faster than one by one.
    """
    operations = tuple(dict.fromkeys(name for genotype in genotypes for name in genotype.operations))
    tables: dict[int, tuple[Costs, Costs]] = {}
    found = []
    for genotype in genotypes:
        cells = genotype.normal, genotype.reduce
        nodes = genotype.normal.num_nodes
        # choice_costs assumes equally many nodes in both cells, all of them joined
        if any(cell.num_nodes != nodes or len(cell.concat) != nodes for cell in cells):
            cost = derived_cost(genotype, network)
            found.append((cost.params, cost.macs))
            continue
        if nodes not in tables:
            tables[nodes] = choice_costs(operations, network, num_nodes=nodes)
        params, macs = (table.of(cells, operations) for table in tables[nodes])
        found.append((params, macs))
    return found


@functools.cache
def operation_cost(name: str, C: int, stride: int, size: int) -> tuple[int, int]:
    """(parameters, MACs) of an operation in a derived network on (1, C, size, size); (0, 0) for `none`."""
    if name == "none":
        return 0, 0
    module = uninitialised(lambda: OPERATIONS[name].build(C, stride, True))
    return count_params(module), count_macs(module, torch.empty(0, C, size, size))


def human(count: float) -> str:
    """A count as the papers write it: 3.35M, 528.4M, 12.3k."""
    if count == 0:
        return "0"
    power = min(3, int(math.log10(abs(count)) // 3))
    return f"{count / 1000**power:.{0 if power == 0 else 2 if power < 3 and count / 1000**power < 100 else 1}f}" + (
        "" if power == 0 else "kMG"[power - 1]
    )
