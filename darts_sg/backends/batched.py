"""PyTorch backend of the supernet: all edges that leave the same states, computed as one batch.

The plain supernet has an operation module for each candidate on each edge: 14 edges with 8 modules in a cell, each far
too small to keep a processor busy. But every edge has the same list of operations. So the channels of all edges of a
batch stand side by side in one tensor, and one layer computes that layer of all edges: a convolution with as many
groups as there are edges, one BatchNorm over all channels. Four identities save further work:

- Operations without weights (identity, pools with their affine-free BatchNorm) depend on the state alone, not on the
  edge: they are computed once for a state, and one product with the mixing weights gives their share of all nodes.
- The mixing weight of any other operation is the scale (gamma) of its last BatchNorm, which has none of its own. The
  gradient of the mixing weight is then the one that BatchNorm computes anyway.
- The input that a residual block adds to its output is the identity again: its mixing weight joins the identity's.
- A convolution of dilation 2 is a plain one on each of the four phases of its input (even and odd rows and columns);
  at stride 2, on the first of them alone.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.backends import ir
from darts_sg.backends.sampled import sampled_edges
from darts_sg.backends.watch import HOOKS, Watch, is_changed
from darts_sg.derive import num_edges
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS
from darts_sg.networks.skeleton import CellSpec, State, join
from darts_sg.networks.supernet import CellWeights, MixedOp, Supernet, SupernetCell, maybe_recomputed, per_image
from darts_sg.ops.depthwise import DepthwiseConv2d
from darts_sg.ops.operation import Residual
from darts_sg.ops.primitives import HalvingConv, HalvingConvBN

POINTWISE = (nn.ReLU, nn.ReLU6)  # layers without weights or statistics, on each channel alone
POOLS = (nn.MaxPool2d, nn.AvgPool2d)


class Slice(NamedTuple):
    """Where a layer of the plain supernet lies in a stacked one: slice `number` of `slices` along the channels."""

    name: str
    """Name of the plain layer in its cell."""
    path: str
    """Name of the stacked layer in its cell."""
    layer: nn.Module
    number: int = 0
    slices: int = 1

    def tensors(self, kind: str) -> Iterator[tuple[str, str, Tensor]]:
        """(plain name, stacked name, stacked tensor) of its `parameters` or persistent `buffers`."""
        buffers = kind == "buffers"
        for name, tensor in (self.layer._buffers if buffers else self.layer._parameters).items():
            if tensor is not None and not (buffers and name in self.layer._non_persistent_buffers_set):
                yield f"{self.name}.{name}".lstrip("."), f"{self.path}.{name}".lstrip("."), tensor

    def of(self, stacked: Tensor) -> Tensor:
        """The plain layer's share of a stacked tensor, as a view."""
        return stacked.unflatten(0, (self.slices, -1))[self.number] if stacked.dim() else stacked


