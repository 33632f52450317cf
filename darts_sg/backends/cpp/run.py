"""What `chains.run_graph` does, on a CPU: a call of chains.cpp for each step, and one for its gradients.

Each call needs some fifty numbers for each stage, and hardly any of them changes from pass to pass. So there is a plan
for each kind of input that a graph is given: the structures of chains.cpp as two tables of 64-bit words, one for either
pass, in which only the addresses are missing. A pass copies its table and enters them, all at a time.
"""

import ctypes
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from darts_sg.backends.cpp.build import kernels
from darts_sg.backends.cpp.memory import POOL
from darts_sg.backends.ir import DTYPES, EDGES, MIXED_NODES, NODES, CellGraph, FusedOp, FusedStage, GraphStep, kind_of

# the structures of chains.cpp
STAGE = (
    "N", "S", "T", "H", "W", "Ho", "Wo", "Ci", "Co", "k", "stride", "dilation", "pool", "activation", "first",
    "norm", "training", "threads", "in_n", "in_pixel", "parts", "states", "in", "in_scale", "in_shift", "in_inverse",
    "in_offset", "depthwise", "pointwise", "odd", "out", "scale", "shift", "inverse", "offset", "running_mean",
    "running_var", "weight", "bias", "momentum", "eps", "gradient", "given", "source", "nodes", "gamma",
    "gamma_edge", "gamma_image", "sum", "sum_y", "in_gradient", "to_states", "onto_states", "in_sum",
    "in_sum_y", "depthwise_gradient", "pointwise_gradient", "odd_gradient", "weight_gradient", "bias_gradient",
)  # fmt: skip
OF_OPERATIONS = ("scale", "shift", "image", "part", "pixel", "shared", "stages")  # pointers to one for each operation
MIX = (
    "operations", "N", "S", "T", "pixels", "C", "threads", "y", *OF_OPERATIONS, "gamma", "gamma_edge", "gamma_image",
    "nodes", "onto", "sum", "sum_y", "to_states", "onto_states",
)  # fmt: skip
ALIGNED = 64  # bytes that parts of a tensor begin at multiples of
Words = NDArray[np.int64]


class Address(NamedTuple):
    """Where something is: so many bytes from where a tensor begins, which is known by a kind and a number."""

    kind: str
    number: int = 0
    offset: int = 0


Value = int | Address
Row = dict[str, Value]


class _Table:
    """Words, in which addresses are missing until it is known where each tensor is."""

    def __init__(self, words: Sequence[Value], counts: dict[str, int]) -> None:
        first = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist(), strict=False))
        self._words = np.array([0 if isinstance(value, Address) else value for value in words], dtype=np.int64)
        found = [(i, value) for i, value in enumerate(words) if isinstance(value, Address)]
        self._places = np.array([i for i, _ in found], dtype=np.int64)
        self._tensors = np.array([first[value.kind] + value.number for _, value in found], dtype=np.int64)
        self._offsets = np.array([value.offset for _, value in found], dtype=np.int64)

    def with_addresses(self, starts: Sequence[int]) -> Words:
        """starts: those of all tensors, kind by kind; 0 for one that there is not, of which no offset is asked.
        The first is left for the table itself."""
        words = self._words.copy()
        of_all = np.array(starts, dtype=np.int64)
        of_all[0] = words.ctypes.data
        words[self._places] = of_all[self._tensors] + self._offsets
        return words


class _Images(NamedTuple):
    """The shape of a state (N, C, H, W), and where its values stand: strides between images and between pixels."""

    shape: tuple[int, ...]
    image: int
    pixel: int

    @classmethod
    def dense(cls, N: int, C: int, H: int, W: int) -> "_Images":
        return cls((N, C, H, W), H * W * C, C)


def _channels_last(x: Tensor) -> tuple[Tensor, _Images]:
    """x (N, C, H, W) as it is if its channels stand side by side and its rows close up; otherwise a copy."""
    H, W = x.shape[2:]
    if not x.is_contiguous(memory_format=torch.channels_last):
        if x.stride(1) == 1 and H > 1 and W > 1 and x.stride(2) == W * x.stride(3):
            return x, _Images(tuple(x.shape), x.stride(0), x.stride(3))
        x = x.contiguous(memory_format=torch.channels_last)
    return x, _Images.dense(*x.shape)


