"""All edges that leave the same states, computed as one batch.

A supernet drawn as in the papers has an operation module for each candidate on each edge: 14 edges with 8 modules in
a cell, each far too small to keep a processor busy. But every edge runs the same list of operations, so here the
channels of all edges of a batch stand side by side in one tensor, and each layer of an operation is one layer of
all of them: a convolution with as many groups as there are edges, one BatchNorm over all channels. Four things are
the same mathematics for less work:

- Operations without weights (identity, pools with their affine-free BatchNorm) depend on the state alone, not on the
  edge: they are computed once for a state, and one product with the mixing weights gives their share of all nodes.
- The mixing weight of any other operation is the scale (gamma) of its last BatchNorm, which has none of its own. The
  gradient of the mixing weight is then the one that the BatchNorm computes anyway.
- The input that a residual block adds to its output is the identity again: its mixing weight joins the identity's.
- A convolution of dilation 2 is a plain one on each of the four phases of its input (even and odd rows and columns);
  at stride 2, on the first of them alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.backends import ir
from darts_sg.networks.skeleton import join
from darts_sg.ops.depthwise import DepthwiseConv2d
from darts_sg.ops.operation import Residual
from darts_sg.ops.primitives import HalvingConv, HalvingConvBN

POINTWISE = (nn.ReLU, nn.ReLU6)  # layers without weights or statistics, on each channel alone
POOLS = (nn.MaxPool2d, nn.AvgPool2d)


class Part(NamedTuple):
    """Where a layer of the supernet of the papers stands in the batched one: slice `number` of `slices`."""

    name: str
    layer: nn.Module
    number: int
    slices: int


def chain_of(operation: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers of an operation that is a chain of layers known here, with their names in it; otherwise None."""
    if isinstance(operation, Residual):
        operation = nn.ModuleDict({"body": operation.body})
    chain: list[tuple[str, nn.Module]] = []
    for name, layer in operation.named_children():
        if isinstance(layer, HalvingConvBN):
            chain += [(name, layer), (f"{name}.bn", layer.bn)]
        elif isinstance(layer, nn.Sequential):
            inner = chain_of(layer)
            if inner is None:
                return None
            chain += [(f"{name}.{path}", part) for path, part in inner]
        elif isinstance(layer, (*POINTWISE, *POOLS)) or (
            (isinstance(layer, nn.Conv2d) and layer.bias is None)
            or (isinstance(layer, nn.BatchNorm2d) and not layer.affine)
        ):
            chain.append((name, layer))
        else:
            return None
    return chain if chain and isinstance(chain[-1][1], nn.BatchNorm2d) else None


def stacked(layers: Sequence[nn.Module]) -> nn.Module:
    """One layer that does on (N, len(layers) · C, H, W) what each of `layers` does on its own C channels."""
    first, E = layers[0], len(layers)
    if isinstance(first, HalvingConv):
        layer: nn.Module = HalvingConv(E * first.C_in, E * first.C_out, groups=E)
        names = ["conv_1.weight", "conv_2.weight"]
    elif isinstance(first, DepthwiseConv2d):
        geometry: Any = (first.kernel_size[0], first.stride[0], first.dilation[0])
        layer, names = DepthwiseConv2d(E * first.in_channels, *geometry), ["weight"]
    elif isinstance(first, nn.Conv2d):
        one: Any = first  # its kernel_size and the like are typed as tuples of any length
        layer = nn.Conv2d(
            E * one.in_channels, E * one.out_channels, one.kernel_size, one.stride, one.padding, one.dilation,
            E * one.groups, bias=False,
        )  # fmt: skip
        names = ["weight"]
    elif isinstance(first, nn.BatchNorm2d):
        return nn.BatchNorm2d(E * first.num_features, first.eps, first.momentum, affine=False)
    else:
        return first
    with torch.no_grad():
        for name in names:
            layer.get_parameter(name).copy_(torch.cat([part.get_parameter(name) for part in layers]))
    return layer


