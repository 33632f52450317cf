"""The supernet: every edge of every cell is a weighted sum of all candidate operations (DARTS paper, section 2).

The mixing weights are an argument of `forward`, not a property of the network: how alphas become mixing weights
is the choice of a relaxation (darts_sg.methods.relaxations).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from darts_sg.backends import ir
from darts_sg.backends.batched import EdgeBatch, EdgeWeights, Part, mix
from darts_sg.derive import num_edges
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS
from darts_sg.networks.derived import NetworkShape
from darts_sg.networks.skeleton import (
    CellGraphs,
    CellSpec,
    CifarStem,
    Head,
    ImageNetStem,
    Parts,
    between_cells,
    cell_specs,
    input_layers,
    join,
)
from darts_sg.ops import OPERATIONS

ALPHA_INIT_DEVIATION = 1e-3  # alphas start at 1e-3 · N(0, 1)


def normal_alphas(num_edges: int, num_operations: int) -> Tensor:
    """Alphas to start from: 1e-3 · N(0, 1), (num_edges, num_operations)."""
    return ALPHA_INIT_DEVIATION * torch.randn(num_edges, num_operations)


class Mixing(NamedTuple):
    """Mixing weights: (num_edges, num_operations) for either cell type, and with edge normalisation (num_edges,)."""

    normal: Tensor
    reduce: Tensor
    edge_normal: Tensor | None = None
    edge_reduce: Tensor | None = None


def candidate(name: str, C: int, stride: int) -> nn.Module:
    """A candidate operation of a supernet: no BatchNorm has affine parameters, and a pool is followed by one, so
    that all operations give outputs of one scale."""
    op = OPERATIONS[name].build(C, stride, False)
    return nn.Sequential(op, nn.BatchNorm2d(C, affine=False)) if OPERATIONS[name].family == "pool" else op


class SupernetCell(nn.Module):
    """A cell whose node i is the weighted sum of all operations on all 2 + i states before it; nodes are concatenated.

    The edges are computed in batches: those from both inputs together, then those from each node once it is complete.
    With K = partial_channels > 1 only the first C / K channels of a state pass through the operations, the others
    are handed on (2×2 max pool with stride 2), and the channels are shuffled in K groups (PC-DARTS, section 3.2).
    """

    def __init__(self, spec: CellSpec, operations: Sequence[str], num_nodes: int, partial_channels: int) -> None:
        super().__init__()
        self.reduction = spec.reduction
        self.weights_shape = num_edges(num_nodes), len(operations)  # of its mixing weights
        self.num_nodes = num_nodes
        self.K = partial_channels
        self.C_mixed = spec.C // partial_channels
        self.input_0, self.input_1 = input_layers(spec, affine=False)
        self.native = False  # whether the kernels of darts_sg.backends compute it, if they can
        columns = [i for i, name in enumerate(operations) if name != "none"]
        built = {
            (state, node): [candidate(operations[i], self.C_mixed, self.stride(state)) for i in columns]
            for node in range(num_nodes)
            for state in range(NUM_INPUTS + node)
        }
        sources = [tuple(range(NUM_INPUTS)), *((NUM_INPUTS + i,) for i in range(num_nodes - 1))]
        self.edge_lists = [[(s, n) for s in states for n in range(max(0, s - 1), num_nodes)] for states in sources]
        self.batches = nn.ModuleList(
            EdgeBatch([built[edge] for edge in edges], len(states), self.C_mixed, self.stride(states[0]))
            for states, edges in zip(sources, self.edge_lists, strict=True)
        )
        rows = [num_edges(node) + state for edges in self.edge_lists for state, node in edges]
        self.rows: Tensor
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.columns: Tensor  # of the mixing weights, those that operations have
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.all_native = [batch.all_native() for batch in self._batches()]
        outputs = range(NUM_INPUTS, NUM_INPUTS + num_nodes)
        self.graphs = CellGraphs((self.input_0, self.input_1), self._steps(), outputs)

    def _steps(self) -> list[ir.Step] | None:
        """See CellGraphs."""
        if self.K > 1:
            return None
        steps: list[ir.Step] = []
        nodes = range(NUM_INPUTS, NUM_INPUTS + self.num_nodes)
        for i, (batch, known) in enumerate(zip(self._batches(), self.all_native, strict=True)):
            if known is None:
                return None
            states = range(NUM_INPUTS) if i == 0 else [nodes[i - 1]]
            steps.append(ir.Step(batch.native_operations(known), states, nodes[i:]))
        return steps

    def _batches(self) -> list[EdgeBatch]:
        return [cast(EdgeBatch, batch) for batch in self.batches]

    def stride(self, state: int) -> int:
        """Stride of the edges that leave a state."""
        return 2 if self.reduction and state < NUM_INPUTS else 1

    def forward(self, s0: Tensor, s1: Tensor, weights: Sequence[EdgeWeights]) -> Tensor:
        """s0 (N, C_pp, …), s1 (N, C_p, H, W) to (N, num_nodes · C, H, W), halved by a reduction cell."""
        if self.in_one(s0):
            return join(self.in_parts([s0], [s1], weights)[0])
        given: list[Tensor] = []  # to the nodes that are not complete, so far
        passed: list[Tensor] = []  # the channels that are handed on to them
        states = self.graphs.inputs(s0, s1) if self.takes(s0) else [self.input_0(s0), self.input_1(s1)]
        nodes: list[Tensor] = []
        for batch, of_batch in zip(self._batches(), weights, strict=True):
            mixed, others = states, []
            if self.K > 1:
                split = [state.split((self.C_mixed, state.shape[1] - self.C_mixed), dim=1) for state in states]
                mixed, others = [part[0] for part in split], [part[1] for part in split]
                if batch.stride == 2:
                    others = [F.max_pool2d(part, 2, 2, ceil_mode=True) for part in others]
                ones = of_batch.weights.new_ones(batch.S * batch.T)
                coefficients = ones if of_batch.edges is None else of_batch.edges
                parts = mix([join(others)], coefficients[None], batch.S, batch.T)
                passed = [node + part for node, part in zip(passed, parts, strict=True)] if passed else parts
            complete, *given = batch(mixed, of_batch, given)
            if self.K > 1:
                handed_on, *passed = passed
                complete = F.channel_shuffle(join([complete, handed_on]), self.K)
            nodes.append(complete)
            states = [complete]
        return join(nodes)

    def in_parts(self, s0: Parts, s1: Parts, weights: Sequence[EdgeWeights]) -> tuple[Parts, Parts]:
        """What `forward` gives, in parts, and s1, to be used instead of s1 from now on."""
        if not self.in_one(s0[0]):
            return [self(join(s0), join(s1), weights)], s1
        batches = zip(self._batches(), weights, self.all_native, strict=True)
        return self.graphs.run(s0, s1, [batch.gamma(of_batch, known or ()) for batch, of_batch, known in batches])

    def edge_weights(self, weights: Tensor, edge_weights: Tensor | None) -> list[EdgeWeights]:
        """Those of each batch of edges, from weights (num_edges, num_operations) and edge weights (num_edges,)."""
        if edge_weights is not None:
            weights = weights * edge_weights[:, None]
        sizes = [len(edges) for edges in self.edge_lists]
        each = weights[self.rows[:, None], self.columns].split(sizes)
        edges = [None] * len(each) if edge_weights is None else edge_weights[self.rows].split(sizes)
        return [EdgeWeights(*both) for both in zip(each, edges, strict=True)]

    def takes(self, state: Tensor) -> bool:
        """Whether it is given a state as it is before the ReLU between cells."""
        return self.native and ir.takes(state)

    def in_one(self, state: Tensor) -> bool:
        """Whether it is computed in one call of the kernels."""
        return self.takes(state) and self.graphs.known

    def parts(self, prefix: str) -> Iterator[Part]:
        """The layers of the cell of the papers, edge by edge, in its order."""
        for title in ("input_0", "input_1"):
            for name, module in self.get_submodule(title).named_modules():
                yield Part(".".join(filter(None, (f"{prefix}.{title}", name))), module, 0, 1)
        for node in range(self.num_nodes):
            for state in range(NUM_INPUTS + node):
                batch = self._batches()[max(0, state - 1)]
                first = self.num_nodes - batch.T
                index = state if state < NUM_INPUTS else 0
                yield from batch.parts(index, node - first, f"{prefix}.edges.{num_edges(node) + state}")


def recomputed(cell: SupernetCell, *inputs: Parts | Sequence[EdgeWeights]) -> tuple[Parts, Parts]:
    """`in_parts` of a cell, which is computed a second time in the backward pass instead of being kept."""
    found: tuple[Parts, Parts] = checkpoint(
        cell.in_parts,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in a cell is random
        context_fn=lambda: (nullcontext(), StatisticsKept(cell)),
    )
    return found


class StatisticsKept:
    """Within this context a forward pass leaves the running statistics alone: it sees its batch a second time.

    It is entered once for each backward pass through the graph.
    """

    def __init__(self, module: nn.Module) -> None:
        self._norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]

    def __enter__(self) -> None:
        self._momenta = [norm.momentum for norm in self._norms]
        for norm in self._norms:
            norm.momentum = 0.0

    def __exit__(self, *raised: object) -> None:
        for norm, momentum in zip(self._norms, self._momenta, strict=True):
            norm.momentum = momentum


class Supernet(nn.Module):
    """Stem - cells - global pool - linear, with one set of alphas for the normal and one for the reduction cells.

    `forward(x, mixing)` maps images (N, in_channels, H, W) to logits (N, num_classes).
    Raises UsageError if C cannot be split into `partial_channels` parts, or there are fewer than 3 cells.
    """

    def __init__(
        self,
        operations: Sequence[str],
        *,
        network: NetworkShape = "cifar",
        channels: int = 16,
        cells: int = 8,
        num_classes: int = 10,
        num_nodes: int = 4,
        stem_multiplier: int = 3,
        in_channels: int = 3,
        partial_channels: int = 1,
        edge_normalization: bool = False,
        initial_alphas: Callable[[int, int], Tensor] = normal_alphas,
    ) -> None:
        super().__init__()
        if channels % partial_channels or channels // partial_channels < 2:
            raise UsageError(
                f"{channels} channels cannot be split into {partial_channels} parts of at least 2 channels; "
                f"choose a multiple of {partial_channels}, from {2 * partial_channels} up"
            )
        self.operations = tuple(operations)
        self.num_nodes = num_nodes
        self.recompute = False
        """Keep only the outputs of the cells for the backward pass and compute what is in them again: less memory,
        more time, the same bits."""
        large = network == "imagenet"
        C_stem = channels if large else stem_multiplier * channels
        self.stem = (ImageNetStem if large else CifarStem)(in_channels, C_stem)
        self.specs = cell_specs(channels, cells, C_stem, lambda reduction: num_nodes, reduction_before=large)
        self.cells = nn.ModuleList(SupernetCell(spec, operations, num_nodes, partial_channels) for spec in self.specs)
        self.head = Head(num_nodes * self.specs[-1].C, num_classes)

        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.num_batches_tracked = None  # with a momentum nobody reads it, and counting is a launch each

        E, num_ops = num_edges(num_nodes), len(operations)
        self.alpha_normal = nn.Parameter(initial_alphas(E, num_ops))
        self.alpha_reduce = nn.Parameter(initial_alphas(E, num_ops))
        self.beta_normal: nn.Parameter | None = None
        self.beta_reduce: nn.Parameter | None = None
        if edge_normalization:
            self.beta_normal = nn.Parameter(ALPHA_INIT_DEVIATION * torch.randn(E))
            self.beta_reduce = nn.Parameter(ALPHA_INIT_DEVIATION * torch.randn(E))

    def use_native(self, on: bool) -> None:
        """Whether the native kernels compute what they can of the operations, on the device that it is on.

        On a CPU they must be there (darts_sg.backends.kernels) by the first forward pass.
        """
        for module in self.modules():
            if isinstance(module, EdgeBatch | SupernetCell):
                module.native = on
        if on and self.alpha_normal.is_cuda:
            from darts_sg.backends.triton import run as gpu

            gpu.lay_out(self)

    def edge_batches(self) -> list[EdgeBatch]:
        """The batches of edges of all cells: where nearly all of the work is."""
        return [module for module in self.modules() if isinstance(module, EdgeBatch)]

    def alphas(self) -> list[nn.Parameter]:
        """The architecture parameters: alphas, then the edge weights' parameters if there are any."""
        candidates = [self.alpha_normal, self.alpha_reduce, self.beta_normal, self.beta_reduce]
        return [p for p in candidates if p is not None]

    def weights(self) -> list[nn.Parameter]:
        """All parameters that are not architecture parameters."""
        own = {id(p) for p in self.alphas()}
        return [p for p in self.parameters() if id(p) not in own]

    def forward(self, x: Tensor, mixing: Mixing) -> Tensor:
        s0: Parts
        s1: Parts
        s0, s1 = ([state] for state in self.stem(x))
        given = {False: (mixing.normal, mixing.edge_normal), True: (mixing.reduce, mixing.edge_reduce)}
        of_kind: dict[bool, list[EdgeWeights]] = {}  # of cell: whether it is a reduction
        for cell in cast(Sequence[SupernetCell], self.cells):
            if cell.reduction not in of_kind:
                of_kind[cell.reduction] = cell.edge_weights(*given[cell.reduction])
            weights = of_kind[cell.reduction]
            last = cell is self.cells[-1]  # with it the backward pass begins: nothing is gained by forgetting it
            if self.recompute and not last and torch.is_grad_enabled():
                output, s1 = recomputed(cell, s0, s1, weights)
            else:
                output, s1 = cell.in_parts(s0, s1, weights)
            if not last and not cell.takes(output[0]):
                output = [between_cells(state) for state in output]
            s0, s1 = s1, output
        return self.head(join(s1))

    def edge_form(
        self, kind: str = "parameters", of: Callable[[Tensor], Tensor | None] = lambda t: t
    ) -> dict[str, Tensor]:
        """Weights (kind `parameters`) or statistics (`buffers`) as views, by their names in the supernet of the papers.

        That one has a module for each operation on each edge: `cells.0.edges.3.ops.4.1.weight`. Writing into the views
        carries its weights over here. `of` maps a stacked tensor to what is sliced in its stead, such as its gradient.
        """
        views: dict[str, Tensor] = {}
        for part in self._parts():
            own = part.layer._parameters if kind == "parameters" else part.layer._buffers
            for name, tensor in own.items():
                found = None if tensor is None else of(tensor)
                if found is not None:
                    sliced = found.unflatten(0, (part.slices, -1))[part.number] if found.dim() else found
                    views[f"{part.name}.{name}"] = sliced
        return views

    def _parts(self) -> Iterator[Part]:
        for name, module in self.stem.named_modules():
            yield Part(f"stem.{name}", module, 0, 1)
        for i, cell in enumerate(self.cells):
            yield from cast(SupernetCell, cell).parts(f"cells.{i}")
        for name, module in self.head.named_modules():
            yield Part(f"head.{name}", module, 0, 1)