class _Result(NamedTuple):
    """Of a stage: the shape of its output before BatchNorm, (N, E, H, W, C), and where that is; and that BatchNorm as
    y · scale + shift, and, as it is before a weight and bias of its own, as y · inverse + offset."""

    shape: tuple[int, int, int, int, int]
    y: Address
    scale: Address
    shift: Address
    inverse: Address
    offset: Address


class _Part:
    """A tensor that several things share: hands out places in it, each for so many values."""

    def __init__(self, kind: str, value_size: int) -> None:
        self.kind, self.value_size, self.bytes = kind, value_size, 0

    def take(self, values: int) -> Address:
        address = Address(self.kind, 0, self.bytes)
        # and a line of the cache more, for things of one size that begin at multiples of it share few lines
        self.bytes += (-(-values * self.value_size // ALIGNED) + 1) * ALIGNED
        return address

    def tensor(self) -> Tensor:
        return POOL.take(self.bytes)


class _Section:
    """Of a plan what belongs to one step of the graph: the words of its product with gamma (MIX) and of all that these
    and its stages point to, which begin at `start`, and the rows of its stages."""

    def __init__(self, plan: "Plan", number: int, step: GraphStep, by_image: bool, start: int) -> None:
        self.plan, self.step, self.operations = plan, step, step.operations
        self.gamma, self.by_image, self.start = Address("gammas", number), by_image, start
        S, T, num_ops = step.operations.S, step.operations.T, len(step.operations.each)
        self.states = step.inputs()
        self.images = [plan.images[states[0]] for states in self.states]
        self.N = self.images[0].shape[0]
        self.gamma_strides: Row = {"gamma_edge": self.N, "gamma_image": 1} if by_image else {"gamma_edge": 1}
        sizes = dict.fromkeys(("y", "to_states", "onto_states"), num_ops * S) | {"nodes": T, "onto": T}
        sizes |= dict.fromkeys((*OF_OPERATIONS, "sum", "sum_y"), num_ops)
        of_inputs = ("states", "to_states", "onto_states")
        sizes |= {f"{name} {i}": len(states) for name in of_inputs for i, states in enumerate(self.states)}
        self.places = dict(zip(sizes, np.cumsum([len(MIX), *sizes.values()]).tolist(), strict=False))
        self.num_words = len(MIX) + sum(sizes.values())
        self.rows: list[Row] = []
        self.results: list[_Result] = []
        self.weights = range(plan.num_weights, plan.num_weights)
        for operation in self.operations.each:
            before: _Result | None = None
            for stage in operation.stages:
                row, before = self._stage(operation, stage, before)
                self.rows.append(row)
                self.results.append(before)
        self.weights = range(self.weights.start, plan.num_weights)
        if self.results:
            _, _, H, W, C = self.results[-1].shape
        else:
            _, C, H, W = self.images[0].shape
        self.node = _Images.dense(self.N, C, H, W)
        for node in step.nodes:
            plan.images[node] = self.node
        self.sums_shape = (num_ops, 2, S * T, C)
        self.sums = plan.sums.take(int(np.prod(self.sums_shape)))
        self.live = False  # whether there is a gradient of what it gives
        self.adds: dict[int, bool] = {}  # whether an operation's share of the states' gradients is added to others

    def by_gamma(self, sums: Tensor) -> Tensor:
        """The gradient of the step's gamma, (number of operations, E), from the sums of all steps."""
        of_all = sums.view(torch.float64)[self.sums.offset // 8 :]
        by_channel = of_all[: int(np.prod(self.sums_shape))].view(self.sums_shape)
        return by_channel[:, 1].sum(dim=-1)

    def _pointer(self, name: str) -> Address:
        return Address("itself", 0, 8 * (self.start + self.places[name]))

    def _pair(self, values: int) -> tuple[Address, Address]:
        return self.plan.normalisations.take(values), self.plan.normalisations.take(values)

    def _stage(self, operation: FusedOp, stage: FusedStage, before: _Result | None) -> tuple[Row, _Result]:
        """Its row for the forward pass, and its result, that of the stage before it being `before`."""
        plan, S, T = self.plan, self.operations.S, 1 if operation.shared else self.operations.T
        images = self.images[operation.input]
        row: Row = {"S": S, "T": T, "activation": stage.activation, "stride": 1, "dilation": 1}
        if before is None:
            _, C, H, W = images.shape
            C *= self.operations.parts
            row |= {"states": self._pointer(f"states {operation.input}"), "first": 1, "parts": self.operations.parts}
        else:
            _, _, H, W, C = before.shape
            row |= {"in": before.y, "in_scale": before.scale, "in_shift": before.shift}
            if before.inverse != before.scale:
                row |= {"in_inverse": before.inverse, "in_offset": before.offset}
        row |= {"N": self.N, "H": H, "W": W, "Ci": C, "in_n": images.image, "in_pixel": images.pixel}
        weights = [Address("weights", plan.num_weights + i) for i in range(len(stage.weights()))]
        plan.num_weights += len(weights)
        stride, Co = 1, C
        if stage.depthwise is not None:
            layer = stage.depthwise
            stride = layer.stride[0]
            row |= {"k": layer.kernel_size[0], "dilation": layer.dilation[0], "depthwise": weights.pop(0)}
        if stage.pool is not None:
            stride = cast(int, stage.pool.stride)
            row |= {"k": 3, "pool": kind_of(stage.pool)}
        if stage.pointwise is not None:
            Co = stage.pointwise.out_channels // (S * T)
            row["pointwise"] = weights.pop(0)
        if stage.halving is not None:
            stride, Co = 2, stage.halving.C_out // (S * T)
            row |= {"pointwise": weights[0], "odd": weights[1]}
            plan.halves |= {weights[0].number: weights[1].number, weights[1].number: weights[0].number}
            del weights[:2]
        Ho, Wo = -(-H // stride), -(-W // stride)
        shape = (self.N, S * T, Ho, Wo, Co)
        y, (scale, shift) = plan.outputs.take(int(np.prod(shape))), self._pair(S * T * Co)
        inverse, offset = scale, shift
        if (norm := stage.norm) is not None:
            row["norm"] = 1
            if norm.running_mean is not None:
                row["running_mean"] = Address("statistics", 2 * plan.num_results)
                row["running_var"] = Address("statistics", 2 * plan.num_results + 1)
            if norm.affine:
                inverse, offset = self._pair(S * T * Co)
                row |= {"weight": weights.pop(0), "bias": weights.pop(0)}
        plan.num_results += 1
        row |= {"stride": stride, "Ho": Ho, "Wo": Wo, "Co": Co, "out": y}
        row |= {"scale": scale, "shift": shift, "inverse": inverse, "offset": offset}
        return row, _Result(shape, y, scale, shift, inverse, offset)

    def words(self, onto: Sequence[bool], *, backward: bool) -> list[Value]:
        """MIX, and the lists of numbers and further pointers. onto: in which nodes there is something already."""
        S, T = self.operations.S, self.operations.T
        _, C, H, W = self.node.shape
        found: dict[str, list[Value]] = {name: [] for name in self.places}
        found["nodes"] += [Address("by_states" if backward else "states", node) for node in self.step.nodes]
        found["onto"] += [Address("states", node) if on else 0 for node, on in zip(self.step.nodes, onto, strict=True)]
        for i, states in enumerate(self.states):
            found[f"states {i}"] += [Address("states", state) for state in states]
            found[f"to_states {i}"] += [Address("by_states", state) if backward else 0 for state in states]
            found[f"onto_states {i}"] += [Address("behind", state) if backward else 0 for state in states]
        ends = 0
        for o, operation in enumerate(self.operations.each):
            row: Row = {"shared": operation.shared, "stages": len(operation.stages)}
            row |= self._sums(o) if backward else {}
            if operation.stages:
                ends += len(operation.stages)
                result = self.results[ends - 1]
                E, part = result.shape[1], H * W * C
                row |= {"image": E * part, "part": part, "pixel": C}
                normalisation = (result.inverse, result.offset) if backward else (result.scale, result.shift)
                row["scale"], row["shift"] = normalisation
                size = E // S * part * self.plan.value_size
                found["y"] += [result.y._replace(offset=result.y.offset + state * size) for state in range(S)]
                found["to_states"] += [0] * S
                found["onto_states"] += [0] * S
            else:
                images = self.images[operation.input]
                row |= {"image": images.image, "pixel": images.pixel}
                found["y"] += found[f"states {operation.input}"]
                found["to_states"] += found[f"to_states {operation.input}"]
                found["onto_states"] += found[self._added_to(o)]
            for name in (*OF_OPERATIONS, "sum", "sum_y"):
                found[name].append(row.get(name, 0))
        mix: Row = {"operations": len(self.operations.each), "gamma": self.gamma, **self.gamma_strides}
        mix |= {"N": self.N, "pixels": H * W, "C": C, "S": S, "T": T}
        mix |= {name: self._pointer(name) for name in MIX if name in found}
        return [*(mix.get(name, 0) for name in MIX), *(value for values in found.values() for value in values)]

    def _sums(self, o: int) -> Row:
        """Where those of an operation's edges are: of the gradient, and of its product with the operation."""
        size = 8 * int(np.prod(self.sums_shape[2:]))
        first = self.sums.offset + 2 * o * size
        return {"sum": Address("sums", 0, first), "sum_y": Address("sums", 0, first + size)}

    def _added_to(self, o: int) -> str:
        """Where it stands what an operation's share of the states' gradients is added to."""
        return f"{'to' if self.adds.get(o) else 'onto'}_states {self.operations.each[o].input}"

    def set_adds(self) -> None:
        """In the order in which chains.cpp writes: identities first."""
        for o in sorted(range(len(self.operations.each)), key=lambda o: bool(self.operations.each[o].stages)):
            self.adds[o] = self.plan.adds_to(self.states[self.operations.each[o].input])

    def backward_rows(self) -> Iterator[tuple[int, Row]]:
        """The stages with what their backward passes need, in the order of these, and their numbers in the step.

        Between two stages a gradient lies in one of two buffers, in turns."""
        plan, size = self.plan, self.sums_shape[2] * (self.N if self.by_image else 1) * self.plan.value_size
        done = 0
        for o, operation in enumerate(self.operations.each):
            # one gradient for a state, from all nodes
            mixed = operation.shared and self.operations.T > 1
            passed: Row = {
                "given": self._pointer("nodes"), "source": MIXED_NODES if mixed else NODES, "nodes": self.operations.T,
                "gamma": self.gamma._replace(offset=o * size), **self.gamma_strides, **self._sums(o),
            }  # fmt: skip
            for i in reversed(range(len(operation.stages))):
                row = self.rows[done + i] | passed
                for name in ("depthwise", "pointwise", "odd", "weight", "bias"):
                    if isinstance(weight := row.get(name), Address):
                        row[f"{name}_gradient"] = Address("by_weights", weight.number)
                if i == 0:
                    row["to_states"] = self._pointer(f"to_states {operation.input}")
                    row["onto_states"] = self._pointer(self._added_to(o))
                else:
                    shape = self.results[done + i - 1].shape
                    buffer = i % 2
                    plan.passed_bytes[buffer] = max(plan.passed_bytes[buffer], int(np.prod(shape)) * plan.value_size)
                    row["in_gradient"] = Address("passed", buffer)
                    row["in_sum"], row["in_sum_y"] = (plan.sums.take(shape[1] * shape[-1]) for _ in range(2))
                    passed = {"gradient": row["in_gradient"], "source": EDGES}
                    passed["sum"], passed["sum_y"] = row["in_sum"], row["in_sum_y"]
                yield done + i, row
            done += len(operation.stages)


class Plan:
    """For inputs of one kind: the tables, and the tensors that their addresses are of.

    Both tables have the same places for the words of all sections, then for the rows of all stages; in the backward
    pass an operation's stages stand in its order. inputs: of each given state its shape and strides.
    """

    def __init__(self, graph: CellGraph, inputs: Sequence[_Images], gammas: Sequence[Tensor]) -> None:
        self.graph = graph
        self.value_size = gammas[0].element_size()
        self.images = dict(enumerate(inputs))  # of all states
        self.outputs = _Part("outputs", self.value_size)  # of all stages: one piece of memory breaks up less of it
        self.normalisations = _Part("normalisations", self.value_size)
        self.sums = _Part("sums", 8)
        self.num_weights = self.num_results = self.first_stage = 0
        self.halves: dict[int, int] = {}  # the weight of either half of a HalvingConv, to the other's
        self.sections: list[_Section] = []
        for i, (step, gamma) in enumerate(zip(graph.steps, gammas, strict=True)):
            self.sections.append(_Section(self, i, step, gamma.dim() == 3, self.first_stage))
            self.first_stage += self.sections[-1].num_words
        self.norms = [stage.norm for stage in graph.stages]
        shapes = [result.shape for section in self.sections for result in section.results]
        self.too_few = [N * H * W <= 1 for N, _, H, W, _ in shapes]  # values of a channel, to normalise them
        num_states = len(self.images)
        self.counts = {
            "itself": 1, "states": num_states, "gammas": len(gammas), "normalisations": 1, "weights": self.num_weights,
            "outputs": 1, "statistics": 2 * self.num_results, "sums": 1, "passed": 2,
            "behind": num_states, "by_states": num_states, "by_weights": self.num_weights,
        }  # fmt: skip
        self.first_rows = np.cumsum([0, *(len(section.rows) for section in self.sections)]).tolist()
        self.forward = self._forward()
        self.passed_bytes = [0, 0]
        self.begun: set[int] = set()  # states whose gradient has been written to, on the way back
        self.filled: set[int] = set()  # those where it is first what comes from behind, or zeros
        self.direct: set[int] = set()  # outputs that no step leads from: their gradient is what comes from behind
        self.order: list[int] = []  # of the stages in the backward pass
        self.backward = self._backward()

    def _forward(self) -> _Table:
        words: list[Value] = []
        given: set[int] = set()
        for section in self.sections:
            words += section.words([node in given for node in section.step.nodes], backward=False)
            given.update(section.step.nodes)
        return self._table(words, [row for section in self.sections for row in section.rows])

    def _backward(self) -> _Table:
        for section in reversed(self.sections):
            nodes = set(section.step.nodes)
            self.direct |= nodes & {*self.graph.outputs} - self.begun
            section.live = bool(nodes & (self.begun | self.direct))
            if section.live:
                self.filled |= nodes - self.begun
                self.begun |= nodes
                section.set_adds()
        words: list[Value] = []
        rows: list[Row] = []
        for section, first in zip(self.sections, self.first_rows, strict=False):
            words += section.words([False] * len(section.step.nodes), backward=True)
            if section.live:
                for number, row in section.backward_rows():
                    self.order.append(first + number)
                    rows.append(row)
            else:
                self.order += range(first, first + len(section.rows))
                rows += section.rows
        return self._table(words, rows)

    def _table(self, words: list[Value], rows: Sequence[Row]) -> _Table:
        return _Table([*words, *(row.get(name, 0) for row in rows for name in STAGE)], self.counts)

    def adds_to(self, states: Sequence[int]) -> bool:
        """Whether what is given to these states' gradients is added to what is there; after it there is something."""
        new = [state for state in states if state not in self.begun]
        if 0 < len(new) < len(states):
            self.filled.update(new)
        self.begun.update(states)
        return len(new) < len(states)


def _plan(graph: CellGraph, inputs: Sequence[_Images], gammas: Sequence[Tensor]) -> Plan:
    key = gammas[0].dtype, *(gamma.dim() for gamma in gammas), *inputs
    plan: Plan | None = graph.plans.get(key)
    if plan is None:
        plan = graph.plans[key] = Plan(graph, inputs, gammas)
    return plan


class Calls:
    """The kernels of one pass: of its table the words, and the rows of all stages."""

    def __init__(self, name: str, plan: Plan, dtype: torch.dtype, words: Words) -> None:
        self.name, self.plan, self.words = name, plan, words  # kept while the kernels read them
        self.kernel = getattr(kernels(real=DTYPES[dtype]), name)
        threads = torch.get_num_threads()
        for section in plan.sections:
            words[section.start + MIX.index("threads")] = threads
        self.rows = words[plan.first_stage :].reshape(-1, len(STAGE))
        self.rows[:, STAGE.index("threads")] = threads

    def __call__(self, section: int, *more: int) -> None:
        """One step. Raises MemoryError if there is not enough for the kernels."""
        first_row = self.plan.first_rows[section]
        words = self.plan.sections[section].start, self.plan.first_stage + len(STAGE) * first_row
        start = self.words.ctypes.data
        if self.kernel(*(ctypes.c_void_p(start + 8 * word) for word in words), *map(ctypes.c_int64, more)):
            raise MemoryError("not enough memory for the planes of the C++ kernels")


def run(inputs: Sequence[Tensor], gammas: Sequence[Tensor], graph: CellGraph) -> list[Tensor]:
    """Run a graph on a CPU: its outputs, each (N, C, H', W'), then the states that it passes on.

    inputs: the graph's input states (N, C, H, W), all float32 or all float64, those of one step's input of one shape.
    gammas: for each step, (number of operations, E), the scale of each operation's last BatchNorm, which then has no
    weight of its own; or (number of operations, E, N), a factor of each operation's output for each image, which gets
    no gradient.
    Raises Unavailable if the kernels cannot be compiled, ValueError if a BatchNorm in train mode has a single value of
    each channel.
    """
    found = list(_Run.apply(graph, *gammas, *inputs, *graph.weights()))
    for i, state in enumerate(graph.passed_on, start=len(graph.outputs)):
        if not inputs[state].requires_grad:  # nor is it to seem so
            found[i] = inputs[state]
    norms = [stage.norm for stage in graph.stages if stage.norm is not None and stage.norm.training]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)
    return found


def _inputs(inputs: Sequence[Tensor], graph: CellGraph) -> tuple[list[Tensor], list[_Images]]:
    """All states as the kernels can read them, those of one input of a step in the same way."""
    taken = [_channels_last(x) for x in inputs]
    if any(taken[state][1] != taken[states[0]][1] for states in graph.together for state in states):
        taken = [_channels_last(x.contiguous(memory_format=torch.channels_last)) for x in inputs]
    return [x for x, _ in taken], [images for _, images in taken]


def _starts(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: CellGraph, *tensors: Tensor) -> tuple[Tensor, ...]:
        num_gammas, num_inputs = len(graph.steps), graph.num_inputs
        gammas = [gamma.contiguous() for gamma in tensors[:num_gammas]]
        states, inputs = _inputs(tensors[num_gammas:][:num_inputs], graph)
        weights = [weight.contiguous() for weight in tensors[num_gammas + num_inputs :]]
        like = gammas[0]
        if any(tensor.dtype != like.dtype or tensor.device.type != "cpu" for tensor in tensors):
            kinds = sorted({f"{tensor.dtype} on {tensor.device}" for tensor in tensors})
            raise TypeError(f"the C++ kernels need all tensors of one type on the CPU, found {', '.join(kinds)}")
        plan = _plan(graph, inputs, gammas)
        states += [_pixels(like, plan, state) for state in range(num_inputs, len(plan.images))]
        normalisations, outputs = plan.normalisations.tensor(), plan.outputs.tensor()
        statistics = [t for norm in plan.norms for t in _statistics(norm)]
        starts = _starts([None, *states, *gammas, normalisations, *weights, outputs, *statistics])
        absent = [0] * (sum(plan.counts.values()) - len(starts))
        call = Calls("forward", plan, like.dtype, plan.forward.with_addresses(starts + absent))
        training = [norm is not None and (norm.training or norm.running_mean is None) for norm in plan.norms]
        if any(itertools.compress(training, plan.too_few)):
            raise ValueError("Expected more than 1 value per channel when training")  # as PyTorch says
        call.rows[:, STAGE.index("training")] = training
        for name in ("momentum", "eps"):
            values = [0.0 if norm is None else getattr(norm, name) for norm in plan.norms]
            if None in values:
                raise ValueError(f"the C++ kernels need the {name} of each BatchNorm")
            call.rows.view(np.float64)[:, STAGE.index(name)] = values
        for section in range(len(plan.sections)):
            call(section)
        ctx.plan, ctx.training = plan, training
        kept = [state if number in graph.taken else None for number, state in enumerate(states)]
        ctx.save_for_backward(*kept, *gammas, normalisations, *weights, outputs)
        ctx.set_materialize_grads(False)
        given = tensors[num_gammas:]
        return *(states[state].permute(0, 3, 1, 2) for state in graph.outputs), *(given[i] for i in graph.passed_on)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        graph, sections, counts = plan.graph, plan.sections, plan.counts
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        num_states, num_gammas, num_inputs = counts["states"], counts["gammas"], graph.num_inputs
        like, weights = saved[num_states], saved[num_states + num_gammas + 1 :][: counts["weights"]]
        of_gammas = ctx.needs_input_grad[1 : 1 + num_gammas]
        of_inputs = ctx.needs_input_grad[1 + num_gammas :][:num_inputs]
        of_weights = ctx.needs_input_grad[1 + num_gammas + num_inputs :]
        # steps of which more than the gammas' gradients is needed
        needed = set(itertools.compress(range(num_inputs), of_inputs))
        whole: list[bool] = []
        for section, of_gamma in zip(sections, of_gammas, strict=True):
            wanted = not needed.isdisjoint(section.step.states) or any(of_weights[i] for i in section.weights)
            whole.append(section.live and wanted)
            if wanted or of_gamma:
                needed.update(section.step.nodes)
        runs = [section.live and (all_ or one) for section, all_, one in zip(sections, whole, of_gammas, strict=True)]
        behind: list[Tensor | None] = [None] * num_states
        for state, gradient in zip((*graph.outputs, *graph.passed_on), gradients, strict=True):
            behind[state] = None if gradient is None else gradient.permute(0, 2, 3, 1).contiguous()
        by_states = [x if state in plan.direct else None for state, x in enumerate(behind)]
        for i, section in enumerate(sections):
            for state in (*(section.step.states if whole[i] else ()), *(section.step.nodes if runs[i] else ())):
                if by_states[state] is None:
                    by_states[state] = pixels = _pixels(like, plan, state)
                    if state in plan.filled:
                        there = behind[state]
                        pixels.zero_() if there is None else pixels.copy_(there)
        by_weights: list[Tensor | None] = [None] * len(weights)
        for i in (i for section in itertools.compress(sections, whole) for i in section.weights):
            if of_weights[i] or of_weights[plan.halves.get(i, i)]:  # of two halves the kernels write both
                by_weights[i] = torch.empty_like(weights[i])
        sums = plan.sums.tensor()
        passed = [POOL.take(size if any(whole) else 0) for size in plan.passed_bytes]
        starts = [0, *_starts(saved), *[0] * counts["statistics"]]
        starts += _starts([sums, *passed, *behind, *by_states, *by_weights])
        call = Calls("backward", plan, like.dtype, plan.backward.with_addresses(starts))
        call.rows[:, STAGE.index("training")] = np.array(ctx.training)[plan.order]
        for i in reversed(range(len(sections))):
            if runs[i]:
                call(i, whole[i])
        by_gammas = [
            section.by_gamma(sums).to(like.dtype) if one and section.live and not section.by_image else None
            for section, one in zip(sections, of_gammas, strict=True)
        ]
        by_inputs: list[Tensor | None] = []
        for state, one in enumerate(of_inputs):
            found = by_states[state]
            if found is None:  # no step leads from it
                found = behind[state]
            by_inputs.append(None if found is None or not one else found.permute(0, 3, 1, 2))
        return None, *by_gammas, *by_inputs, *by_weights


def _pixels(like: Tensor, plan: Plan, state: int) -> Tensor:
    """Memory for a state (N, H, W, C)."""
    N, C, H, W = plan.images[state].shape
    return like.new_empty(N, H, W, C)


def _statistics(norm: nn.BatchNorm2d | None) -> tuple[Tensor | None, Tensor | None]:
    """The running mean and variance; from the buffers, for that takes less time than by their names."""
    if norm is None:
        return None, None
    return norm._buffers["running_mean"], norm._buffers["running_var"]