class Stacked(nn.Module):
    """An operation that is a chain of known layers, each layer standing for that of all `operations`, side by side."""

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages: list[ir.Stage] | None = None  # as the kernels of darts_sg.backends see it
        chains = [chain_of(operation) or [] for operation in operations]
        self.paths = [path for path, _ in chains[0]]
        self.layers = nn.ModuleList(stacked([chain[i][1] for chain in chains]) for i in range(len(self.paths)))
        for layer in self.layers[1:]:  # the input of the first one is not ours
            if isinstance(layer, POINTWISE):
                layer.inplace = True


class Chain(Stacked):
    """A candidate operation on all edges of a batch: (N, E · C, H, W) to the same, times gamma (E · C,).

    The first ReLU is left to the batch, whose operations share it. With `phases` the input is that of a plain
    convolution instead of a dilated one.
    """

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__(operations)
        self.shortcut = isinstance(operations[0], Residual) and operations[0].shortcut
        self.relu = isinstance(self.layers[0], nn.ReLU)
        first = self.layers[1 if self.relu else 0]
        self.dilated = isinstance(first, DepthwiseConv2d) and first.dilation == (2, 2)
        self.by_state = isinstance(first, HalvingConv)  # takes each state once, for all edges that leave it
        self.stages = ir.stages_of(list(self.layers), len(operations))

    def forward(self, x: Tensor, gamma: Tensor, phases: bool) -> Tensor:
        *layers, last = self.layers[1:] if self.relu else self.layers
        if phases:
            weight = cast(DepthwiseConv2d, layers.pop(0)).weight
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])
        for layer in layers:
            x = layer(x)
        assert isinstance(last, nn.BatchNorm2d)
        momentum = cast(float, last.momentum)
        return F.batch_norm(x, last.running_mean, last.running_var, gamma, None, last.training, momentum, last.eps)


class Shared(Stacked):
    """An operation without weights on all states of a batch: (N, S · C, H, W) to (N, S · C, H / stride, W / stride)."""

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__(operations)
        pool = ir.pool_of(list(self.layers))
        self.stages = None if pool is None else [pool]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@dataclass(frozen=True, eq=False)
class EdgeWeights:
    """The mixing weights of a batch of edges, for all cells that have the same ones."""

    weights: Tensor
    """(E, number of operations but `none`)."""
    edges: Tensor | None = None
    """(E,), with edge normalisation, by which `weights` is multiplied already."""
    gammas: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    """As the kernels take them, by the operations that these compute: made once, see `EdgeBatch.gamma`."""


