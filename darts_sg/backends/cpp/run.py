"""Runs graphs on a CPU with the C++ kernels: one kernel call for each step of a graph, and one for its gradients.

A call takes some fifty numbers for each stage (arguments.h), hardly any of which change from pass to pass. So each kind
of input that a graph is run with has a launch plan: the arguments of all steps as two tables of 64-bit words, one for
each pass, in which only the addresses are missing. A pass copies its table and fills in all addresses at once.
"""

import ctypes
import itertools
import weakref
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from darts_sg.backends.cpp.build import kernels
from darts_sg.backends.cpp.memory import POOL
from darts_sg.backends.ir import (
    DTYPES,
    EDGES,
    HALVE,
    MIXED_NODES,
    NODES,
    SHUFFLE,
    TAKE,
    CellGraph,
    FusedOp,
    FusedStage,
    GraphStep,
    RouteStep,
    kind_of,
)

# the fields of StageArgs, MixArgs and RouteArgs in arguments.h, in the same order
STAGE_FIELDS = (
    "N", "S", "T", "H", "W", "Ho", "Wo", "Ci", "Co", "k", "stride", "dilation", "pool", "activation", "first",
    "norm", "training", "threads", "packed", "in_n", "in_pixel", "parts", "states", "in", "in_scale", "in_shift",
    "in_inverse", "in_offset", "depthwise", "pointwise", "odd", "out", "scale", "shift", "inverse", "offset",
    "running_mean", "running_var", "weight", "bias", "momentum", "eps", "gradient", "given", "source", "nodes", "gamma",
    "gamma_edge", "gamma_image", "sum", "sum_y", "in_gradient", "to_states", "onto_states", "in_sum",
    "in_sum_y", "depthwise_gradient", "pointwise_gradient", "odd_gradient", "weight_gradient", "bias_gradient",
)  # fmt: skip
PER_OPERATION = ("scale", "shift", "image", "part", "pixel", "shared", "stages")  # arrays with one entry per operation
MIX_FIELDS = (
    "operations", "N", "S", "T", "pixels", "C", "threads", "y", *PER_OPERATION, "gamma", "gamma_edge", "gamma_image",
    "nodes", "onto", "sum", "sum_y", "to_states", "onto_states",
)  # fmt: skip
ROUTE_FIELDS = (
    "kind", "N", "H", "W", "Ho", "Wo", "C", "K", "packed", "num_states", "threads", "states", "gamma", "node",
    "taken", "to_states", "onto_states", "num_later", "num_sinks", "adds_to_node", "later", "to_sinks", "onto_sinks",
    "sink_states", "factors", "sink_sums",
)  # fmt: skip
CACHE_LINE = 64  # bytes; slices of an arena begin at multiples of it
Words = NDArray[np.int64]


class Address(NamedTuple):
    """A symbolic address: `offset` bytes from the start of tensor `number` of a kind."""

    kind: str
    number: int = 0
    offset: int = 0


Value = int | Address
Fields = dict[str, Value]  # of one structure; a field that is missing is 0


class ArgumentTable:
    """The arguments of a pass as 64-bit words, with symbolic addresses until it is known where the tensors are."""

    def __init__(self, values: Sequence[Value], counts: dict[str, int]) -> None:
        """counts: the number of tensors of each kind, in the order in which `filled` gets their addresses."""
        first = self._first = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist(), strict=False))
        self._words = np.array([0 if isinstance(value, Address) else value for value in values], dtype=np.int64)
        found = [(i, value) for i, value in enumerate(values) if isinstance(value, Address)]
        self._places = np.array([i for i, _ in found], dtype=np.int64)
        self._tensors = np.array([first[value.kind] + value.number for _, value in found], dtype=np.int64)
        self._offsets = np.array([value.offset for _, value in found], dtype=np.int64)

    def filled(self, starts: Sequence[int]) -> Words:
        """A copy with real addresses. starts: the address of each tensor, kind by kind; 0 for a tensor that is absent,
        which then must not be referred to with an offset. The first entry stands for the table itself."""
        words = self._words.copy()
        addresses = np.array(starts, dtype=np.int64)
        addresses[0] = words.ctypes.data
        words[self._places] = addresses[self._tensors] + self._offsets
        return words

    def places_of(self, kind: str, numbers: Sequence[int]) -> tuple[Words, Words]:
        """The words that are addresses of these tensors of a kind, and the number of the tensor of each."""
        first = self._first[kind]
        found = np.isin(self._tensors, [first + number for number in numbers])
        return self._places[found], self._tensors[found] - first


class Layout(NamedTuple):
    """Shape of a state (N, C, H, W), and its strides between images and between pixels.

    With `packed` > 1, as many neighbouring images stand side by side in the channels of one, and N and C count these:
    few channels alone would leave most of a vector empty.
    """

    shape: tuple[int, ...]
    image: int
    pixel: int
    packed: int = 1

    @classmethod
    def dense(cls, N: int, C: int, H: int, W: int, packed: int = 1) -> "Layout":
        return cls((N, C, H, W), H * W * C, C, packed)


def _channels_last(x: Tensor) -> tuple[Tensor, Layout]:
    """x (N, C, H, W) itself if a pixel's channels are adjacent and rows follow each other; otherwise a copy."""
    H, W = x.shape[2:]
    if not x.is_contiguous(memory_format=torch.channels_last):
        if x.stride(1) == 1 and H > 1 and W > 1 and x.stride(2) == W * x.stride(3):
            return x, Layout(tuple(x.shape), x.stride(0), x.stride(3))
        x = x.contiguous(memory_format=torch.channels_last)
    return x, Layout.dense(*x.shape)