class Kernels(Protocol):
    """A backend's kernels as a batch of edges calls them."""

    side_by_side: bool
    """True if `run` takes all states of a batch as one tensor (N, S · C, H, W)."""

    def computes(self, x: Tensor, stages: Sequence[ir.FusedStage]) -> bool:
        """True if the kernels compute these stages for x's device and type."""

    def run(
        self, states: Sequence[Tensor], gamma: Tensor, operations: ir.FusedOps, onto: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """The T nodes (N, C, H', W'), each the sum of the operations times gamma (number of operations, E) and of its
        tensor in `onto`."""


def chain_of(operation: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers of an operation and their names in it, if it is a chain of known layers; otherwise None."""
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


def stackable(operations: Sequence[nn.Module]) -> bool:
    """Whether one stacked layer can stand for that of every operation: these are chains of known layers, alike on all
    edges, frozen ones included, and nobody has hooked or parametrized them."""
    chains = [chain_of(operation) for operation in operations]
    kinds = [[(name, type(layer), layer.extra_repr()) for name, layer in chain or ()] for chain in chains]
    trained = [[p.requires_grad for p in operation.parameters()] for operation in operations]
    alike = all(kind == kinds[0] for kind in kinds) and all(one == trained[0] for one in trained)
    return None not in chains and alike and not any(map(is_changed, operations))


def stacked(layers: Sequence[nn.Module]) -> nn.Module:
    """A layer that does on (N, len(layers) · C, H, W) what each of `layers` does on its own C channels.

    It takes over weights and statistics, their device, type and memory format, and whether they are trained.
    """
    first, E = layers[0], len(layers)
    if not isinstance(first, HalvingConv | nn.Conv2d | nn.BatchNorm2d):
        return copy.copy(first)  # without tensors; a setting such as `inplace` is its own
    with torch.device("meta"):  # draws no random numbers: all tensors are replaced
        layer, names = _empty_stacked(first, E)
    with torch.no_grad():
        for name in names:
            parts = [_tensor(part, name) for part in layers]
            joined = torch.cat(parts)
            if _channels_last(parts[0]):
                joined = joined.to(memory_format=torch.channels_last)
            owner, _, last = name.rpartition(".")
            target = layer.get_submodule(owner)
            if last in target._parameters:
                target.register_parameter(last, nn.Parameter(joined, parts[0].requires_grad))
            else:
                target.register_buffer(last, joined)
    return layer.train(first.training)


def _empty_stacked(first: nn.Module, E: int) -> tuple[nn.Module, list[str]]:
    """The stacked layer of E layers like `first`, and the names of its tensors."""
    if isinstance(first, HalvingConv):
        halves = HalvingConv(E * first.C_in, E * first.C_out, groups=E)
        return halves, ["conv_1.weight", "conv_2.weight"]
    if isinstance(first, DepthwiseConv2d):
        geometry: Any = (first.kernel_size[0], first.stride[0], first.dilation[0])
        return DepthwiseConv2d(E * first.in_channels, *geometry), ["weight"]
    one: Any = first  # sizes of convolutions are typed as tuples of any length
    if isinstance(first, nn.Conv2d):
        conv = nn.Conv2d(
            E * one.in_channels, E * one.out_channels, one.kernel_size, one.stride, one.padding, one.dilation,
            E * one.groups, bias=False, padding_mode=one.padding_mode,
        )  # fmt: skip
        return conv, ["weight"]
    norm = nn.BatchNorm2d(E * one.num_features, one.eps, one.momentum, affine=False)
    norm.num_batches_tracked = copy.deepcopy(one.num_batches_tracked)
    return norm, ["running_mean", "running_var"]


def _tensor(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its name."""
    owner, _, last = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), last)
    return found


def _channels_last(weight: Tensor) -> bool:
    """Whether the weight has the strides of channels_last, also where its shape makes both formats contiguous."""
    if weight.dim() != 4:
        return False
    plain = torch.empty(weight.shape, device="meta")
    return plain.stride() != weight.stride() == plain.to(memory_format=torch.channels_last).stride()


class Stacked(nn.Module):
    """A chain of known layers, each of which computes that layer of all `operations`, side by side."""

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages: list[ir.FusedStage] | None = None  # None if the kernels cannot compute the chain
        chains = [chain_of(operation) or [] for operation in operations]
        self.paths = [path for path, _ in chains[0]]
        self.layers = nn.ModuleList(stacked([chain[i][1] for chain in chains]) for i in range(len(self.paths)))
        for layer in self.layers[1:]:  # the first one must not overwrite its input, which others read
            if isinstance(layer, POINTWISE):
                layer.inplace = True


class StackedChain(Stacked):
    """A candidate operation on all edges of a batch: (N, E · C, H, W) to the same, times gamma (E · C,).

    The batch computes the first ReLU, which its operations share. With `phases` the input is that of a plain
    convolution instead of a dilated one.
    """

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__(operations)
        self.shortcut = isinstance(operations[0], Residual) and operations[0].shortcut
        self.relu = isinstance(self.layers[0], nn.ReLU)
        first = self.layers[1 if self.relu else 0]
        self.dilated = isinstance(first, DepthwiseConv2d) and first.dilation == (2, 2)
        self.by_state = isinstance(first, HalvingConv)  # reads each state once, for all edges that leave it
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


