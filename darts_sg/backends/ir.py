"""Operations and their sum in nodes, computed by kernels of our own: the same function, with its gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from darts_sg.ops.primitives import HalvingConv, HalvingConvBN

ACTIVATIONS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.ReLU6: 2}
POOLS: dict[type[nn.Module], int] = {nn.MaxPool2d: 1, nn.AvgPool2d: 2}
KERNEL_SIZES = (3, 5, 7)
DTYPES = {torch.float32: "float", torch.float64: "double"}
EDGES, NODES, MIXED_NODES = range(3)  # what the gradient of a stage is given as


@dataclass(frozen=True)
class Stage:
    """An activation, a depthwise and a 1×1 convolution, each of them or none, and a BatchNorm, on all edges;
    the same with a HalvingConv instead of convolutions; or a pool and a BatchNorm or none, on all states."""

    norm: nn.BatchNorm2d | None
    activation: int = 0
    depthwise: nn.Conv2d | None = None
    pointwise: nn.Conv2d | None = None
    pool: nn.MaxPool2d | nn.AvgPool2d | None = None
    halving: HalvingConv | None = None

    def weights(self) -> list[Tensor]:
        """Of its convolutions, then weight and bias of its BatchNorm, if it has them."""
        found = [layer.weight for layer in (self.depthwise, self.pointwise) if layer is not None]
        if self.halving is not None:
            found += (self.halving.conv_1.weight, self.halving.conv_2.weight)
        if self.norm is not None and self.norm.affine:
            found += (self.norm.weight, self.norm.bias)
        return found


class Operation(NamedTuple):
    """A chain of stages on each edge, a pool on each state, or, without stages, the states themselves."""

    stages: Sequence[Stage] = ()
    input: int = 0
    """Which of the inputs it takes."""

    @property
    def shared(self) -> bool:
        """Whether it has one output for each state, for all edges that leave it."""
        return not self.stages or self.stages[0].pool is not None


@dataclass(frozen=True, eq=False)
class Operations:
    """What leads from the S states of each input to T nodes, over E = S · T edges.

    Made once and given to each `run`, for they keep what is the same in all of these.
    """

    S: int
    T: int
    each: Sequence[Operation]
    parts: int = 1
    """In how many parts a state is given, whose channels follow each other; if there are several each operation has
    stages."""

    def stages(self) -> list[Stage]:
        return [stage for operation in self.each for stage in operation.stages]

    @cached_property
    def alone(self) -> "Graph":
        """A graph of nothing else."""
        num_inputs = self.S * self.parts * (1 + max(operation.input for operation in self.each))
        nodes = range(num_inputs, num_inputs + self.T)
        return Graph(num_inputs, [Step(self, range(num_inputs), nodes)], nodes)


class Step(NamedTuple):
    """Operations in a graph: from which of its states they lead, those of the first input first, all parts of one
    before the next, and to which T."""

    operations: Operations
    states: Sequence[int]
    nodes: Sequence[int]

    def inputs(self) -> list[Sequence[int]]:
        """Its states, input by input."""
        size = self.operations.S * self.operations.parts
        return [self.states[i : i + size] for i in range(0, len(self.states), size)]


@dataclass(frozen=True, eq=False)
class Graph:
    """Steps that are computed one after the other, such as a cell: on a CPU alone.

    The states are numbered, those that it is given first. Each of the others is the sum of all that steps give it, and
    is complete before another step leads from it. Made once and given to each `run_graph`.
    """

    num_inputs: int
    steps: Sequence[Step]
    outputs: Sequence[int]
    """None of those that it is given."""
    passed_on: Sequence[int] = ()
    """Those that it is given and gives back as they are, for what takes them after it: so their gradients are added up
    within the kernels."""

    @cached_property
    def stages(self) -> list[Stage]:
        return [stage for step in self.steps for stage in step.operations.stages()]

    def weights(self) -> list[Tensor]:
        """Those of its stages."""
        return [weight for stage in self.stages for weight in stage.weights()]

    @cached_property
    def taken(self) -> set[int]:
        """The states that steps lead from."""
        return {state for step in self.steps for state in step.states}

    @cached_property
    def together(self) -> list[Sequence[int]]:
        """For each step and each of its inputs those of its states that the graph is given."""
        inputs = [states for step in self.steps for states in step.inputs()]
        found = [[state for state in states if state < self.num_inputs] for states in inputs]
        return [states for states in found if states]


def stages_of(layers: Sequence[nn.Module], E: int) -> list[Stage] | None:
    """The stages that a chain of layers on E edges consists of; None if it has a layer that is not known here."""
    stages: list[Stage] = []
    rest: list[Any] = []
    for layer in layers:
        rest += [layer, layer.bn] if isinstance(layer, HalvingConvBN) else [layer]

    def next_if(fits: bool) -> Any:
        return rest.pop(0) if fits else None

    while rest:
        activation = next_if(type(rest[0]) in ACTIVATIONS)
        depthwise = next_if(bool(rest) and _is_depthwise(rest[0]))
        pointwise = next_if(bool(rest) and _is_pointwise(rest[0], E))
        halving = next_if(bool(rest) and depthwise is pointwise is None and _halves(rest[0], E))
        norm = next_if(bool(rest) and isinstance(rest[0], nn.BatchNorm2d) and rest[0].momentum is not None)
        if norm is None or depthwise is pointwise is halving is None:
            return None
        number = ACTIVATIONS.get(type(activation), 0)
        stages.append(Stage(norm, number, depthwise, pointwise, halving=halving))
    return stages


def pool_of(layers: Sequence[nn.Module]) -> Stage | None:
    """The stage of a 3×3 pool, with its BatchNorm if it has one; None if the layers are something else."""
    norm = layers[1] if len(layers) == 2 else None
    if len(layers) > 2 or not isinstance(layers[0], tuple(POOLS)) or not isinstance(norm, nn.BatchNorm2d | None):
        return None
    if norm is not None and norm.momentum is None:
        return None
    pool = cast(nn.MaxPool2d, layers[0])
    known = (pool.kernel_size, pool.padding) == (3, 1) and isinstance(pool.stride, int) and not pool.ceil_mode
    if isinstance(pool, nn.MaxPool2d):
        known = known and pool.dilation == 1
    else:
        known = known and not cast(nn.AvgPool2d, pool).count_include_pad
    return Stage(norm, pool=pool) if known else None


def kind_of(pool: nn.Module) -> int:
    """Its number in POOLS."""
    return next(number for kind, number in POOLS.items() if isinstance(pool, kind))


def _is_depthwise(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d) or not layer.in_channels == layer.out_channels == layer.groups:
        return False
    k, d, s = layer.kernel_size, layer.dilation, layer.stride
    square = k[0] == k[1] in KERNEL_SIZES and d[0] == d[1] and s[0] == s[1]
    same = layer.padding == (d[0] * (k[0] // 2),) * 2 and layer.padding_mode == "zeros"
    return square and same and layer.bias is None


def _is_pointwise(layer: nn.Module, E: int) -> bool:
    if not isinstance(layer, nn.Conv2d) or layer.bias is not None:
        return False
    return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == E


def _halves(layer: nn.Module, E: int) -> bool:
    return isinstance(layer, HalvingConv) and layer.groups == E and layer.C_out >= 2 * E


def run(states: Sequence[Tensor], gamma: Tensor, operations: Operations, onto: Sequence[Tensor] = ()) -> list[Tensor]:
    """What the operations give to the T nodes, added to what is in `onto`, if there is anything: T tensors of
    (N, C, H', W').

    states: on a CPU the S states of the first input, then of the next, each (N, C, H, W), all float32 or all float64;
    those of an input are of one shape. On a GPU one input, its states side by side: (N, S · C, H, W).
    gamma: (number of operations, E), the scale of each one's last BatchNorm, which then has no weight of its own; or,
    on a CPU, (number of operations, E, N), a factor of each one's output for each image, which gets no gradient.
    Raises Unavailable if the kernels cannot be compiled.
    """
    if states[0].device.type == "cuda":
        from darts_sg.backends.triton import run as gpu  # Triton is there where there is a GPU

        return gpu.run(states[0], gamma, operations, onto)
    given = run_graph(states, [gamma], operations.alone)
    return [before + node for before, node in zip(onto, given, strict=True)] if onto else given


def run_graph(inputs: Sequence[Tensor], gammas: Sequence[Tensor], graph: Graph) -> list[Tensor]:
    """The outputs of a graph, each (N, C, H', W'), and after them the states that it passes on, on a CPU.

    inputs: the states that it is given, and gammas: one for each step, as for `run`. Raises Unavailable if the kernels
    cannot be compiled, ValueError if a BatchNorm in train mode has a single value of each channel.
    """
    from darts_sg.backends.cpp import run as cpu

    return cpu.run(inputs, gammas, graph)


def takes(x: Tensor) -> bool:
    """Whether `run` can be given x, and any stages."""
    return x.device.type == "cpu" and x.dtype in DTYPES


def computes(x: Tensor, stages: Sequence[Stage]) -> bool:
    """Whether `run` can be given x and these stages, on a CPU or on a GPU."""
    if x.device.type == "cuda":
        from darts_sg.backends.triton import run as gpu

        return gpu.takes(x) and gpu.supports(stages) and gpu.fits(stages, x)
    return takes(x)
