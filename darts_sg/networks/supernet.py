"""The supernet: every edge of every cell is a weighted sum of all candidate operations (DARTS paper, section 2).

The mixing weights are an argument of `forward`, not a property of the network: a relaxation turns alphas into mixing
weights (darts_sg.methods.relaxations). This module is the plain form; darts_sg.backends replaces its cells by faster
ones that compute the same function.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from darts_sg.derive import num_edges
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS
from darts_sg.networks.skeleton import (
    STEM_MULTIPLIER,
    CellSpec,
    CifarStem,
    Head,
    ImageNetStem,
    NetworkShape,
    State,
    cell_specs,
    edge_stride,
    input_layers,
    join,
    stem_channels,
)
from darts_sg.ops import OPERATIONS

ALPHA_INIT_DEVIATION = 1e-3  # alphas start at 1e-3 · N(0, 1)
AUXILIARY_SKIP = "skip_connect"
"""The operation behind the last column of the cells' mixing weights in a supernet with an auxiliary skip."""
T = TypeVar("T")


def normal_alphas(num_edges: int, num_operations: int) -> Tensor:
    """Alphas to start from: 1e-3 · N(0, 1), (num_edges, num_operations)."""
    return ALPHA_INIT_DEVIATION * torch.randn(num_edges, num_operations)


class Mixing(NamedTuple):
    """Mixing weights: (num_edges, num_operations) for either cell type, and with edge normalisation (num_edges,).

    With another dimension in front, (num_cells of the type, num_edges, num_operations), each cell has its own.
    """

    normal: Tensor
    reduce: Tensor
    edge_normal: Tensor | None = None
    edge_reduce: Tensor | None = None


class Chosen(NamedTuple):
    """One operation for each edge of either cell type, by its number; a forward pass computes no other ones."""

    normal: Sequence[int]
    reduce: Sequence[int]


def chosen_by(mixing: Mixing) -> Chosen:
    """The operations that one-hot mixing weights choose. Waits for the device."""
    normal, reduce = torch.stack([mixing.normal.detach(), mixing.reduce.detach()]).argmax(dim=-1).tolist()
    return Chosen(normal, reduce)


class CellWeights:
    """The mixing weights of all cells of one type, or of a single cell, during one forward pass.

    operations: (num_edges, num_operations); edges: (num_edges,) with edge normalisation (PC-DARTS, section 3.3).
    chosen: the number of the only operation to be computed on each edge, whose mixing weight multiplies it; None for
    all operations. kept: (num_edges, N), the factors of drop path, or None.
    """

    def __init__(
        self,
        operations: Tensor,
        edges: Tensor | None = None,
        chosen: Sequence[int] | None = None,
        kept: Tensor | None = None,
    ) -> None:
        self.operations, self.edges, self.chosen, self.kept = operations, edges, chosen, kept
        self._derived: dict[object, Any] = {}

    def once(self, key: object, make: Callable[["CellWeights"], T]) -> T:
        """make(self), computed by the first cell that asks and shared by all cells of the type."""
        if key not in self._derived:
            self._derived[key] = make(self)
        found: T = self._derived[key]
        return found


