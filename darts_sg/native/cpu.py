"""What `chains.run` does, on a CPU: one call of chains.cpp for all operations, and one for their gradients.

Each call needs some fifty numbers for each stage, and hardly any of them changes from step to step. So there is a plan
for each kind of input that some operations are given: the structures of chains.cpp as two tables of 64-bit words, one
for either pass, in which only the addresses are missing. A call copies a table and enters them, all at a time.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from darts_sg.native import kernels
from darts_sg.native.chains import DTYPES, EDGES, MIXED_NODES, NODES, Operation, Operations, Stage, kind_of

# the structures of chains.cpp
STAGE = (
    "N", "S", "T", "H", "W", "Ho", "Wo", "Ci", "Co", "k", "stride", "dilation", "pool", "activation", "first",
    "norm", "training", "threads", "in_n", "in_pixel", "states", "in", "in_scale", "in_shift", "in_inverse",
    "in_offset", "depthwise", "pointwise", "odd", "out", "scale", "shift", "inverse", "offset", "running_mean",
    "running_var", "weight", "bias", "momentum", "eps", "gradient", "given", "source", "nodes", "gamma",
    "gamma_edge", "gamma_image", "sum", "sum_y", "in_gradient", "to_states", "accumulate", "in_sum", "in_sum_y",
    "depthwise_gradient", "pointwise_gradient", "odd_gradient", "weight_gradient", "bias_gradient",
)  # fmt: skip
OF_OPERATIONS = ("scale", "shift", "image", "part", "pixel", "shared", "stages")  # pointers to one for each operation
MIX = (
    "operations", "N", "S", "T", "pixels", "C", "threads", "y", *OF_OPERATIONS, "gamma", "gamma_edge", "gamma_image",
    "nodes", "onto", "sum", "sum_y", "to_states", "accumulate",
)  # fmt: skip
ALIGNED = 64  # bytes that parts of a tensor begin at multiples of
Words = NDArray[np.int64]


class Address(NamedTuple):
    """Where something is: so many bytes from where a tensor begins, which is known by a kind and a number."""

    kind: str
    number: int = 0
    offset: int = 0


Value = int | Address


class _Table:
    """Words, in which addresses are missing until it is known where each tensor is."""

    def __init__(self, rows: Sequence[Sequence[Value]], counts: dict[str, int]) -> None:
        first = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist(), strict=False))
        words = [value for row in rows for value in row]
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

    shape: torch.Size
    image: int
    pixel: int


def _channels_last(x: Tensor) -> tuple[Tensor, _Images]:
    """x (N, C, H, W) as it is if its channels stand side by side and its rows close up; otherwise a copy."""
    _, C, H, W = x.shape
    if not x.is_contiguous(memory_format=torch.channels_last):
        if x.stride(1) == 1 and H > 1 and W > 1 and x.stride(2) == W * x.stride(3):
            return x, _Images(x.shape, x.stride(0), x.stride(3))
        x = x.contiguous(memory_format=torch.channels_last)
    return x, _Images(x.shape, H * W * C, C)


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
        self.bytes += -(-values * self.value_size // ALIGNED) * ALIGNED
        return address

    def tensor(self, like: Tensor) -> Tensor:
        return like.new_empty(self.bytes, dtype=torch.uint8)


class Plan:
    """For inputs of one kind: the tables, and the tensors that their addresses are of.

    inputs: of each the states' shape and strides, which are the same for all its states.
    onto: whether there is something in the nodes already.
    """

    def __init__(self, operations: Operations, inputs: Sequence[_Images], gamma: Tensor, onto: bool) -> None:
        self.operations, self.inputs, self.N = operations, inputs, inputs[0].shape[0]
        S, T, num_ops = operations.S, operations.T, len(operations.each)
        self.norms = [stage.norm for stage in operations.stages()]
        self.by_image = gamma.dim() == 3
        self.gamma_strides = {"gamma_edge": self.N, "gamma_image": 1} if self.by_image else {"gamma_edge": 1}
        self.value_size = gamma.element_size()
        self.normalisations = _Part("normalisations", self.value_size)
        self.sums = _Part("sums", 8)
        # what the structures point to stands between the product with gamma and the stages
        sizes = dict.fromkeys(("y", "to_states"), num_ops * S) | {"nodes": T, "onto": T}
        sizes |= dict.fromkeys((*OF_OPERATIONS, "sum", "sum_y", "accumulate"), num_ops)
        sizes |= {f"{name} {i}": S for name in ("states", "to_states") for i in range(len(inputs))}
        self.places = dict(zip(sizes, np.cumsum([len(MIX), *sizes.values()]).tolist(), strict=False))
        self.first_stage = len(MIX) + sum(sizes.values())
        self.results: list[_Result] = []
        forward: list[dict[str, Value]] = []
        weights = statistics = 0
        for operation in operations.each:
            previous: _Result | None = None
            for stage in operation.stages:
                row = self._stage(operation, stage, previous, weights, statistics)
                weights += len(stage.weights())
                statistics += 2
                forward.append(row)
                previous = self.results[-1]
        if self.results:
            _, _, H, W, C = self.results[-1].shape
        else:
            _, C, H, W = inputs[0].shape
        self.node_shape = (self.N, H, W, C)
        self.counts = {
            "itself": 1, "nodes": T, "gamma": 1, "normalisations": 1, "inputs": len(inputs) * S, "weights": weights,
            "outputs": len(self.results), "statistics": statistics, "onto": T if onto else 0, "sums": 1, "passed": 2,
            "by_inputs": len(inputs) * S, "by_weights": weights,
        }  # fmt: skip
        self.sums_shape = (num_ops, 2, S * T, C)
        self.sums.take(int(np.prod(self.sums_shape)))  # they come first
        self.passed_bytes = [0, 0]
        self.order: list[int] = []  # of the stages in the backward pass
        self.forward = self._table(forward, backward=False)
        self.backward = self._table(list(self._backward(forward)), backward=True)

    def _table(self, rows: Sequence[dict[str, Value]], *, backward: bool) -> _Table:
        parts = self._pointed_to(backward)
        mix = self._mix() | {name: self._pointer(name) for name in MIX if name in parts}
        words = [[mix.get(name, 0) for name in MIX], *(parts[name] for name in self.places)]
        return _Table([*words, *([row.get(name, 0) for name in STAGE] for row in rows)], self.counts)

    def _pointer(self, name: str) -> Address:
        return Address("itself", 0, 8 * self.places[name])

    def _stage(
        self, operation: Operation, stage: Stage, previous: _Result | None, weights: int, statistics: int
    ) -> dict[str, Value]:
        S, T = self.operations.S, 1 if operation.shared else self.operations.T
        images = self.inputs[operation.input]
        row: dict[str, Value] = {"S": S, "T": T, "activation": stage.activation, "stride": 1, "dilation": 1}
        if previous is None:
            _, C, H, W = images.shape
            row |= {"states": self._pointer(f"states {operation.input}"), "first": 1}
        else:
            _, _, H, W, C = previous.shape
            row |= {"in": previous.y, "in_scale": previous.scale, "in_shift": previous.shift}
            if previous.inverse != previous.scale:
                row |= {"in_inverse": previous.inverse, "in_offset": previous.offset}
        row |= {"N": self.N, "H": H, "W": W, "Ci": C, "in_n": images.image, "in_pixel": images.pixel}
        stride = 1
        if stage.depthwise is not None:
            layer = stage.depthwise
            stride = layer.stride[0]
            row |= {"k": layer.kernel_size[0], "dilation": layer.dilation[0], "depthwise": Address("weights", weights)}
            weights += 1
        if stage.pool is not None:
            stride = cast(int, stage.pool.stride)
            row |= {"k": 3, "pool": kind_of(stage.pool)}
        Co = C
        if stage.pointwise is not None:
            Co = stage.pointwise.out_channels // (S * T)
            row["pointwise"] = Address("weights", weights)
            weights += 1
        if stage.halving is not None:
            stride, Co = 2, stage.halving.C_out // (S * T)
            row |= {"pointwise": Address("weights", weights), "odd": Address("weights", weights + 1)}
            weights += 2
        Ho, Wo = -(-H // stride), -(-W // stride)
        y, (scale, shift) = Address("outputs", len(self.results)), self._pair(S * T * Co)
        inverse, offset = scale, shift
        if (norm := stage.norm) is not None:
            row |= {"norm": 1, "eps": np.array(norm.eps, dtype=np.float64).view(np.int64).item()}
            if norm.running_mean is not None:
                row |= {
                    "running_mean": Address("statistics", statistics),
                    "running_var": Address("statistics", statistics + 1),
                }
            if norm.affine:
                inverse, offset = self._pair(S * T * Co)
                row |= {"weight": Address("weights", weights), "bias": Address("weights", weights + 1)}
        row |= {"stride": stride, "Ho": Ho, "Wo": Wo, "Co": Co, "out": y}
        row |= {"scale": scale, "shift": shift, "inverse": inverse, "offset": offset}
        self.results.append(_Result((self.N, S * T, Ho, Wo, Co), y, scale, shift, inverse, offset))
        return row

    def _pair(self, values: int) -> tuple[Address, Address]:
        return self.normalisations.take(values), self.normalisations.take(values)

    def _mix(self) -> dict[str, Value]:
        N, H, W, C = self.node_shape
        size = {"N": N, "pixels": H * W, "C": C, "S": self.operations.S, "T": self.operations.T}
        return {"operations": len(self.operations.each), "gamma": Address("gamma"), **size, **self.gamma_strides}

    def _pointed_to(self, backward: bool) -> dict[str, list[Value]]:
        """What the structures point to: lists of numbers and of further pointers."""
        S, T = self.operations.S, self.operations.T
        _, H, W, C = self.node_shape
        found: dict[str, list[Value]] = {name: [] for name in self.places}
        found["nodes"] += [Address("nodes", t) for t in range(T)]
        found["onto"] += [0 if backward or not self.counts["onto"] else Address("onto", t) for t in range(T)]
        for i in range(len(self.inputs)):
            found[f"states {i}"] += [Address("inputs", i * S + state) for state in range(S)]
            to = [Address("by_inputs", i * S + state) for state in range(S)]
            found[f"to_states {i}"] += to if backward else [0] * S
        ends, written = 0, [False] * len(self.inputs)
        for o, operation in enumerate(self.operations.each):
            place = operation.input
            row: dict[str, Value] = {"shared": operation.shared, "stages": len(operation.stages)}
            row |= self._sums(o) if backward else {}
            if operation.stages:
                ends += len(operation.stages)
                result = self.results[ends - 1]
                E, part = result.shape[1], H * W * C
                row |= {"image": E * part, "part": part, "pixel": C}
                normalisation = (result.inverse, result.offset) if backward else (result.scale, result.shift)
                row["scale"], row["shift"] = normalisation
                size = E // S * part * self.value_size
                found["y"] += [result.y._replace(offset=state * size) for state in range(S)]
                found["to_states"] += [0] * S
            else:
                images = self.inputs[place]
                row |= {"image": images.image, "pixel": images.pixel, "accumulate": written[place]}
                found["y"] += found[f"states {place}"]
                found["to_states"] += found[f"to_states {place}"]
                written[place] = True
            for name in (*OF_OPERATIONS, "sum", "sum_y", "accumulate"):
                found[name].append(row.get(name, 0))
        return found

    def _sums(self, o: int) -> dict[str, Value]:
        """Where those of an operation's edges are: of the gradient, and of its product with the operation."""
        size = 8 * int(np.prod(self.sums_shape[2:]))
        return {"sum": Address("sums", 0, 2 * o * size), "sum_y": Address("sums", 0, (2 * o + 1) * size)}

    def _backward(self, forward: Sequence[dict[str, Value]]) -> Iterator[dict[str, Value]]:
        """The stages with what their backward passes need, in the order of these.

        Between two stages a gradient lies in one of two buffers, in turns."""
        written = [any(not o.stages and o.input == i for o in self.operations.each) for i in range(len(self.inputs))]
        size = self.sums_shape[2] * (self.N if self.by_image else 1) * self.value_size  # of one operation's gamma
        done = 0
        for o, operation in enumerate(self.operations.each):
            # one gradient for a state, from all nodes
            mixed = operation.shared and self.operations.T > 1
            passed: dict[str, Value] = {
                "given": self._pointer("nodes"), "source": MIXED_NODES if mixed else NODES, "nodes": self.operations.T,
                "gamma": Address("gamma", 0, o * size), **self.gamma_strides, **self._sums(o),
            }  # fmt: skip
            for i in reversed(range(len(operation.stages))):
                row = forward[done + i] | passed
                for name in ("depthwise", "pointwise", "odd", "weight", "bias"):
                    if isinstance(weight := row.get(name), Address):
                        row[f"{name}_gradient"] = Address("by_weights", weight.number)
                if i == 0:
                    place = operation.input
                    row |= {"to_states": self._pointer(f"to_states {place}"), "accumulate": written[place]}
                    written[place] = True
                else:
                    shape = self.results[done + i - 1].shape
                    buffer = i % 2
                    self.passed_bytes[buffer] = max(self.passed_bytes[buffer], int(np.prod(shape)) * self.value_size)
                    row["in_gradient"] = Address("passed", buffer)
                    row["in_sum"], row["in_sum_y"] = (self.sums.take(shape[1] * shape[-1]) for _ in range(2))
                    passed = {"gradient": row["in_gradient"], "source": EDGES}
                    passed["sum"], passed["sum_y"] = row["in_sum"], row["in_sum_y"]
                self.order.append(done + i)
                yield row
            done += len(operation.stages)

    def set_threads(self, words: Words) -> Words:
        """Enters how many threads may work; returns the rows of the stages."""
        threads = torch.get_num_threads()
        words[MIX.index("threads")] = threads
        rows = words[self.first_stage :].reshape(-1, len(STAGE))
        rows[:, STAGE.index("threads")] = threads
        return rows