class EdgeBatch(nn.Module):
    """The edges from S states to T nodes at one stride, E = S · T of them, those of the first state first.

    operations: for each edge, in that order, its candidate operations without `none`, at C channels.
    """

    def __init__(self, operations: Sequence[Sequence[nn.Module]], num_states: int, C: int, stride: int) -> None:
        super().__init__()
        self.S, self.T, self.C, self.stride = num_states, len(operations) // num_states, C, stride
        self.native = False
        self.operations: dict[tuple[int, ...], ir.Operations] = {}  # as the kernels take them, by which these are
        self.ops = nn.ModuleList()
        for ops in zip(*operations, strict=True):  # ops: one operation, on every edge
            weightless = not any(True for _ in ops[0].parameters())
            if weightless and isinstance(ops[0], nn.Identity):
                self.ops.append(nn.Identity())
            elif chain_of(ops[0]) is None:
                self.ops.append(nn.ModuleList(ops))
            elif weightless:
                self.ops.append(Shared(ops[:: self.T]))
            else:
                self.ops.append(Chain(ops))

    def forward(self, states: Sequence[Tensor], weights: EdgeWeights, onto: Sequence[Tensor] = ()) -> list[Tensor]:
        """What the states (N, C, H, W) give to each of the T nodes, added to what is in `onto`, if anything is."""
        fast = self._native_ops(states[0])
        all_fast = len(fast) + sum(isinstance(op, nn.Identity) for op in self.ops) == len(self.ops)
        apart = fast and all_fast and not states[0].is_cuda
        x = states[0] if apart else join(states)
        rest = [op for i, op in enumerate(self.ops) if isinstance(op, Chain) and i not in fast]
        rectified = torch.relu(x) if any(op.relu for op in rest) else x
        inputs: dict[tuple[bool, bool], Tensor] = {}
        shared: list[Tensor] = []
        coefficients: list[Tensor] = []
        sums: dict[bool, Tensor] = {}  # whether in phases, to (N, E · C, …)
        given: list[list[Tensor]] = [[] for _ in range(self.T)] if fast or not onto else [[node] for node in onto]
        halves = x.shape[-2] % 2 == 0 and x.shape[-1] % 2 == 0
        of_all = weights.weights
        # of a few each by itself, for the gradient of unbind is a launch more for each that is not used
        by_column = [of_all[:, i] for i in range(len(self.ops))] if fast else of_all.unbind(dim=1)
        passed_on = None if fast else self._passed_on(by_column)  # then it is part of their gamma
        chained = [i for i, op in enumerate(self.ops) if op in rest]
        scales = torch.stack([by_column[i] for i in chained]).repeat_interleave(self.C, dim=1) if rest else None
        gammas = {} if scales is None else dict(zip(chained, scales.unbind(), strict=True))
        for i, (op, weight) in enumerate(zip(self.ops, by_column, strict=True)):
            if i in fast:
                continue
            if isinstance(op, Chain):
                phases = op.dilated and (halves or self.stride == 2)
                key = (op.relu, phases)
                state = rectified if op.relu else x
                if key not in inputs and not op.by_state:
                    inputs[key] = self._input(state, phases)
                y = op(state if op.by_state else inputs[key], gammas[i], phases)
                in_phases = phases and self.stride == 1
                sums[in_phases] = sums[in_phases].add_(y) if in_phases in sums else y
            elif isinstance(op, Shared):
                shared.append(op(x))
                coefficients.append(weight)
            elif not isinstance(op, nn.Identity):
                for e, edge_op in enumerate(cast(nn.ModuleList, op)):
                    given[e % self.T].append(weight[e] * edge_op(states[e // self.T]))
        if fast:
            gamma = self.gamma(weights, fast)
            of_states = [x] if x.is_cuda else states
            for node, part in enumerate(ir.run(of_states, gamma, self.native_operations(fast), onto)):
                given[node].append(part)
        if passed_on is not None:
            shared.append(x)
            coefficients.append(passed_on)
        if shared:
            for node, part in enumerate(mix(shared, torch.stack(coefficients), self.S, self.T)):
                given[node].append(part)
        if sums:
            wholes = [join_phases(y) if in_phases else y for in_phases, y in sums.items()]
            for node, part in enumerate(sum_of_chunks(sum(wholes[1:], wholes[0]), self.S).split(self.C, dim=1)):
                given[node].append(part)
        return [sum(parts[1:], parts[0]) for parts in given]

    def gamma(self, weights: EdgeWeights, fast: Sequence[int]) -> Tensor:
        """What the kernels multiply these operations with, and the states themselves last: (number of them, E)."""
        kind = tuple(fast)
        if kind not in weights.gammas:
            by_column = weights.weights.unbind(dim=1)
            passed_on = self._passed_on(by_column)
            rows = [by_column[i] for i in fast]
            weights.gammas[kind] = torch.stack(rows if passed_on is None else [*rows, passed_on])
        return weights.gammas[kind]

    def native_operations(self, fast: Sequence[int]) -> ir.Operations:
        """These operations as the kernels take them, and the states themselves last if they are passed on."""
        kind = tuple(fast)
        if kind not in self.operations:
            each = [ir.Operation(cast(Stacked, self.ops[i]).stages or []) for i in fast]
            if any(self._passes_on(op) for op in self.ops):
                each.append(ir.Operation())
            self.operations[kind] = ir.Operations(self.S, self.T, each)
        return self.operations[kind]

    def all_native(self) -> list[int] | None:
        """All operations but identities, by number, if the kernels for CPUs compute all of these; otherwise None."""
        known = self._known()
        return known if len(known) == sum(not isinstance(op, nn.Identity) for op in self.ops) else None

    def _known(self) -> list[int]:
        """The operations that the kernels for CPUs compute: first the chains, then the pools."""
        known = [i for i, op in enumerate(self.ops) if isinstance(op, Stacked) and op.stages]
        return sorted(known, key=lambda i: isinstance(self.ops[i], Shared))

    def _native_ops(self, x: Tensor) -> list[int]:
        """The operations that the kernels of darts_sg.backends compute now, in the same order."""
        if not self.native:
            return []
        return [i for i in self._known() if ir.computes(x, cast(Stacked, self.ops[i]).stages or [])]

    @staticmethod
    def _passes_on(op: nn.Module) -> bool:
        return isinstance(op, nn.Identity) or (isinstance(op, Chain) and op.shortcut)

    def _passed_on(self, by_column: Sequence[Tensor]) -> Tensor | None:
        """The weights (E,) of the identity, which are those of all that add their input; None if nothing does."""
        found = [of_op for op, of_op in zip(self.ops, by_column, strict=True) if self._passes_on(op)]
        return sum(found[1:], found[0]) if found else None

    def _input(self, x: Tensor, phases: bool) -> Tensor:
        """x (N, S · C, H, W), for each edge: (N, E · C, H, W), or its phases (4N, E · C, H / 2, W / 2)."""
        if phases and self.stride == 2:
            x = x[..., ::2, ::2]
        elif phases:
            x = split_phases(x)
        return repeat(x, self.S, self.T)

    def parts(self, state: int, node: int, prefix: str) -> Iterator[Part]:
        """The layers of one edge, in the order of the supernet of the papers."""
        e = state * self.T + node
        for i, op in enumerate(self.ops):
            if isinstance(op, Stacked):
                place = (e, self.S * self.T) if isinstance(op, Chain) else (state, self.S)
                for path, layer in zip(op.paths, op.layers, strict=True):
                    for inner, module in layer.named_modules():
                        yield Part(".".join(filter(None, (f"{prefix}.ops.{i}.{path}", inner))), module, *place)
            elif not isinstance(op, nn.Identity):
                for inner, module in cast(nn.ModuleList, op)[e].named_modules():
                    yield Part(".".join(filter(None, (f"{prefix}.ops.{i}", inner))), module, 0, 1)


def repeat(x: Tensor, S: int, T: int) -> Tensor:
    """(N, S · C, H, W) to (N, S · T · C, H, W): each of the S parts T times."""
    if T == 1:
        return x
    N, _, H, W = x.shape
    parts = x.permute(0, 2, 3, 1).reshape(N, H, W, S, 1, -1)
    return parts.expand(-1, -1, -1, -1, T, -1).reshape(N, H, W, -1).permute(0, 3, 1, 2)


def sum_of_chunks(y: Tensor, S: int) -> Tensor:
    """(N, S · T · C, H, W) to (N, T · C, H, W): the sum over the states."""
    parts = y.chunk(S, dim=1)
    return sum(parts[1:], parts[0])


def mix(tensors: Sequence[Tensor], coefficients: Tensor, S: int, T: int) -> list[Tensor]:
    """For each of T nodes, the sum over tensors and states of coefficient times tensor.

    tensors: K of (N, S · C, H, W); coefficients: (K, S · T). Returns T of (N, C, H, W).
    """
    parts = torch.stack([part.permute(0, 2, 3, 1) for t in tensors for part in t.chunk(S, dim=1)])  # (K·S, N, H, W, C)
    matrix = coefficients.reshape(-1, T).t()  # (T, K · S)
    mixed = (matrix @ parts.flatten(1)).view(T, *parts.shape[1:])
    return [node.permute(0, 3, 1, 2) for node in mixed.unbind()]


def split_phases(x: Tensor) -> Tensor:
    """(N, C, H, W) of even height and width to its phases (4N, C, H / 2, W / 2): even and odd rows and columns."""
    N, C, H, W = x.shape
    x = x.permute(0, 2, 3, 1).reshape(N, H // 2, 2, W // 2, 2, C).permute(2, 4, 0, 1, 3, 5)
    return x.reshape(4 * N, H // 2, W // 2, C).permute(0, 3, 1, 2)


def join_phases(x: Tensor) -> Tensor:
    """The inverse of `split_phases`."""
    N, C, H, W = x.shape
    x = x.permute(0, 2, 3, 1).reshape(2, 2, N // 4, H, W, C).permute(2, 3, 0, 4, 1, 5)
    return x.reshape(N // 4, 2 * H, 2 * W, C).permute(0, 3, 1, 2)