class EdgeChoices:
    """Which operations each edge of a cell type has, where edges have lists of their own.

    A relaxation sees tables of edges with as many operations each; `apply` takes them out of the alphas and puts its
    mixing weights back, 0 for an operation that an edge does not have.
    """

    def __init__(self, allowed: Tensor) -> None:
        """allowed: bool (num_edges, num_operations), on the CPU."""
        self.allowed = allowed
        self._groups: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}  # cache, by device

    def of_edge(self, edge: int) -> list[bool]:
        found: list[bool] = self.allowed[edge].tolist()
        return found

    def groups(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """For each number of operations k that edges have: their rows (E_k, 1) and columns (E_k, k)."""
        if device not in self._groups:
            found = []
            counts = self.allowed.sum(dim=1)
            for k in counts.unique().tolist():
                rows = (counts == k).nonzero()
                columns = self.allowed[rows[:, 0]].nonzero()[:, 1].view(-1, k)
                found.append((rows.to(device), columns.to(device)))
            self._groups[device] = found
        return self._groups[device]

    def compact(self, table: Tensor) -> list[Tensor]:
        """(num_edges, num_operations) to one (E_k, k) for each group."""
        return [table[rows, columns] for rows, columns in self.groups(table.device)]

    def whole(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `compact`, with 0 for an operation that an edge does not have."""
        table = parts[0].new_zeros(self.allowed.shape)
        for (rows, columns), part in zip(self.groups(table.device), parts, strict=True):
            table = table.index_put((rows, columns), part)
        return table

    def restrict(self, weights: Tensor) -> Tensor:
        """Mixing weights without those of operations that an edge does not have, summing to 1 on each edge."""
        kept = weights * self.allowed.to(weights.device)
        return kept / kept.sum(dim=1, keepdim=True)

    def masked(self, alphas: Tensor) -> Tensor:
        """Alphas with minus infinity for an operation that an edge does not have."""
        return torch.where(self.allowed.to(alphas.device), alphas, -torch.inf)


class Choices(NamedTuple):
    """The lists of the edges of the normal and of the reduction cells."""

    normal: EdgeChoices
    reduce: EdgeChoices


def candidate(name: str, C: int, stride: int) -> nn.Module:
    """A candidate operation of a supernet: no BatchNorm has affine parameters, and a pool is followed by one, so
    that all operations give outputs of one scale (DARTS paper, appendix A.1.1)."""
    op = OPERATIONS[name].build(C, stride, False)
    return nn.Sequential(op, nn.BatchNorm2d(C, affine=False)) if OPERATIONS[name].needs_norm else op


class MixedOp(nn.Module):
    """An edge: the sum of all candidate operations, each times its mixing weight (DARTS paper, equation 2).

    With K = partial_channels > 1 only the first C / K channels pass through the operations. The others are handed on
    (2×2 max pool with stride 2), and the channels are shuffled in K groups (PC-DARTS, section 3.2).
    (N, C, H, W) to (N, C, H / stride, W / stride). `none` has no module: it adds nothing.
    """

    def __init__(
        self,
        operations: Sequence[str],
        C: int,
        stride: int,
        partial_channels: int,
        allowed: Sequence[bool] | None = None,
    ) -> None:
        """allowed: which of the operations this edge has, None for all; every edge has an auxiliary skip."""
        super().__init__()
        self.stride, self.K, self.C_mixed = stride, partial_channels, C // partial_channels
        self.columns = [  # of the mixing weights
            i
            for i, name in enumerate(operations)
            if name != "none" and (allowed is None or i >= len(allowed) or allowed[i])
        ]
        self.ops = nn.ModuleList(candidate(operations[i], self.C_mixed, stride) for i in self.columns)

    def forward(self, x: Tensor, weights: Tensor, chosen: int | None = None) -> Tensor:
        """weights: (num_operations,). chosen: the number of the only operation to compute; None for all."""
        mixed, handed_on = x.split((self.C_mixed, x.shape[1] - self.C_mixed), dim=1) if self.K > 1 else (x, x)
        wanted = self.columns if chosen is None else [chosen]
        terms = [weights[i] * op(mixed) for i, op in zip(self.columns, self.ops, strict=True) if i in wanted]
        # a chosen `none` is no term: zeros that depend on its weight, whose gradient then is 0 and not missing
        y = sum(terms[1:], terms[0]) if terms else weights[wanted[0]] * nothing(mixed, self.stride)
        if self.K == 1:
            return y
        if self.stride == 2:
            handed_on = F.max_pool2d(handed_on, 2, 2, ceil_mode=True)
        return F.channel_shuffle(torch.cat([y, handed_on], dim=1), self.K)


def nothing(x: Tensor, stride: int) -> Tensor:
    """The output of `none`: zeros of the size that an operation of this stride gives for x (N, C, H, W)."""
    N, C, H, W = x.shape
    return x.new_zeros(N, C, -(-H // stride), -(-W // stride))


class SupernetCell(nn.Module):
    """A cell whose node i is the sum of a MixedOp on each of the 2 + i states before it; its nodes are joined.

    States s0 (N, C_pp, …) and s1 (N, C_p, H, W) to (N, num_nodes · C, H, W), halved by a reduction cell. `edges` are
    ordered by node, then by state, as are the rows of the mixing weights.
    """

    def __init__(
        self,
        spec: CellSpec,
        operations: Sequence[str],
        num_nodes: int,
        partial_channels: int,
        allowed: "EdgeChoices | None" = None,
    ) -> None:
        """allowed: which of the operations each edge has; None if every edge has all."""
        super().__init__()
        self.spec, self.operations, self.allowed = spec, tuple(operations), allowed
        self.num_nodes, self.K = num_nodes, partial_channels
        self.reduction = spec.reduction
        self.input_0, self.input_1 = input_layers(spec, affine=False)
        self.edges = nn.ModuleList(
            MixedOp(
                operations,
                spec.C,
                edge_stride(spec.reduction, state),
                partial_channels,
                None if allowed is None else allowed.of_edge(num_edges(node) + state),
            )
            for node in range(num_nodes)
            for state in range(NUM_INPUTS + node)
        )
        # earlier versions drew the weights of the edges twice: as many numbers, so that a seed gives the same network
        torch.empty(sum(p.numel() for p in self.edges.parameters())).uniform_()

    def forward(self, s0: State, s1: State, weights: CellWeights, recompute: bool = False) -> State:
        nodes = maybe_recomputed(self, self._nodes, s0.rectified(), s1.rectified(), weights, recompute=recompute)
        return State(join(nodes))

    def _nodes(self, s0: Tensor, s1: Tensor, weights: CellWeights) -> list[Tensor]:
        return self.nodes([self.input_0(s0), self.input_1(s1)], weights)

    def nodes(self, inputs: Sequence[Tensor], weights: CellWeights) -> list[Tensor]:
        """All nodes, from the outputs of the two input layers, (N, C, H, W) each."""
        states = list(inputs)
        for node in range(self.num_nodes):
            terms = []
            for state, x in enumerate(states):
                e = num_edges(node) + state
                chosen = None if weights.chosen is None else weights.chosen[e]
                y = self.edges[e](x, weights.operations[e], chosen)
                if weights.kept is not None:
                    y = y * per_image(weights.kept[e], y)
                terms.append(y if weights.edges is None else weights.edges[e] * y)
            states.append(sum(terms[1:], terms[0]))
        return states[NUM_INPUTS:]


def per_image(factors: Tensor, like: Tensor) -> Tensor:
    """Factors (N,) as (N, 1, 1, 1), in the type of the tensor (N, C, H, W) that they multiply."""
    return factors.to(like.dtype)[:, None, None, None]


def maybe_recomputed(cell: nn.Module, compute: Callable[..., T], *inputs: object, recompute: bool) -> T:
    """compute(*inputs), a part of a cell's forward pass; with `recompute` the backward pass computes it a second time
    instead of keeping what it needs: less memory, more time, the same bits."""
    if not recompute:
        return compute(*inputs)
    found: T = checkpoint(
        compute,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in a cell is random
        context_fn=lambda: (nullcontext(), StatisticsKept(cell)),
    )
    return found


class StatisticsKept:
    """A context in which forward passes leave running statistics alone: the second pass sees the same batch again.

    It is entered once for each backward pass through the graph.
    """

    def __init__(self, module: nn.Module) -> None:
        self._norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
        self._momenta: list[float | None] = []

    def __enter__(self) -> None:
        self._momenta = [norm.momentum for norm in self._norms]
        for norm in self._norms:
            norm.momentum = 0.0

    def __exit__(self, *raised: object) -> None:
        for norm, momentum in zip(self._norms, self._momenta, strict=True):
            norm.momentum = momentum


class Supernet(nn.Module):
    """Stem - cells - global pool - linear, with one set of alphas for the normal and one for the reduction cells.

    `forward(x, mixing)` maps images (N, in_channels, H, W) to logits (N, num_classes). With `chosen` it computes one
    operation an edge, times its mixing weight.
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
        stem_multiplier: int = STEM_MULTIPLIER,
        in_channels: int = 3,
        partial_channels: int = 1,
        edge_normalization: bool = False,
        auxiliary_skip: bool = False,
        initial_alphas: Callable[[int, int], Tensor] = normal_alphas,
        allowed: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
    ) -> None:
        """allowed: which operations each edge of the normal and of the reduction cell has; None for all."""
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
        C_stem = stem_channels(network, channels, stem_multiplier)
        self.stem = (ImageNetStem if large else CifarStem)(in_channels, C_stem)
        self.specs = cell_specs(channels, cells, C_stem, lambda reduction: num_nodes, reduction_before=large)
        self.choices = None if allowed is None else Choices(*(EdgeChoices(torch.from_numpy(each)) for each in allowed))
        """Which operations the edges have, where they have lists of their own."""
        self.auxiliary_skip = auxiliary_skip
        # the auxiliary skip is a candidate to the cells, so that backends merge it with other identities of an edge
        candidates = (*operations, AUXILIARY_SKIP) if auxiliary_skip else operations
        self.cells = nn.ModuleList(
            SupernetCell(spec, candidates, num_nodes, partial_channels, self.choices and self.choices[spec.reduction])
            for spec in self.specs
        )
        self.head = Head(num_nodes * self.specs[-1].C, num_classes)

        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.num_batches_tracked = None  # with a momentum nobody reads it, and counting is a launch each
        self.register_load_state_dict_post_hook(_without_counters)

        E, num_ops = num_edges(num_nodes), len(operations)
        self.alpha_normal = nn.Parameter(initial_alphas(E, num_ops))
        self.alpha_reduce = nn.Parameter(initial_alphas(E, num_ops))
        self.beta_normal: nn.Parameter | None = None
        self.beta_reduce: nn.Parameter | None = None
        if edge_normalization:
            self.beta_normal = nn.Parameter(ALPHA_INIT_DEVIATION * torch.randn(E))
            self.beta_reduce = nn.Parameter(ALPHA_INIT_DEVIATION * torch.randn(E))

    def alphas(self) -> list[nn.Parameter]:
        """The architecture parameters: alphas, then the edge weights' parameters if there are any."""
        candidates = [self.alpha_normal, self.alpha_reduce, self.beta_normal, self.beta_reduce]
        return [p for p in candidates if p is not None]

    def weights(self) -> list[nn.Parameter]:
        """All parameters that are not architecture parameters."""
        own = {id(p) for p in self.alphas()}
        return [p for p in self.parameters() if id(p) not in own]

    def forward(
        self,
        x: Tensor,
        mixing: Mixing,
        chosen: Chosen | None = None,
        *,
        skip: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes).

        skip: the factor β of the auxiliary skip, a scalar; None for 0. kept: factors (num_cells, num_edges, N) of the
        outputs of edges, for drop path; None for 1.
        """
        s0, s1 = self.stem(x)
        recompute = self.recompute and torch.is_grad_enabled()
        for i, (cell, weights) in enumerate(
            zip(self.cells, self.cell_weights(mixing, chosen, skip, kept), strict=True)
        ):
            last = i == len(self.cells) - 1  # the backward pass begins with it: nothing is gained by forgetting it
            s0, s1 = s1, cell(s0, s1, weights, recompute and not last)
        return self.head(s1.joined())

    def cell_weights(
        self, mixing: Mixing, chosen: Chosen | None, skip: Tensor | None, kept: Tensor | None
    ) -> list[CellWeights]:
        """The mixing weights of each cell: one object for all cells of a type, unless each has its own."""
        normal = self._of_type(mixing.normal, mixing.edge_normal, skip, chosen and chosen.normal)
        reduce = self._of_type(mixing.reduce, mixing.edge_reduce, skip, chosen and chosen.reduce)
        each = [next(reduce if spec.reduction else normal) for spec in self.specs]
        if kept is None:
            return each
        pairs = zip(each, kept.unbind(), strict=True)
        return [CellWeights(weights.operations, weights.edges, weights.chosen, own) for weights, own in pairs]

    def _of_type(
        self, operations: Tensor, edges: Tensor | None, skip: Tensor | None, chosen: Sequence[int] | None
    ) -> Iterator[CellWeights]:
        """The mixing weights of the cells of one type, one after the other, with the auxiliary skip's column."""
        if self.auxiliary_skip:
            factor = operations.new_zeros(()) if skip is None else skip.to(operations)
            operations = torch.cat([operations, factor.expand(*operations.shape[:-1], 1)], dim=-1)
        if operations.dim() == 2:
            return itertools.repeat(CellWeights(operations, edges, chosen))
        return (CellWeights(of_cell, edges, chosen) for of_cell in operations.unbind())


def _without_counters(module: nn.Module, keys: Any) -> None:
    """BatchNorms miss a counter of batches in whatever they load, though those of a supernet have none."""
    counters = [key for key in keys.unexpected_keys if key.endswith(".num_batches_tracked")]
    for key in counters:
        keys.unexpected_keys.remove(key)