def _plan(operations: Operations, inputs: Sequence[_Images], gamma: Tensor, *, onto: bool) -> Plan:
    key = gamma.dtype, gamma.dim(), onto, *inputs
    plan: Plan | None = operations.plans.get(key)
    if plan is None:
        plan = operations.plans[key] = Plan(operations, inputs, gamma, onto)
    return plan


def _call(name: str, dtype: torch.dtype, words: Words, first_stage: int, *more: int) -> None:
    start = words.ctypes.data
    arguments = ctypes.c_void_p(start), ctypes.c_void_p(start + 8 * first_stage), *map(ctypes.c_int64, more)
    if getattr(kernels(), f"{name}_{DTYPES[dtype]}")(*arguments):
        raise MemoryError("not enough memory for the planes of the C++ kernels")


def run(states: Sequence[Tensor], gamma: Tensor, operations: Operations, onto: Sequence[Tensor] = ()) -> list[Tensor]:
    """`chains.run` of states on a CPU. Raises Unavailable if the kernels cannot be compiled."""
    stages = operations.stages()
    weights = [weight for stage in stages for weight in stage.weights()]
    before = [node.permute(0, 2, 3, 1).contiguous() for node in onto]
    nodes: tuple[Tensor, ...] = _Run.apply(operations, gamma, len(states), len(onto), *states, *before, *weights)
    norms = [stage.norm for stage in stages if stage.norm is not None and stage.norm.training]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)
    return [node.permute(0, 3, 1, 2) for node in nodes]


