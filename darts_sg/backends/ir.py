"""Kernel IR shared by the C++ and Triton backends: chains of layers as fused stages, and how their sums form cells.

It is data that refers to PyTorch layers, whose weights and settings a backend reads when it runs. The backends import
this module; it knows none of them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from darts_sg.ops.operation import Residual
from darts_sg.ops.primitives import HalvingConv, HalvingConvBN

ACTIVATIONS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.ReLU6: 2}
POOLS: dict[type[nn.Module], int] = {nn.MaxPool2d: 1, nn.AvgPool2d: 2}
KERNEL_SIZES = (3, 5, 7)
DTYPES = {torch.float32: "float", torch.float64: "double"}
EDGES, NODES, MIXED_NODES = range(3)  # the form in which a stage receives its gradient
TAKE, HALVE, SHUFFLE = range(3)  # the kinds of a RouteStep


@dataclass(frozen=True)
class FusedStage:
    """Layers that one kernel computes: activation - depthwise - 1×1 - BatchNorm on all edges, each of the first three
    optional; a HalvingConv in place of the convolutions; a pool, with or without BatchNorm, on all states; or a
    BatchNorm alone, as the first stage of a chain."""

    norm: nn.BatchNorm2d | None
    activation: int = 0
    depthwise: nn.Conv2d | None = None
    pointwise: nn.Conv2d | None = None
    pool: nn.MaxPool2d | nn.AvgPool2d | None = None
    halving: HalvingConv | None = None

    @property
    def is_norm_alone(self) -> bool:
        return self.depthwise is self.pointwise is self.pool is self.halving is None

    def weights(self) -> list[Tensor]:
        """The weights of its convolutions, then weight and bias of its BatchNorm, as far as it has them."""
        found = [layer.weight for layer in (self.depthwise, self.pointwise) if layer is not None]
        if self.halving is not None:
            found += (self.halving.conv_1.weight, self.halving.conv_2.weight)
        if self.norm is not None and self.norm.affine:
            found += (self.norm.weight, self.norm.bias)
        return found

    def slots(self) -> list[tuple[dict[str, Any], str]]:
        """Where its tensors stand in their modules, running statistics included: a dictionary and a name each."""
        layers = [self.depthwise, self.pointwise]
        layers += [] if self.halving is None else [self.halving.conv_1, self.halving.conv_2]
        found: list[tuple[dict[str, Any], str]] = []
        found += [(layer._parameters, "weight") for layer in layers if layer is not None]
        if self.norm is not None:
            found += [(self.norm._parameters, name) for name in ("weight", "bias") if self.norm.affine]
            found += [(self.norm._buffers, f"running_{name}") for name in ("mean", "var")]
        return found

    def describe(self) -> str:
        """Everything that selects a path through the kernels, widths included, as text."""
        found = [f"activation {self.activation}"]
        for kind in ("depthwise", "pointwise"):
            if (conv := getattr(self, kind)) is not None:
                found.append(f"{kind} {tuple(conv.weight.shape)} {conv.stride} {conv.dilation}")
        if self.halving is not None:
            found.append(f"halving {tuple(self.halving.conv_1.weight.shape)} {tuple(self.halving.conv_2.weight.shape)}")
        if self.pool is not None:
            found.append(f"pool {kind_of(self.pool)} {self.pool.stride}")
        if self.norm is not None:
            found.append(f"norm {self.norm.num_features}{' affine' if self.norm.affine else ''}")
        return ", ".join(found)


class FusedOp(NamedTuple):
    """An operation: a chain of stages on each edge; a pool on each state; or, without stages, the states themselves."""

    stages: Sequence[FusedStage] = ()
    input: int = 0
    """The number of its input."""

    @property
    def shared(self) -> bool:
        """Whether all edges that leave a state share one output."""
        return not self.stages or self.stages[0].pool is not None


@dataclass(eq=False)
class FusedOps:
    """The operations between S states of each input and T nodes, over E = S · T edges."""

    S: int
    T: int
    each: Sequence[FusedOp]
    parts: int = 1
    """The number of parts of a state, whose channels follow each other; with several, each operation has stages."""

    def stages(self) -> list[FusedStage]:
        return [stage for operation in self.each for stage in operation.stages]

    def describe(self) -> str:
        """See FusedStage.describe."""
        each = [f"input {op.input}: {' | '.join(stage.describe() for stage in op.stages)}" for op in self.each]
        return f"S {self.S}, T {self.T}, parts {self.parts}; " + "; ".join(each)

    @cached_property
    def alone(self) -> "CellGraph":
        """A graph of this step only."""
        num_inputs = self.S * self.parts * (1 + max(operation.input for operation in self.each))
        nodes = range(num_inputs, num_inputs + self.T)
        return CellGraph(num_inputs, [GraphStep(self, range(num_inputs), nodes)], nodes)


class GraphStep(NamedTuple):
    """Operations in a graph, and the numbers of the states they connect.

    `states` lists the first input's before the second's, and all parts of one state before the next; `nodes` has T.
    """

    operations: FusedOps
    states: Sequence[int]
    nodes: Sequence[int]

    def inputs(self) -> list[Sequence[int]]:
        """Its states, input by input."""
        size = self.operations.S * self.operations.parts
        return [self.states[i : i + size] for i in range(0, len(self.states), size)]

    def stages(self) -> list[FusedStage]:
        return self.operations.stages()

    def differentiated(self) -> Sequence[int]:
        """The states whose values the backward pass reads."""
        return self.states

    def moved(self, by: int) -> "GraphStep":
        """The same step between states whose numbers are larger."""
        return GraphStep(self.operations, *([by + i for i in numbers] for numbers in (self.states, self.nodes)))


class RouteStep(NamedTuple):
    """A step of a cell with partial channels that moves channels (PC-DARTS, section 3.2).

    TAKE: the first C / K channels of a state, which go through the operations. HALVE: a 2×2 max pool of a state, for
    the channels that by-pass operations of stride 2. SHUFFLE: a node. Its first C / K channels are the sum of its
    operations (the first state), the others the sum of the other states' by-passing channels, each times gamma; then
    all are shuffled in K groups. It has a second node if operations read it: what TAKE makes of the first one.
    States with C / K channels have the backend's own layout and stay inside the graph.
    """

    kind: int
    K: int
    states: Sequence[int]
    nodes: Sequence[int]

    def inputs(self) -> list[Sequence[int]]:
        return [[state] for state in self.states]

    def stages(self) -> list[FusedStage]:
        return []

    def differentiated(self) -> Sequence[int]:
        """The states whose values the backward pass reads: those that a maximum or gamma's gradient is taken of."""
        return {TAKE: (), HALVE: self.states, SHUFFLE: self.states[1:]}[self.kind]

    def moved(self, by: int) -> "RouteStep":
        """The same step between states whose numbers are larger."""
        return self._replace(states=[by + i for i in self.states], nodes=[by + i for i in self.nodes])

    def describe(self) -> str:
        """See FusedStage.describe."""
        return f"route {self.kind}, K {self.K}"