class StageResult(NamedTuple):
    """The output of a stage before BatchNorm, (N, E, H, W, C), and that BatchNorm: y · scale + shift, or, without its
    weight and bias, y · inverse + offset."""

    shape: tuple[int, int, int, int, int]
    y: Address
    scale: Address
    shift: Address
    inverse: Address
    offset: Address


class Arena:
    """One tensor that is divided into slices: fewer allocations, less fragmentation."""

    def __init__(self, kind: str, value_size: int) -> None:
        self.kind, self.value_size, self.bytes = kind, value_size, 0

    def take(self, values: int) -> Address:
        """Reserve a slice for so many values."""
        address = Address(self.kind, 0, self.bytes)
        # one cache line of padding: slices a power of two apart would compete for the same lines
        self.bytes += (-(-values * self.value_size // CACHE_LINE) + 1) * CACHE_LINE
        return address

    def tensor(self) -> Tensor:
        """Memory for all slices."""
        return POOL.take(self.bytes)


class StepPlan(NamedTuple):
    """What a pass has to know about one step of the graph."""

    start: int
    """Its first word in either table: MIX_FIELDS or ROUTE_FIELDS, then the arrays that they and its stages point to."""
    routes: bool
    """Whether it is a RouteStep."""
    first_row: int
    """The row of its first stage in either table."""
    states: Sequence[int]
    nodes: Sequence[int]
    weights: range
    """Numbers of its weights among the graph's."""
    by_image: bool
    """Whether each image has a gamma of its own."""
    live: bool
    """Whether an output of the graph depends on it, so that it has gradients."""
    sums: Address
    """Where its kernels write, for each operation, edge and channel, the sum of the gradient and the sum of gradient
    times operation, in float64; for each state that a RouteStep adds up likewise."""
    sums_shape: tuple[int, ...]
    later: Sequence[int] = ()
    """Of a SHUFFLE step: the numbers of later ones whose share of gradients, and of gamma's gradient, it computes."""

    def gamma_gradient(self, sums: Tensor) -> Tensor:
        """The gradient of the step's gamma, (number of operations or 1, E), from the arena of sums."""
        from_here = sums.view(torch.float64)[self.sums.offset // 8 :]
        by_channel = from_here[: int(np.prod(self.sums_shape))].view(self.sums_shape)
        return by_channel[:, 1].sum(dim=-1)


@dataclass(frozen=True, eq=False)
class LaunchPlan:
    """The tables of a graph for one kind of input, and the tensors that they refer to.

    Both tables hold the words of all steps, then one row per stage; in the backward table the stages of an operation
    stand in the order of the backward pass. A plan holds no reference to its graph, because PlanCache is keyed by it.
    """

    steps: Sequence[StepPlan]
    layouts: dict[int, Layout]
    """Of all states."""
    forward: ArgumentTable
    backward: ArgumentTable
    first_stage: int
    """The first word of the rows of stages."""
    counts: dict[str, int]
    """Number of tensors by kind, in the order of their addresses."""
    outputs: Arena
    normalisations: Arena
    sums: Arena
    passed_bytes: Sequence[int]
    """Sizes of the two buffers for gradients between stages."""
    norms: Sequence[nn.BatchNorm2d | None]
    too_few: Sequence[bool]
    """For each stage, whether a channel has a single value, which no BatchNorm can normalise in train mode."""
    halves: dict[int, int]
    """From the weight of either half of a HalvingConv to that of the other half."""
    order: Sequence[int]
    """Numbers of the stages in the order of the backward table."""
    filled: set[int]
    """States whose gradient buffer must hold the incoming gradient, or zeros, before the first step adds to it."""
    direct: set[int]
    """Outputs that no step reads: their incoming gradient is their whole gradient."""


class _StepPlanner:
    """Plans one step: lays out its words and the rows of its stages."""

    def __init__(self, planner: "Planner", number: int, step: GraphStep, by_image: bool, start: int) -> None:
        """start: the step's first word."""
        self.planner, self.step, self.operations = planner, step, step.operations
        self.gamma, self.by_image, self.start = Address("gammas", number), by_image, start
        S, T, num_ops = step.operations.S, step.operations.T, len(step.operations.each)
        self.states = step.inputs()
        self.layouts = [planner.layouts[states[0]] for states in self.states]
        self.N, self.packed = self.layouts[0].shape[0], self.layouts[0].packed
        self.gamma_strides: Fields = {"gamma_edge": self.N, "gamma_image": 1} if by_image else {"gamma_edge": 1}
        # the arrays that the fields point to follow the fields themselves
        sizes = dict.fromkeys(("y", "to_states", "onto_states"), num_ops * S) | {"nodes": T, "onto": T}
        sizes |= dict.fromkeys((*PER_OPERATION, "sum", "sum_y"), num_ops)
        of_inputs = ("states", "to_states", "onto_states")
        sizes |= {f"{name} {i}": len(states) for name in of_inputs for i, states in enumerate(self.states)}
        self.places = dict(zip(sizes, np.cumsum([len(MIX_FIELDS), *sizes.values()]).tolist(), strict=False))
        self.num_words = len(MIX_FIELDS) + sum(sizes.values())
        self.rows: list[Fields] = []
        self.results: list[StageResult] = []
        first_weight = planner.num_weights
        for operation in self.operations.each:
            before: StageResult | None = None
            for stage in operation.stages:
                row, before = self._stage(operation, stage, before)
                self.rows.append(row)
                self.results.append(before)
        self.weights = range(first_weight, planner.num_weights)
        # the nodes are as large as the last outputs
        if self.results:
            _, _, H, W, C = self.results[-1].shape
        else:
            _, C, H, W = self.layouts[0].shape
        self.node = Layout.dense(self.N, C, H, W, self.packed)
        for node in step.nodes:
            planner.layouts[node] = self.node
        self.sums_shape = (num_ops, 2, S * T, C)
        self.sums = planner.sums.take(int(np.prod(self.sums_shape)))
        self.live = self.adds_to_node = False
        self.adds: dict[int, bool] = {}  # for each operation, whether it adds to the states' gradients

    def plan(self, first_row: int) -> StepPlan:
        return StepPlan(
            self.start,
            False,
            first_row,
            self.step.states,
            self.step.nodes,
            self.weights,
            self.by_image,
            self.live,
            self.sums,
            self.sums_shape,
        )

    def _pointer(self, name: str) -> Address:
        """The address of one of the step's own arrays."""
        return Address("table", 0, 8 * (self.start + self.places[name]))

    def _pair(self, values: int) -> tuple[Address, Address]:
        return self.planner.normalisations.take(values), self.planner.normalisations.take(values)

    def _stage(self, operation: FusedOp, stage: FusedStage, before: StageResult | None) -> tuple[Fields, StageResult]:
        """The row of a stage for the forward pass, and its result. before: the result of the stage before it."""
        planner, S, T = self.planner, self.operations.S, 1 if operation.shared else self.operations.T
        layout = self.layouts[operation.input]
        row: Fields = {"S": S, "T": T, "activation": stage.activation, "stride": 1, "dilation": 1}
        row["packed"] = self.packed
        # input: the states, or the output of the stage before with its BatchNorm
        if before is None:
            _, C, H, W = layout.shape
            C *= self.operations.parts
            row |= {"states": self._pointer(f"states {operation.input}"), "first": 1, "parts": self.operations.parts}
        else:
            _, _, H, W, C = before.shape
            row |= {"in": before.y, "in_scale": before.scale, "in_shift": before.shift}
            if before.inverse != before.scale:
                row |= {"in_inverse": before.inverse, "in_offset": before.offset}
        row |= {"N": self.N, "H": H, "W": W, "Ci": C, "in_n": layout.image, "in_pixel": layout.pixel}
        # layers, in the order of FusedStage.weights()
        weights = [Address("weights", planner.num_weights + i) for i in range(len(stage.weights()))]
        planner.num_weights += len(weights)
        stride, Co = 1, C
        if stage.depthwise is not None:
            layer = stage.depthwise
            stride = layer.stride[0]
            row |= {"k": layer.kernel_size[0], "dilation": layer.dilation[0], "depthwise": weights.pop(0)}
        if stage.pool is not None:
            stride = cast(int, stage.pool.stride)
            row |= {"k": 3, "pool": kind_of(stage.pool)}
        if stage.pointwise is not None:
            Co = stage.pointwise.out_channels // (S * T) * self.packed
            row["pointwise"] = weights.pop(0)
        if stage.halving is not None:
            stride, Co = 2, stage.halving.C_out // (S * T) * self.packed
            row |= {"pointwise": weights[0], "odd": weights[1]}
            planner.halves |= {weights[0].number: weights[1].number, weights[1].number: weights[0].number}
            del weights[:2]
        # output and BatchNorm
        Ho, Wo = -(-H // stride), -(-W // stride)
        shape = (self.N, S * T, Ho, Wo, Co)
        if stage.is_norm_alone:
            if before is not None or len(self.states[operation.input]) > 1:
                raise ValueError("a BatchNorm alone must be the first stage, on a single state")
            y = Address("states", self.states[operation.input][0])
        else:
            y = planner.outputs.take(int(np.prod(shape)))
        scale, shift = self._pair(S * T * Co)
        inverse, offset = scale, shift
        if (norm := stage.norm) is not None:
            row["norm"] = 1
            if norm.running_mean is not None:
                row["running_mean"] = Address("statistics", 2 * planner.num_results)
                row["running_var"] = Address("statistics", 2 * planner.num_results + 1)
            if norm.affine:
                inverse, offset = self._pair(S * T * Co)
                row |= {"weight": weights.pop(0), "bias": weights.pop(0)}
        planner.num_results += 1
        planner.too_few.append(self.N * self.packed * Ho * Wo <= 1)
        row |= {"stride": stride, "Ho": Ho, "Wo": Wo, "Co": Co, "out": y}
        row |= {"scale": scale, "shift": shift, "inverse": inverse, "offset": offset}
        return row, StageResult(shape, y, scale, shift, inverse, offset)

    def words(self, onto: Sequence[bool], *, backward: bool) -> list[Value]:
        """The step's words: MIX_FIELDS, then the arrays. onto: for each node, whether it already holds something."""
        S, T = self.operations.S, self.operations.T
        _, C, H, W = self.node.shape
        # arrays with one entry per node or per state
        arrays: dict[str, list[Value]] = {name: [] for name in self.places}
        arrays["nodes"] += [Address("state_gradients" if backward else "states", node) for node in self.step.nodes]
        arrays["onto"] += [Address("states", node) if on else 0 for node, on in zip(self.step.nodes, onto, strict=True)]
        for i, states in enumerate(self.states):
            arrays[f"states {i}"] += [Address("states", state) for state in states]
            arrays[f"to_states {i}"] += [Address("state_gradients", state) if backward else 0 for state in states]
            arrays[f"onto_states {i}"] += [Address("incoming", state) if backward else 0 for state in states]
        # arrays with entries per operation: the output of its last stage, or the states if it is an identity
        ends = 0
        for o, operation in enumerate(self.operations.each):
            fields: Fields = {"shared": operation.shared, "stages": len(operation.stages)}
            fields |= self._sums(o) if backward else {}
            if operation.stages:
                ends += len(operation.stages)
                result = self.results[ends - 1]
                E, part = result.shape[1], H * W * C
                fields |= {"image": E * part, "part": part, "pixel": C}
                normalisation = (result.inverse, result.offset) if backward else (result.scale, result.shift)
                fields["scale"], fields["shift"] = normalisation
                size = E // S * part * self.planner.value_size
                arrays["y"] += [result.y._replace(offset=result.y.offset + state * size) for state in range(S)]
                arrays["to_states"] += [0] * S
                arrays["onto_states"] += [0] * S
            else:
                layout = self.layouts[operation.input]
                fields |= {"image": layout.image, "pixel": layout.pixel}
                arrays["y"] += arrays[f"states {operation.input}"]
                arrays["to_states"] += arrays[f"to_states {operation.input}"]
                arrays["onto_states"] += arrays[self._added_to(o)]
            for name in (*PER_OPERATION, "sum", "sum_y"):
                arrays[name].append(fields.get(name, 0))
        mix: Fields = {"operations": len(self.operations.each), "gamma": self.gamma, **self.gamma_strides}
        mix |= {"N": self.N, "pixels": H * W, "C": C, "S": S, "T": T}
        mix |= {name: self._pointer(name) for name in MIX_FIELDS if name in arrays}
        return [*(mix.get(name, 0) for name in MIX_FIELDS), *(value for array in arrays.values() for value in array)]

    def _sums(self, o: int) -> Fields:
        """Where the two sums of operation o begin (see StepPlan.sums)."""
        size = 8 * int(np.prod(self.sums_shape[2:]))
        first = self.sums.offset + 2 * o * size
        return {"sum": Address("sums", 0, first), "sum_y": Address("sums", 0, first + size)}

    def _added_to(self, o: int) -> str:
        """The array of tensors that operation o adds its share of the states' gradients to: the gradients so far, or
        what comes in from outside the graph."""
        return f"{'to' if self.adds.get(o) else 'onto'}_states {self.operations.each[o].input}"

    def set_adds(self) -> None:
        """Find out which operations add to the states' gradients; chains.cpp runs identities first."""
        for o in sorted(range(len(self.operations.each)), key=lambda o: bool(self.operations.each[o].stages)):
            self.adds[o] = self.planner.adds_to(self.states[self.operations.each[o].input])

    def backward_rows(self) -> Iterator[tuple[int, Fields]]:
        """The rows of the stages for the backward pass, in its order, each with the stage's number in the step.

        Gradients between the stages of a chain alternate between two buffers.
        """
        planner, size = self.planner, self.sums_shape[2] * (self.N if self.by_image else 1) * self.planner.value_size
        done = 0
        for o, operation in enumerate(self.operations.each):
            # a shared operation has one output per state for all nodes, so its gradient is mixed from all of them
            mixed = operation.shared and self.operations.T > 1
            passed: Fields = {
                "given": self._pointer("nodes"), "source": MIXED_NODES if mixed else NODES, "nodes": self.operations.T,
                "gamma": self.gamma._replace(offset=o * size), **self.gamma_strides, **self._sums(o),
            }  # fmt: skip
            for i in reversed(range(len(operation.stages))):
                row = self.rows[done + i] | passed
                for name in ("depthwise", "pointwise", "odd", "weight", "bias"):
                    if isinstance(weight := row.get(name), Address):
                        row[f"{name}_gradient"] = Address("weight_gradients", weight.number)
                if i == 0:
                    row["to_states"] = self._pointer(f"to_states {operation.input}")
                    row["onto_states"] = self._pointer(self._added_to(o))
                else:
                    shape = self.results[done + i - 1].shape
                    buffer, needed = i % 2, int(np.prod(shape)) * planner.value_size
                    planner.passed_bytes[buffer] = max(planner.passed_bytes[buffer], needed)
                    row["in_gradient"] = Address("passed", buffer)
                    row["in_sum"], row["in_sum_y"] = (planner.sums.take(shape[1] * shape[-1]) for _ in range(2))
                    passed = {"gradient": row["in_gradient"], "source": EDGES}
                    passed["sum"], passed["sum_y"] = row["in_sum"], row["in_sum_y"]
                yield done + i, row
            done += len(operation.stages)


class _RoutePlanner:
    """Plans a RouteStep; see _StepPlanner."""

    def __init__(self, planner: "Planner", number: int, step: RouteStep, start: int) -> None:
        self.planner, self.step, self.number, self.start = planner, step, number, start
        self.gamma = Address("gammas", number)
        self.rows: list[Fields] = []
        self.results: list[StageResult] = []
        self.live = self.adds_to_node = False
        self.adds: list[bool] = []  # for each state, whether something has been added to its gradient before
        # SHUFFLE: the steps that share a sink with this one, and the sinks; see RouteArgs
        self.later: list[_RoutePlanner] = []
        self.sinks: list[int] = []
        # the kernels know the layouts of states with all channels, and of those with C / K channels
        self.whole = planner.layouts[step.states[-1]]
        N, C, H, W = self.whole.shape
        self.packed = images_side_by_side(N, C // step.K, planner.value_size)
        partial = Layout.dense(N // self.packed, self.packed * (C // step.K), H, W, self.packed)
        known = [Layout.dense(N, C, H, W)] * len(step.states)
        if step.kind == SHUFFLE:
            known[0] = partial
        if [planner.layouts[state] for state in step.states] != known:
            raise ValueError("the states of a RouteStep must be dense and of one size")
        self.Ho, self.Wo = (-(-H // 2), -(-W // 2)) if step.kind == HALVE else (H, W)
        nodes = [partial] if step.kind == TAKE else [Layout.dense(N, C, self.Ho, self.Wo), partial]
        planner.layouts |= dict(zip(step.nodes, nodes, strict=False))
        sizes = dict.fromkeys(("states", "to_states", "onto_states"), len(step.states))
        if step.kind == SHUFFLE:
            if len({*step.states}) < len(step.states):
                raise ValueError("the states of a RouteStep must differ")
            most = sum(isinstance(one, RouteStep) and one.kind == SHUFFLE for one in planner.graph.steps[number + 1 :])
            sizes |= {"later": most} | dict.fromkeys(("to_sinks", "onto_sinks", "sink_states"), len(step.states))
            sizes |= dict.fromkeys(("factors", "sink_sums"), len(step.states) * (1 + most))
        self.sizes = sizes
        self.places = dict(zip(sizes, np.cumsum([len(ROUTE_FIELDS), *sizes.values()]).tolist(), strict=False))
        self.num_words = len(ROUTE_FIELDS) + sum(sizes.values())
        self.sums_shape = (1, 2, len(step.states) - 1, C)
        self.sums = planner.sums.take(int(np.prod(self.sums_shape)))

    def plan(self, first_row: int) -> StepPlan:
        states, nodes = self.step.states, self.step.nodes
        weights = range(0)
        later = [step.number for step in self.later]
        shape = self.sums_shape
        return StepPlan(self.start, True, first_row, states, nodes, weights, False, self.live, self.sums, shape, later)

    def words(self, onto: Sequence[bool], *, backward: bool) -> list[Value]:
        """The step's words: ROUTE_FIELDS, then the arrays. onto: unused, for no other step adds to its node."""
        states = self.step.states
        arrays: dict[str, list[Value]] = {"states": [Address("states", state) for state in states]}
        arrays["to_states"] = arrays["onto_states"] = [0] * len(states)
        if backward and self.step.kind == SHUFFLE:
            arrays["to_states"] = [Address("state_gradients", states[0])]
            arrays |= self._sink_arrays()
        elif backward:
            arrays["to_states"] = [Address("state_gradients", state) for state in states]
            arrays["onto_states"] = [self._onto(i, state) for i, state in enumerate(states)]
        N, C, H, W = self.whole.shape
        fields: Fields = {"kind": self.step.kind, "N": N, "H": H, "W": W, "Ho": self.Ho, "Wo": self.Wo, "C": C}
        fields |= {"K": self.step.K, "packed": self.packed, "num_states": len(states), "gamma": self.gamma}
        nodes = [Address("state_gradients" if backward else "states", node) for node in self.step.nodes]
        fields |= dict(zip(("node", "taken"), nodes, strict=False))
        fields |= {name: Address("table", 0, 8 * (self.start + place)) for name, place in self.places.items()}
        fields |= {"num_later": len(self.later), "num_sinks": len(self.sinks)}
        fields["adds_to_node"] = int(self.step.nodes[0] in self.sinks)
        padded = [[*arrays.get(name, []), *[0] * size][:size] for name, size in self.sizes.items()]
        return [*(fields.get(name, 0) for name in ROUTE_FIELDS), *itertools.chain.from_iterable(padded)]

    def _onto(self, i: int, state: int) -> Address:
        """What the gradient of a state is added to; i: its place in `adds`."""
        return Address("state_gradients" if self.adds[i : i + 1] == [True] else "incoming", state)

    def _sink_arrays(self) -> dict[str, list[Value]]:
        arrays: dict[str, list[Value]] = {"later": [Address("state_gradients", by.step.nodes[0]) for by in self.later]}
        arrays["to_sinks"] = [Address("state_gradients", sink) for sink in self.sinks]
        arrays["onto_sinks"] = [self._onto(i, sink) for i, sink in enumerate(self.sinks)]
        arrays["sink_states"] = [Address("states", sink) for sink in self.sinks]
        factors, sums = [], []
        for sink, by in itertools.product(self.sinks, (self, *self.later)):
            factors.append(by._of_state("factor", sink))
            sums.append(by._of_state("sum", sink))
        return arrays | {"factors": factors, "sink_sums": sums}

    def _of_state(self, kind: str, state: int) -> Value:
        """The address of a state's gamma (`factor`), or of the sums for its gradient (`sum`); 0 if it is not read."""
        by_passing = self.step.states[1:]
        if state not in by_passing:
            return 0
        number, C = by_passing.index(state), self.sums_shape[3]
        if kind == "factor":
            return self.gamma._replace(offset=number * self.planner.value_size)
        return self.sums._replace(offset=self.sums.offset + 8 * C * (len(by_passing) + number))

    def set_adds(self) -> None:
        """Find out to which gradients something has been added before: of the states, or of the sinks. TAKE has a
        gradient for some channels only, and adds it to what is there."""
        if self.step.kind == SHUFFLE:
            self.planner.adds_to(self.step.states[:1])  # no other step writes to it
        self.adds = [self.planner.adds_to([one]) for one in self._written()]
        if self.step.kind == TAKE and not self.adds[0]:
            self.planner.filled.update(self.step.states)

    def _written(self) -> Sequence[int]:
        """The states whose gradients this step sums up; it finds the sinks of a SHUFFLE."""
        if self.step.kind != SHUFFLE:
            return self.step.states
        steps = [step for step in self.planner.steps if isinstance(step, _RoutePlanner) and step.live]
        shuffles = [step for step in steps if step.step.kind == SHUFFLE]
        before = [step for step in shuffles if step.number < self.number]
        # a node's gradient is summed up by its own step, that of another state by the first step that reads it
        elsewhere = {step.step.nodes[0] for step in shuffles}.union(*(step.step.states[1:] for step in before))
        node, others = self.step.nodes[:1], [state for state in self.step.states[1:] if state not in elsewhere]
        self.sinks = [*(node if self.adds_to_node else ()), *others]
        self.later = [
            step
            for step in shuffles
            if step.number > self.number and not set(self.sinks).isdisjoint(step.step.states[1:])
        ]
        return self.sinks

    def backward_rows(self) -> Iterator[tuple[int, Fields]]:
        yield from ()


def images_side_by_side(N: int, C: int, value_size: int) -> int:
    """How many of N images with C channels share a vector: the largest divisor of N that fits."""
    size = kernels(real="float" if value_size == 4 else "double").vector_size()
    return next(packed for packed in range(max(1, min(N, size // C)), 0, -1) if N % packed == 0)


class Planner:
    """Makes the launch plan of a graph for states of these layouts (those that the graph is given) and such gammas."""

    def __init__(self, graph: CellGraph, layouts: Sequence[Layout], gammas: Sequence[Tensor]) -> None:
        self.graph = graph
        self.value_size = gammas[0].element_size()
        self.layouts = dict(enumerate(layouts))
        self.outputs = Arena("outputs", self.value_size)
        self.normalisations = Arena("normalisations", self.value_size)
        self.sums = Arena("sums", 8)
        self.num_weights = self.num_results = self.first_stage = 0
        self.halves: dict[int, int] = {}
        self.too_few: list[bool] = []
        self.filled: set[int] = set()
        self.steps: list[_StepPlanner | _RoutePlanner] = []
        for i, (step, gamma) in enumerate(zip(graph.steps, gammas, strict=True)):
            if isinstance(step, RouteStep):
                self.steps.append(_RoutePlanner(self, i, step, self.first_stage))
            else:
                self.steps.append(_StepPlanner(self, i, step, gamma.dim() == 3, self.first_stage))
            self.first_stage += self.steps[-1].num_words
        num_states = len(self.layouts)
        self.counts = {
            "table": 1, "states": num_states, "gammas": len(gammas), "normalisations": 1, "weights": self.num_weights,
            "outputs": 1, "statistics": 2 * self.num_results, "sums": 1, "passed": 2, "incoming": num_states,
            "state_gradients": num_states, "weight_gradients": self.num_weights,
        }  # fmt: skip
        self.first_rows = np.cumsum([0, *(len(step.rows) for step in self.steps)]).tolist()
        self.passed_bytes = [0, 0]
        self.begun: set[int] = set()  # states whose gradient something has been written to, on the way back
        self.direct: set[int] = set()
        self.order: list[int] = []

    def plan(self) -> LaunchPlan:
        forward, backward = self._forward(), self._backward()
        return LaunchPlan(
            steps=[step.plan(first) for step, first in zip(self.steps, self.first_rows, strict=False)],
            layouts=self.layouts,
            forward=forward,
            backward=backward,
            first_stage=self.first_stage,
            counts=self.counts,
            outputs=self.outputs,
            normalisations=self.normalisations,
            sums=self.sums,
            passed_bytes=self.passed_bytes,
            norms=[stage.norm for stage in self.graph.stages],
            too_few=self.too_few,
            halves=self.halves,
            order=self.order,
            filled=self.filled,
            direct=self.direct,
        )

    def _forward(self) -> ArgumentTable:
        words: list[Value] = []
        given: set[int] = set()
        for step in self.steps:
            words += step.words([node in given for node in step.step.nodes], backward=False)
            given.update(step.step.nodes)
        return self._table(words, [row for step in self.steps for row in step.rows])

    def _backward(self) -> ArgumentTable:
        useful = {*self.graph.outputs}  # states that an output depends on, and the outputs
        by_passing: set[int] = set()  # those whose by-passing channels a SHUFFLE reads
        for step in reversed(self.steps):
            nodes = set(step.step.nodes)
            step.live = not useful.isdisjoint(nodes)
            if step.live:
                useful.update(step.step.states)
            if step.live and isinstance(step, _RoutePlanner) and step.step.kind == SHUFFLE:
                step.adds_to_node = len(nodes) > 1 or not by_passing.isdisjoint(nodes)
                by_passing.update(step.step.states[1:])
        # walk back to see who writes first to each gradient
        for step in reversed(self.steps):
            nodes = set(step.step.nodes)
            if not step.adds_to_node:
                self.direct |= nodes & {*self.graph.outputs} - self.begun
            if step.live:
                summed_up = {*step.step.nodes[:1]} if step.adds_to_node else set()
                self.filled |= nodes - self.begun - summed_up
                if not summed_up:
                    self.begun |= nodes
                step.set_adds()
                self.begun |= nodes
        words: list[Value] = []
        rows: list[Fields] = []
        for step, first in zip(self.steps, self.first_rows, strict=False):
            words += step.words([False] * len(step.step.nodes), backward=True)
            if step.live:
                for number, row in step.backward_rows():
                    self.order.append(first + number)
                    rows.append(row)
            else:
                self.order += range(first, first + len(step.rows))
                rows += step.rows
        return self._table(words, rows)

    def _table(self, words: list[Value], rows: Sequence[Fields]) -> ArgumentTable:
        return ArgumentTable([*words, *(row.get(name, 0) for row in rows for name in STAGE_FIELDS)], self.counts)

    def adds_to(self, states: Sequence[int]) -> bool:
        """Mark the gradients of these states as begun; whether the next writer has to add to what is there."""
        new = [state for state in states if state not in self.begun]
        if 0 < len(new) < len(states):  # the writer adds to all of them or to none
            self.filled.update(new)
        self.begun.update(states)
        return len(new) < len(states)


class PlanCache:
    """The launch plans of graphs, which are forgotten together with their graph."""

    def __init__(self) -> None:
        self._plans: weakref.WeakKeyDictionary[CellGraph, dict[Hashable, LaunchPlan]] = weakref.WeakKeyDictionary()

    def find(self, graph: CellGraph, layouts: Sequence[Layout], gammas: Sequence[Tensor]) -> LaunchPlan:
        """The plan for inputs of these layouts, made on first use."""
        plans = self._plans.setdefault(graph, {})
        key = gammas[0].dtype, *(gamma.dim() for gamma in gammas), *layouts
        plan = plans.get(key)
        if plan is None:
            plan = plans[key] = Planner(graph, layouts, gammas).plan()
        return plan

    def __len__(self) -> int:
        """The number of graphs that have plans."""
        return len(self._plans)


PLANS = PlanCache()


class KernelCalls:
    """The kernel calls of one pass: `words` is its table with real addresses."""

    def __init__(self, name: str, plan: LaunchPlan, dtype: torch.dtype, words: Words) -> None:
        self.name, self.plan, self.words = name, plan, words  # the words must outlive the calls
        self.kernels = kernels(real=DTYPES[dtype])
        threads = torch.get_num_threads()
        for step in plan.steps:
            words[step.start + (ROUTE_FIELDS if step.routes else MIX_FIELDS).index("threads")] = threads
        self.rows = words[plan.first_stage :].reshape(-1, len(STAGE_FIELDS))
        self.rows[:, STAGE_FIELDS.index("threads")] = threads

    def __call__(self, step: StepPlan, *more: int) -> None:
        """Run one step. Raises MemoryError if there is not enough for the kernels' planes."""
        words = [step.start]
        if not step.routes:
            words.append(self.plan.first_stage + len(STAGE_FIELDS) * step.first_row)
        start = self.words.ctypes.data
        kernel = getattr(self.kernels, f"route_{self.name}" if step.routes else self.name)
        if kernel(*(ctypes.c_void_p(start + 8 * word) for word in words), *map(ctypes.c_int64, more)):
            raise MemoryError("not enough memory for the planes of the C++ kernels")


_training_passes = 0


def training_passes() -> int:
    """How many passes in train mode there have been: they change running statistics without PyTorch's knowledge."""
    return _training_passes


def run(inputs: Sequence[Tensor], gammas: Sequence[Tensor], graph: CellGraph) -> list[Tensor]:
    """The outputs of a graph, then the states that it passes on, each (N, C, H, W).

    inputs: the states that the graph is given, (N, C, H, W). gammas: for each step (number of operations, E), or
    (number of operations, E, N) without a gradient; for a RouteStep (1, number of states that it adds up), or any. All
    of one type, float32 or float64, on the CPU. Raises TypeError
    if they are not, ValueError if a BatchNorm in train mode sees one value per channel or has no momentum, Unavailable
    if the kernels cannot be compiled.
    """
    found = list(_GraphFunction.apply(graph, *gammas, *inputs, *graph.weights()))
    for i, state in enumerate(graph.passed_on, start=len(graph.outputs)):
        if not inputs[state].requires_grad:  # autograd marks every output of the function as requiring gradients
            found[i] = inputs[state]
    norms = [stage.norm for stage in graph.stages if stage.norm is not None and stage.norm.training]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    if norms:
        global _training_passes
        _training_passes += 1
    if counters:
        torch._foreach_add_(counters, 1)
    return found


def readable_inputs(inputs: Sequence[Tensor], graph: CellGraph) -> tuple[list[Tensor], list[Layout]]:
    """The inputs as the kernels can read them; the states of one input of a step must have one layout."""
    taken = [_channels_last(x) for x in inputs]
    if any(taken[state][1] != taken[states[0]][1] for states in graph.together for state in states):
        taken = [_channels_last(x.contiguous(memory_format=torch.channels_last)) for x in inputs]
    return [x for x, _ in taken], [layout for _, layout in taken]


def _starts(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


class _GraphFunction(torch.autograd.Function):
    """A graph as one differentiable function of its gammas, inputs and weights."""

    @staticmethod
    def forward(ctx: Any, graph: CellGraph, *tensors: Tensor) -> tuple[Tensor, ...]:
        num_gammas, num_inputs = len(graph.steps), graph.num_inputs
        gammas = [gamma.contiguous() for gamma in tensors[:num_gammas]]
        states, layouts = readable_inputs(tensors[num_gammas:][:num_inputs], graph)
        weights = [weight.contiguous() for weight in tensors[num_gammas + num_inputs :]]
        like = gammas[0]
        if any(tensor.dtype != like.dtype or tensor.device.type != "cpu" for tensor in tensors):
            kinds = sorted({f"{tensor.dtype} on {tensor.device}" for tensor in tensors})
            raise TypeError(f"the C++ kernels need all tensors of one type on the CPU, found {', '.join(kinds)}")
        plan = PLANS.find(graph, layouts, gammas)
        # the tensors of the table, kind by kind as in plan.counts; the backward pass's kinds are absent
        states += [_pixels(like, plan, state) for state in range(num_inputs, len(plan.layouts))]
        normalisations, outputs = plan.normalisations.tensor(), plan.outputs.tensor()
        statistics = [t for norm in plan.norms for t in running_statistics(norm)]
        starts = _starts([None, *states, *gammas, normalisations, *weights, outputs, *statistics])
        absent = [0] * (sum(plan.counts.values()) - len(starts))
        call = KernelCalls("forward", plan, like.dtype, plan.forward.filled(starts + absent))
        # what may change between passes without a new plan: train or eval mode, momentum and eps
        training = [norm is not None and (norm.training or norm.running_mean is None) for norm in plan.norms]
        if any(itertools.compress(training, plan.too_few)):
            raise ValueError("Expected more than 1 value per channel when training")  # as PyTorch says
        call.rows[:, STAGE_FIELDS.index("training")] = training
        for name in ("momentum", "eps"):
            values = [0.0 if norm is None else getattr(norm, name) for norm in plan.norms]
            if None in values:
                raise ValueError(f"the C++ kernels need the {name} of each BatchNorm")
            call.rows.view(np.float64)[:, STAGE_FIELDS.index(name)] = values
        for step in plan.steps:
            call(step)
        ctx.graph, ctx.plan, ctx.training = graph, plan, training
        kept = [state if number in graph.differentiated else None for number, state in enumerate(states)]
        ctx.save_for_backward(*kept, *gammas, normalisations, *weights, outputs)
        ctx.set_materialize_grads(False)
        given = tensors[num_gammas:]
        return *(states[state].permute(0, 3, 1, 2) for state in graph.outputs), *(given[i] for i in graph.passed_on)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        graph: CellGraph = ctx.graph
        plan: LaunchPlan = ctx.plan
        steps, counts = plan.steps, plan.counts
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        num_states, num_gammas, num_inputs = counts["states"], counts["gammas"], graph.num_inputs
        like, weights = saved[num_states], saved[num_states + num_gammas + 1 :][: counts["weights"]]
        gammas_wanted = ctx.needs_input_grad[1 : 1 + num_gammas]
        inputs_wanted = ctx.needs_input_grad[1 + num_gammas :][:num_inputs]
        weights_wanted = ctx.needs_input_grad[1 + num_gammas + num_inputs :]

        # For each step, whether it runs, and whether it computes all gradients or those of its gamma alone. A step runs
        # if a wanted gradient depends on it: `needed` are the states that lead to something wanted.
        needed = set(itertools.compress(range(num_inputs), inputs_wanted))
        whole: list[bool] = []
        for step, gamma_wanted in zip(steps, gammas_wanted, strict=True):
            wanted = not needed.isdisjoint(step.states) or any(weights_wanted[i] for i in step.weights)
            whole.append(step.live and wanted)
            if wanted or gamma_wanted:
                needed.update(step.nodes)
        # a step also sums up gradients of later steps' gammas
        sums_wanted = [
            one or any(gammas_wanted[i] for i in s.later) for s, one in zip(steps, gammas_wanted, strict=True)
        ]
        runs = [step.live and (all_ or one) for step, all_, one in zip(steps, whole, sums_wanted, strict=True)]

        # Buffers: `incoming` is the gradient of each state from outside the graph, (N, H, W, C); `state_gradients` sum
        # it up with what the steps add.
        incoming: list[Tensor | None] = [None] * num_states
        for state, gradient in zip((*graph.outputs, *graph.passed_on), gradients, strict=True):
            incoming[state] = None if gradient is None else gradient.permute(0, 2, 3, 1).contiguous()
        state_gradients = [x if state in plan.direct else None for state, x in enumerate(incoming)]
        for i, step in enumerate(steps):
            for state in (*(step.states if whole[i] else ()), *(step.nodes if runs[i] else ())):
                if state_gradients[state] is None:
                    state_gradients[state] = pixels = _pixels(like, plan, state)
                    if state in plan.filled:
                        there = incoming[state]
                        pixels.zero_() if there is None else pixels.copy_(there)
        weight_gradients: list[Tensor | None] = [None] * len(weights)
        for i in (i for step in itertools.compress(steps, whole) for i in step.weights):
            if weights_wanted[i] or weights_wanted[plan.halves.get(i, i)]:  # the kernels write both halves or none
                weight_gradients[i] = torch.empty_like(weights[i])
        sums = plan.sums.tensor()
        passed = [POOL.take(size if any(whole) else 0) for size in plan.passed_bytes]

        # the addresses, kind by kind as in plan.counts
        starts = [0, *_starts(saved), *[0] * counts["statistics"]]
        starts += _starts([sums, *passed, *incoming, *state_gradients, *weight_gradients])
        call = KernelCalls("backward", plan, like.dtype, plan.backward.filled(starts))
        call.rows[:, STAGE_FIELDS.index("training")] = np.array(ctx.training)[plan.order]
        for i in reversed(range(len(steps))):
            if runs[i]:
                call(steps[i], whole[i], *((sums_wanted[i],) if steps[i].routes else ()))

        gamma_gradients = [
            step.gamma_gradient(sums).to(like.dtype) if wanted and step.live and not step.by_image else None
            for step, wanted in zip(steps, gammas_wanted, strict=True)
        ]
        input_gradients: list[Tensor | None] = []
        for state, is_wanted in enumerate(inputs_wanted):
            found = state_gradients[state]
            if found is None:  # no step reads it
                found = incoming[state]
            input_gradients.append(None if found is None or not is_wanted else found.permute(0, 3, 1, 2))
        return None, *gamma_gradients, *input_gradients, *weight_gradients


def _pixels(like: Tensor, plan: LaunchPlan, state: int) -> Tensor:
    """Memory for a state or its gradient, (N, H, W, C).

    From the heap: the pool's blocks, of as many sizes as there are cells, nearly doubled the memory of recomputation.
    """
    N, C, H, W = plan.layouts[state].shape
    return like.new_empty(N, H, W, C)


def running_statistics(norm: nn.BatchNorm2d | None) -> tuple[Tensor | None, Tensor | None]:
    """The running mean and variance. Reading the dict of buffers is faster than module attributes."""
    if norm is None:
        return None, None
    return norm._buffers["running_mean"], norm._buffers["running_var"]