def _inputs(states: Sequence[Tensor], S: int) -> tuple[list[Tensor], list[_Images]]:
    """All states as the kernels can read them, and what is the same for the S states of each input."""
    taken = [_channels_last(x) for x in states]
    if any(images != taken[i // S * S][1] for i, (_, images) in enumerate(taken)):
        taken = [_channels_last(x.contiguous(memory_format=torch.channels_last)) for x in states]
    return [x for x, _ in taken], [images for _, images in taken[::S]]


def _starts(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operations: Operations, gamma: Tensor, num_states: int, num_onto: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        states, inputs = _inputs(tensors[:num_states], operations.S)
        onto, weights = tensors[num_states : num_states + num_onto], tensors[num_states + num_onto :]
        gamma = gamma.contiguous()
        plan = _plan(operations, inputs, gamma, onto=num_onto > 0)
        nodes = [gamma.new_empty(plan.node_shape) for _ in range(operations.T)]
        normalisations = plan.normalisations.tensor(gamma)
        outputs = [gamma.new_empty(result.shape) for result in plan.results]
        statistics = [t for norm in plan.norms for t in _statistics(norm)]
        tensors = (*nodes, gamma, normalisations, *states, *weights, *outputs)
        words = plan.forward.with_addresses(_starts([None, *tensors, *statistics, *onto]))
        stages = plan.set_threads(words)
        training = [norm is not None and norm.training for norm in plan.norms]
        stages[:, STAGE.index("training")] = training
        momenta = [0.0 if norm is None else cast(float, norm.momentum) for norm in plan.norms]
        stages.view(np.float64)[:, STAGE.index("momentum")] = momenta
        _call("forward", gamma.dtype, words, plan.first_stage)
        ctx.plan, ctx.training = plan, training
        ctx.save_for_backward(gamma, normalisations, *states, *weights, *outputs)
        return tuple(nodes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        plan: Plan = ctx.plan
        num_states, num_onto, num_weights = (plan.counts[kind] for kind in ("inputs", "onto", "weights"))
        gamma, normalisations, *tensors = ctx.saved_tensors
        states, weights = tensors[:num_states], tensors[num_states:][:num_weights]
        needed = ctx.needs_input_grad[4 : 4 + num_states] + ctx.needs_input_grad[4 + num_states + num_onto :]
        sums = plan.sums.tensor(gamma)
        by_states: list[Tensor] = []
        by_weights: list[Tensor | None] = []
        passed: list[Tensor] = []
        if any(needed):
            by_states = [x.new_empty(x.shape[0], *x.shape[2:], x.shape[1]) for x in states]
            by_weights = [torch.empty_like(w) if n else None for w, n in zip(weights, needed[num_states:], strict=True)]
            passed = [gamma.new_empty(size, dtype=torch.uint8) for size in plan.passed_bytes]
        not_here = [0] * (plan.counts["statistics"] + num_onto)
        gradients = tuple(gradient.contiguous() for gradient in gradients)
        starts = [0, *_starts([*gradients, gamma, normalisations, *tensors]), *not_here, sums.data_ptr()]
        after = _starts([*passed, *by_states, *by_weights])
        words = plan.backward.with_addresses(starts + (after or [0] * (2 + num_states + num_weights)))
        stages = plan.set_threads(words)
        stages[:, STAGE.index("training")] = np.array(ctx.training)[plan.order]
        _call("backward", gamma.dtype, words, plan.first_stage, any(needed))
        by_gamma = None
        if not plan.by_image and ctx.needs_input_grad[1]:
            by_channel = sums.view(torch.float64)[: int(np.prod(plan.sums_shape))].view(plan.sums_shape)
            by_gamma = by_channel[:, 1].sum(dim=-1).to(gamma.dtype)
        by_onto = gradients[:num_onto]
        if not any(needed):
            return None, by_gamma, None, None, *[None] * num_states, *by_onto, *[None] * num_weights
        by_inputs = (by_state.permute(0, 3, 1, 2) for by_state in by_states)
        return None, by_gamma, None, None, *by_inputs, *by_onto, *by_weights


def _statistics(norm: nn.BatchNorm2d | None) -> tuple[Tensor | None, Tensor | None]:
    """The running mean and variance; from the buffers, for that takes less time than by their names."""
    if norm is None:
        return None, None
    return norm._buffers["running_mean"], norm._buffers["running_var"]