@dataclass(frozen=True, eq=False)
class CellGraph:
    """Steps computed in order, such as a whole cell. Reuse one instance: backends cache launch plans by graph.

    States are numbered, the graph's inputs first. Each other state is the sum of all that steps add to it, and is
    complete before a step reads it.
    """

    num_inputs: int
    steps: Sequence[GraphStep | RouteStep]
    outputs: Sequence[int]
    """Must not contain input states."""
    passed_on: Sequence[int] = ()
    """Input states that the graph returns unchanged, after its outputs. Later consumers read these, so that their
    gradients are added up within the kernels."""

    @cached_property
    def stages(self) -> list[FusedStage]:
        return [stage for step in self.steps for stage in step.stages()]

    def weights(self) -> list[Tensor]:
        """The weights of all stages, in order."""
        return [weight for stage in self.stages for weight in stage.weights()]

    def slots(self) -> list[tuple[dict[str, Any], str]]:
        """Where the tensors of all stages stand in their modules; see FusedStage.slots."""
        return [slot for stage in self.stages for slot in stage.slots()]

    @cached_property
    def differentiated(self) -> set[int]:
        """The states whose values the backward pass reads."""
        return {state for step in self.steps for state in step.differentiated()}

    @cached_property
    def together(self) -> list[Sequence[int]]:
        """For each step and each of its inputs, the numbers of the graph's own inputs among its states."""
        inputs = [states for step in self.steps for states in step.inputs()]
        found = [[state for state in states if state < self.num_inputs] for states in inputs]
        return [states for states in found if states]


def digest(kind: str, operations: Iterable[FusedOps | RouteStep]) -> str:
    """A name for what the kernels compute of networks of a kind: equal for equal sets of fused operations."""
    texts = sorted({one.describe() for one in operations})
    return f"{kind}-{hashlib.sha256(chr(10).join(texts).encode()).hexdigest()[:16]}"


def stages_of(layers: Sequence[nn.Module], E: int) -> list[FusedStage] | None:
    """The stages of a chain of layers on E edges; None if a layer is unknown to the kernels."""
    stages: list[FusedStage] = []
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
        stages.append(FusedStage(norm, number, depthwise, pointwise, halving=halving))
    return stages


def pool_of(layers: Sequence[nn.Module]) -> FusedStage | None:
    """The stage of a 3×3 pool, followed by a BatchNorm or not; None if the layers are something else."""
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
    return FusedStage(norm, pool=pool) if known else None


def stages_of_operation(op: nn.Module) -> list[FusedStage] | None:
    """The stages of an operation on a single edge: none for an identity, None if the kernels cannot compute it.

    A residual block gives the stages of its body; `adds_input` tells whether the input is to be added.
    """
    if isinstance(op, nn.Identity):
        return []
    if isinstance(op, Residual):
        op = op.body
    if isinstance(op, nn.Sequential):
        return stages_of(list(op), 1)
    pool = pool_of([op])
    return None if pool is None else [pool]


def adds_input(op: nn.Module) -> bool:
    """Whether the operation is a residual block that adds its input to its output."""
    return isinstance(op, Residual) and op.shortcut


def kind_of(pool: nn.Module) -> int:
    """The number of the pool's kind in POOLS."""
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