class EdgeWeights:
    """The mixing weights of a batch of edges, shared by all cells of one type during a forward pass.

    weights: (E, number of operations without `none`), multiplied by `edges` already; edges: (E,) with edge
    normalisation, otherwise None; kept: (E, N), the factors of drop path, or None.
    """

    def __init__(self, weights: Tensor, edges: Tensor | None = None, kept: Tensor | None = None) -> None:
        self.weights, self.edges, self.kept = weights, edges, kept
        self.gammas: dict[tuple[int, ...], Tensor] = {}
        """Cache of `EdgeBatch.gamma`, by the numbers of the operations."""


class EdgeBatch(nn.Module):
    """The edges from S states to T nodes at one stride, E = S · T of them, those of the first state first.

    operations: for each edge, in that order, its candidate operations without `none`, at C channels. An operation that
    is not `stackable` keeps a module for each edge (the generic path).
    """

    def __init__(self, operations: Sequence[Sequence[nn.Module]], num_states: int, C: int, stride: int) -> None:
        super().__init__()
        self.S, self.T, self.C, self.stride = num_states, len(operations) // num_states, C, stride
        self.kernels: Kernels | None = None
        """A backend's kernels, which compute the operations they know; None for PyTorch alone."""
        self.ops = nn.ModuleList()
        for ops in zip(*operations, strict=True):  # ops: one operation, on every edge
            weightless = not any(True for _ in ops[0].parameters())
            if all(type(op) is nn.Identity and not is_changed(op) for op in ops):
                self.ops.append(nn.Identity())
            elif not stackable(ops):
                self.ops.append(nn.ModuleList(ops))
            elif weightless:
                self.ops.append(Shared(ops[:: self.T]))
            else:
                self.ops.append(StackedChain(ops))
        self._fused: dict[tuple[int, ...], ir.FusedOps] = {}  # cache of `fused`, by the numbers of the operations

    def forward(self, states: Sequence[Tensor], weights: EdgeWeights, onto: Sequence[Tensor] = ()) -> list[Tensor]:
        """The T nodes, each the sum over all states (N, C, H, W) and operations, added to its tensor in `onto`."""
        kept = weights.kept
        by_kernels = self._computed_by_kernels(states[0]) if kept is None else []  # these have one gamma for all images
        all_by_kernels = len(by_kernels) + sum(isinstance(op, nn.Identity) for op in self.ops) == len(self.ops)
        # kernels that read each state by itself spare the copy that puts them side by side
        apart = by_kernels and all_by_kernels and self.kernels is not None and not self.kernels.side_by_side
        x = states[0] if apart else join(states)  # (N, S · C, H, W)
        rest = [op for i, op in enumerate(self.ops) if isinstance(op, StackedChain) and i not in by_kernels]
        # one ReLU serves all operations that begin with it, and one repeated input all of one kind
        rectified = torch.relu(x) if any(op.relu for op in rest) else x
        inputs: dict[tuple[bool, bool], Tensor] = {}
        shared: list[Tensor] = []
        coefficients: list[Tensor] = []
        sums: dict[bool, Tensor] = {}  # whether in phases, to (N, E · C, …)
        # kernels add `onto` themselves
        given: list[list[Tensor]] = [[] for _ in range(self.T)] if by_kernels or not onto else [[n] for n in onto]
        halves = x.shape[-2] % 2 == 0 and x.shape[-1] % 2 == 0
        of_all = weights.weights
        # single columns where few are used: the gradient of unbind costs a launch for each unused column
        by_column = [of_all[:, i] for i in range(len(self.ops))] if by_kernels else of_all.unbind(dim=1)
        identity_weight = None if by_kernels else self._identity_weight(by_column)  # else it is part of their gamma
        chained = [i for i, op in enumerate(self.ops) if op in rest]
        scales = torch.stack([by_column[i] for i in chained]).repeat_interleave(self.C, dim=1) if rest else None
        gammas = {} if scales is None else dict(zip(chained, scales.unbind(), strict=True))
        for i, (op, weight) in enumerate(zip(self.ops, by_column, strict=True)):
            if i in by_kernels:
                continue
            if isinstance(op, StackedChain):
                phases = op.dilated and (halves or self.stride == 2)
                key = (op.relu, phases)
                state = rectified if op.relu else x
                if key not in inputs and not op.by_state:
                    inputs[key] = self._input(state, phases)
                y = op(state if op.by_state else inputs[key], gammas[i], phases)
                # in place: nothing needs a chain's output, for the backward pass of BatchNorm reads its input
                in_phases = phases and self.stride == 1
                sums[in_phases] = sums[in_phases].add_(y) if in_phases in sums else y
            elif isinstance(op, Shared):
                shared.append(op(x))
                coefficients.append(weight)
            elif not isinstance(op, nn.Identity):
                for e, edge_op in enumerate(cast(nn.ModuleList, op)):
                    y = weight[e] * edge_op(states[e // self.T])
                    given[e % self.T].append(y if kept is None else y * per_image(kept[e], y))
        if by_kernels:
            assert self.kernels is not None
            of_states = [x] if self.kernels.side_by_side else states
            fused = self.fused(by_kernels)
            for node, part in enumerate(self.kernels.run(of_states, self.gamma(weights, by_kernels), fused, onto)):
                given[node].append(part)
        if identity_weight is not None:
            shared.append(x)
            coefficients.append(identity_weight)
        if shared:
            of_edges = torch.stack(coefficients)
            for node, part in enumerate(mix(shared, of_edges, self.S, self.T, kept)):
                given[node].append(part)
        if sums:
            # phases are put together after the sum, once for all operations
            wholes = [join_phases(y) if in_phases else y for in_phases, y in sums.items()]
            whole = sum(wholes[1:], wholes[0])
            if kept is not None:
                whole = whole * kept.to(whole.dtype).t().repeat_interleave(self.C, dim=1)[:, :, None, None]
            for node, part in enumerate(sum_of_chunks(whole, self.S).split(self.C, dim=1)):
                given[node].append(part)
        return [sum(parts[1:], parts[0]) for parts in given]

    def gamma(self, weights: EdgeWeights, numbers: Sequence[int]) -> Tensor:
        """The scales by which kernels multiply operations, the identity's last: (number of operations, E)."""
        kind = tuple(numbers)
        if kind not in weights.gammas:
            by_column = weights.weights.unbind(dim=1)
            identity_weight = self._identity_weight(by_column)
            rows = [by_column[i] for i in numbers]
            weights.gammas[kind] = torch.stack(rows if identity_weight is None else [*rows, identity_weight])
        return weights.gammas[kind]

    def fused(self, numbers: Sequence[int]) -> ir.FusedOps:
        """Operations by their numbers in the kernels' form, followed by the identity if anything adds the states."""
        kind = tuple(numbers)
        if kind not in self._fused:
            each = [ir.FusedOp(self.stages(i)) for i in numbers]
            if any(self._adds_states(op) for op in self.ops):
                each.append(ir.FusedOp())
            self._fused[kind] = ir.FusedOps(self.S, self.T, each)
        return self._fused[kind]

    def known(self) -> list[int]:
        """The numbers of the operations that have a fused form: first the chains, then the pools."""
        known = [i for i, op in enumerate(self.ops) if isinstance(op, Stacked) and op.stages]
        return sorted(known, key=lambda i: isinstance(self.ops[i], Shared))

    def stages(self, number: int) -> Sequence[ir.FusedStage]:
        """The fused form of an operation in `known`."""
        return cast(Stacked, self.ops[number]).stages or []

    def all_known(self) -> list[int] | None:
        """`known` if that is all operations but identities; otherwise None."""
        known = self.known()
        return known if len(known) == sum(not isinstance(op, nn.Identity) for op in self.ops) else None

    def _computed_by_kernels(self, x: Tensor) -> list[int]:
        """The numbers of the operations that kernels compute for x, in the order of `known`."""
        kernels = self.kernels
        if kernels is None:
            return []
        return [i for i in self.known() if kernels.computes(x, self.stages(i))]

    @staticmethod
    def _adds_states(op: nn.Module) -> bool:
        return isinstance(op, nn.Identity) or (isinstance(op, StackedChain) and op.shortcut)

    def _identity_weight(self, by_column: Sequence[Tensor]) -> Tensor | None:
        """The sum (E,) of the weights of all operations that add the states themselves; None if none does."""
        found = [of_op for op, of_op in zip(self.ops, by_column, strict=True) if self._adds_states(op)]
        return sum(found[1:], found[0]) if found else None

    def _input(self, x: Tensor, phases: bool) -> Tensor:
        """x (N, S · C, H, W), for each edge: (N, E · C, H, W), or its phases (4N, E · C, H / 2, W / 2)."""
        if phases and self.stride == 2:
            x = x[..., ::2, ::2]
        elif phases:
            x = split_phases(x)
        return repeat(x, self.S, self.T)

    def slices(self, state: int, node: int, prefix: str, path: str) -> Iterator[Slice]:
        """The layers of one edge, in the order of the plain MixedOp. prefix: that one's name; path: this batch's."""
        e = state * self.T + node
        for i, op in enumerate(self.ops):
            if isinstance(op, Stacked):
                place = (e, self.S * self.T) if isinstance(op, StackedChain) else (state, self.S)
                for k, (name, layer) in enumerate(zip(op.paths, op.layers, strict=True)):
                    yield from _slices(f"{prefix}.ops.{i}.{name}", f"{path}.ops.{i}.layers.{k}", layer, *place)
            elif not isinstance(op, nn.Identity):
                yield from _slices(f"{prefix}.ops.{i}", f"{path}.ops.{i}.{e}", cast(nn.ModuleList, op)[e], 0, 1)

    def stacked_modules(self) -> Iterator[nn.Module]:
        """The modules that stand for several plain ones, or that kernels may skip; and the list of operations."""
        yield self.ops
        for op in self.ops:
            if isinstance(op, Stacked):
                yield from op.modules()


def _slices(name: str, path: str, layer: nn.Module, number: int = 0, slices: int = 1) -> Iterator[Slice]:
    for inner, module in layer.named_modules():
        more = f".{inner}" if inner else ""
        yield Slice(name + more, path + more, module, number, slices)


class BatchedCell(nn.Module):
    """A SupernetCell whose edges are computed in batches: those from both inputs together, then those from each node
    once it is complete.

    It adopts the plain cell: the input layers are the same modules, the weights of the edges are stacked. state_dict
    and load_state_dict keep the plain names (and old checkpoints' stacked names can be loaded); `parameters()` gives
    the stacked tensors, which optimizers step.
    """

    backend = "batched"
    spec: CellSpec
    operations: tuple[str, ...]
    num_nodes: int
    K: int
    reduction: bool
    input_0: nn.Module
    input_1: nn.Module
    batches: nn.ModuleList

    def __init__(self, cell: "SupernetCell | BatchedCell") -> None:
        super().__init__()
        self.spec, self.operations = cell.spec, cell.operations
        self.num_nodes, self.K, self.reduction = cell.num_nodes, cell.K, cell.reduction
        self.C_mixed = cell.spec.C // cell.K
        self.input_0, self.input_1 = cell.input_0, cell.input_1
        N = self.num_nodes
        sources = [tuple(range(NUM_INPUTS)), *((NUM_INPUTS + i,) for i in range(N - 1))]
        self.edge_lists = [[(s, n) for s in states for n in range(max(0, s - 1), N)] for states in sources]
        if isinstance(cell, BatchedCell):
            self.batches = cell.batches
        else:
            if cell.allowed is not None:
                raise UsageError("edges with lists of operations of their own cannot be stacked: leave them eager")
            edges = [[cast(MixedOp, cell.edges[num_edges(n) + s]) for s, n in each] for each in self.edge_lists]
            if any(type(edge) is not MixedOp or any(getattr(edge, name) for name in HOOKS) for edge in cell.edges):
                raise UsageError("edges that are hooked or replaced cannot be stacked: leave this supernet eager")
            self.batches = nn.ModuleList(
                EdgeBatch([list(edge.ops) for edge in each], len(states), self.C_mixed, each[0].stride)
                for states, each in zip(sources, edges, strict=True)
            )
        device = next(self.input_0.parameters()).device
        rows = [num_edges(node) + state for edges in self.edge_lists for state, node in edges]
        self.rows: Tensor
        self.register_buffer("rows", torch.tensor(rows, device=device), persistent=False)
        columns = [i for i, name in enumerate(cell.operations) if name != "none"]
        self.columns: Tensor  # of the mixing weights, without `none`
        self.register_buffer("columns", torch.tensor(columns, device=device), persistent=False)
        for batch in self.edge_batches():
            batch.kernels = self.make_kernels()
        inside = [module for batch in self.edge_batches() for module in batch.stacked_modules()]
        self._watch = Watch(self.batches, inside)
        self.training = cell.training  # and not `train`: layers keep their own modes

    def make_kernels(self) -> Kernels | None:
        """The kernels that the batches of edges use; None for PyTorch alone."""
        return None

    def edge_batches(self) -> list[EdgeBatch]:
        return [cast(EdgeBatch, batch) for batch in self.batches]

    def forward(self, s0: State, s1: State, weights: CellWeights, recompute: bool = False) -> State:
        self.refuse_changes()
        x0, x1 = s0.rectified(), s1.rectified()
        if weights.chosen is not None:
            return State(maybe_recomputed(self, self._sampled_output, x0, x1, weights, recompute=recompute))
        each = weights.once("batches of edges", self.edge_weights)
        return State(maybe_recomputed(self, self._output, x0, x1, each, recompute=recompute))

    def refuse_changes(self) -> None:
        """UsageError if a stacked module was hooked or replaced, which not all ways to compute it would notice."""
        if not self._watch.unchanged():
            raise UsageError(
                "a hook or a new module inside stacked edges would be ignored in part: "
                'call darts_sg.backends.accelerate(network, "eager") first, and change its plain modules'
            )

    def _output(self, x0: Tensor, x1: Tensor, weights: Sequence[EdgeWeights]) -> Tensor:
        return join(self.nodes([self.input_0(x0), self.input_1(x1)], weights))

    def _sampled_output(self, x0: Tensor, x1: Tensor, weights: CellWeights) -> Tensor:
        return join(self.sampled_nodes([self.input_0(x0), self.input_1(x1)], weights))

    def sampled_nodes(self, states: Sequence[Tensor], weights: CellWeights) -> list[Tensor]:
        """All nodes with the chosen operation of each edge alone."""
        assert weights.chosen is not None
        edges = sampled_edges(self)
        edges.bind(weights.chosen)
        return edges.plain.nodes(states, weights)

    def nodes(self, states: list[Tensor], weights: Sequence[EdgeWeights]) -> list[Tensor]:
        """All nodes, from the outputs of the two input layers, (N, C, H, W) each."""
        given: list[Tensor] = []  # the sums of incomplete nodes so far, from the mixed channels
        passed: list[Tensor] = []  # and from the channels that partial channels hand on
        nodes: list[Tensor] = []
        for batch, of_batch in zip(self.edge_batches(), weights, strict=True):
            mixed, others = states, []
            if self.K > 1:
                split = [state.split((self.C_mixed, state.shape[1] - self.C_mixed), dim=1) for state in states]
                mixed, others = [part[0] for part in split], [part[1] for part in split]
                if batch.stride == 2:
                    others = [F.max_pool2d(part, 2, 2, ceil_mode=True) for part in others]
                ones = of_batch.weights.new_ones(batch.S * batch.T)
                coefficients = ones if of_batch.edges is None else of_batch.edges
                parts = mix([join(others)], coefficients[None], batch.S, batch.T, of_batch.kept)
                passed = [node + part for node, part in zip(passed, parts, strict=True)] if passed else parts
            # all edges into the first incomplete node are computed now
            complete, *given = batch(mixed, of_batch, given)
            if self.K > 1:
                handed_on, *passed = passed
                complete = F.channel_shuffle(join([complete, handed_on]), self.K)
            nodes.append(complete)
            states = [complete]
        return nodes

    def edge_weights(self, weights: CellWeights) -> list[EdgeWeights]:
        """The mixing weights of each batch of edges."""
        of_operations, of_edges = weights.operations, weights.edges
        if of_edges is not None:
            of_operations = of_operations * of_edges[:, None]
        sizes = [len(edges) for edges in self.edge_lists]
        each = of_operations[self.rows[:, None], self.columns].split(sizes)
        edges = [None] * len(each) if of_edges is None else of_edges[self.rows].split(sizes)
        kept = [None] * len(each) if weights.kept is None else weights.kept[self.rows].split(sizes)
        return [EdgeWeights(*of_batch) for of_batch in zip(each, edges, kept, strict=True)]

    def slices(self) -> Iterator[Slice]:
        """The layers of the plain cell, in its order, and where they lie here."""
        for name in ("input_0", "input_1"):
            yield from _slices(name, name, self.get_submodule(name))
        for node in range(self.num_nodes):
            for state in range(NUM_INPUTS + node):
                number = max(0, state - 1)
                batch = self.edge_batches()[number]
                first = self.num_nodes - batch.T
                index = state if state < NUM_INPUTS else 0
                prefix = f"edges.{num_edges(node) + state}"
                yield from batch.slices(index, node - first, prefix, f"batches.{number}")

    def plain(self) -> SupernetCell:
        """A plain cell with the same input layers, and with copies of the stacked weights on its edges."""
        with torch.device("meta"):  # without drawing random numbers: all weights are replaced
            cell = SupernetCell(self.spec, self.operations, self.num_nodes, self.K)
        own = {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
        trained = {name: tensor.requires_grad for one in self.slices() for name, _, tensor in one.tensors("parameters")}
        for layer in cell.modules():
            if isinstance(layer, nn.BatchNorm2d) and self._without_counters():
                layer.num_batches_tracked = None
        cell.input_0, cell.input_1 = self.input_0, self.input_1
        edges = {name: tensor for name, tensor in own.items() if name.startswith("edges.")}
        cell.load_state_dict(edges, strict=False, assign=True)
        cell.edges.train(self.training)
        # operations that are not stacked go back as they are, for they may be hooked or replaced
        for batch, each in zip(self.edge_batches(), self.edge_lists, strict=True):
            for i, op in enumerate(batch.ops):
                if isinstance(op, nn.ModuleList):
                    for module, (s, n) in zip(op, each, strict=True):
                        cast(MixedOp, cell.edges[num_edges(n) + s]).ops[i] = module
        for name, parameter in cell.named_parameters():
            parameter.requires_grad_(trained[name])
        cell.training = self.training
        return cell

    def _without_counters(self) -> bool:
        norms = [layer for layer in self.batches.modules() if isinstance(layer, nn.BatchNorm2d)]
        return all(norm.num_batches_tracked is None for norm in norms)

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """As of the plain cell: the tensors of edges are views into the stacked ones, by their plain names."""
        prefix, keep = options.get("prefix", ""), options.get("keep_vars", False)
        destination = options.get("destination")
        found: dict[str, Any] = {} if destination is None else destination
        for one in self.slices():
            for kind in ("parameters", "buffers"):
                for name, _, tensor in one.tensors(kind):
                    found[prefix + name] = one.of(tensor if keep else tensor.detach())
        return found

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        """Stack what has plain names. Stacked names, of checkpoints written before there were plain cells, stay."""
        *_, missing, _, errors = others
        self._stack(state, prefix, missing, errors)
        super()._load_from_state_dict(state, prefix, *others)

    def _stack(self, state: dict[str, Any], prefix: str, missing: list[str], errors: list[str]) -> None:
        filled: dict[str, Tensor] = {}
        for one in self.slices():
            if not one.path.startswith("batches."):
                continue
            for kind in ("parameters", "buffers"):
                for plain, path, tensor in one.tensors(kind):
                    if prefix + path in state and prefix + path not in filled:
                        continue  # an old checkpoint
                    if prefix + path not in filled:
                        filled[prefix + path] = tensor.detach().clone()
                    target = one.of(filled[prefix + path])
                    source = state.pop(prefix + plain, None)
                    if source is None:
                        missing.append(prefix + plain)
                    elif source.shape != target.shape:
                        errors.append(
                            f"size mismatch for {prefix + plain}: {tuple(source.shape)} in the checkpoint, "
                            f"{tuple(target.shape)} here"
                        )
                    else:
                        target.copy_(source)
        state.update(filled)


def edge_batches(network: nn.Module) -> list[EdgeBatch]:
    """The batches of edges of all cells, where nearly all of the work is."""
    return [module for module in network.modules() if isinstance(module, EdgeBatch)]


def plain_tensors(
    network: Supernet, kind: str = "parameters", of: Callable[[Tensor], Tensor | None] = lambda tensor: tensor
) -> dict[str, Tensor]:
    """Weights (kind `parameters`) or statistics (`buffers`) by their names in the plain supernet, in its order.

    With batched cells they are views; writing into them writes the weights. Alphas are left out. `of` maps a stored
    tensor to another of its shape that is sliced in its stead, such as its gradient.
    """
    values = ((name, one, of(tensor)) for name, one, tensor in plain_slices(network, kind))
    return {name: one.of(value) for name, one, value in values if value is not None}


def plain_slices(network: Supernet, kind: str = "parameters") -> Iterator[tuple[str, Slice, Tensor]]:
    """(plain name, slice, stored tensor) of all weights (kind `parameters`) or statistics (`buffers`), without alphas,
    in the order of the plain supernet."""
    alphas = {id(alpha) for alpha in network.alphas()}
    children: list[tuple[str, nn.Module]] = [("stem", network.stem)]
    children += [(f"cells.{i}", cell) for i, cell in enumerate(network.cells)]
    for name, module in [*children, ("head", network.head)]:
        slices = module.slices() if isinstance(module, BatchedCell) else _slices("", "", module)
        for one in slices:
            for plain, _, tensor in one.tensors(kind):
                if id(tensor) not in alphas:
                    yield f"{name}.{plain}", one, tensor


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


def mix(tensors: Sequence[Tensor], coefficients: Tensor, S: int, T: int, kept: Tensor | None = None) -> list[Tensor]:
    """For each of T nodes, the sum over tensors and states of coefficient times tensor.

    tensors: K of (N, S · C, H, W); coefficients: (K, S · T); kept: factors (S · T, N) of edges, or None. Returns T of
    (N, C, H, W).
    """
    parts = torch.stack([part.permute(0, 2, 3, 1) for t in tensors for part in t.chunk(S, dim=1)])  # (K·S, N, H, W, C)
    if kept is None:
        matrix = coefficients.reshape(-1, T).t()  # (T, K · S)
        mixed = (matrix @ parts.flatten(1)).view(T, *parts.shape[1:])
    else:
        of_images = coefficients[:, :, None] * kept.to(coefficients)  # (K, S · T, N)
        matrices = of_images.reshape(-1, T, kept.shape[1]).permute(2, 1, 0)  # (N, T, K · S)
        mixed = matrices @ parts.transpose(0, 1).flatten(2)  # (N, T, H · W · C)
        mixed = mixed.transpose(0, 1).reshape(T, *parts.shape[1:])
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
