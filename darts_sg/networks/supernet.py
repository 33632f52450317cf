"""The supernet: every edge of every cell is a weighted sum of all candidate operations (DARTS paper, section 2).

The mixing weights are an argument of `forward`, not a property of the network: how alphas become mixing weights
is the choice of a relaxation (darts_sg.methods.relaxation).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.derive import num_edges
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS
from darts_sg.networks.skeleton import (
    CellSpec,
    CifarStem,
    Head,
    between_cells,
    cell_specs,
    input_layers,
    join,
)
from darts_sg.ops import OPERATIONS

ALPHA_INIT_DEVIATION = 1e-3  # alphas start at 1e-3 · N(0, 1)


class Mixing(NamedTuple):
    """Mixing weights: (num_edges, num_operations) for either cell type, and with edge normalisation (num_edges,)."""

    normal: Tensor
    reduce: Tensor
    edge_normal: Tensor | None = None
    edge_reduce: Tensor | None = None


class MixedOp(nn.Module):
    """All candidate operations on one edge: x (N, C, H, W) to the sum of weights[i] · operation_i(x).

    Pools are followed by BatchNorm, so that all operations give outputs of one scale; no BatchNorm has affine
    parameters. With K = partial_channels > 1 only the first C / K channels pass through the operations, the others
    are handed on (2×2 max pool with stride 2), and the channels are shuffled in K groups (PC-DARTS, section 3.2).
    """

    def __init__(self, operations: Sequence[str], C: int, stride: int, partial_channels: int) -> None:
        super().__init__()
        self.K = partial_channels
        self.C_mixed = C // partial_channels
        self.stride = stride
        self.ops = nn.ModuleList()
        self.computed = [i for i, name in enumerate(operations) if name != "none"]
        for i in self.computed:
            op = OPERATIONS[operations[i]].build(self.C_mixed, stride, False)
            if OPERATIONS[operations[i]].family == "pool":
                op = nn.Sequential(op, nn.BatchNorm2d(self.C_mixed, affine=False))
            self.ops.append(op)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        if self.K == 1:
            return self._mix(x, weights)
        mixed, passed = x[:, : self.C_mixed], x[:, self.C_mixed :]
        if self.stride == 2:
            passed = F.max_pool2d(passed, 2, 2, ceil_mode=True)
        return F.channel_shuffle(torch.cat([self._mix(mixed, weights), passed], dim=1), self.K)

    def _mix(self, x: Tensor, weights: Tensor) -> Tensor:
        # `none` adds nothing to the sum: of it only the slot in the softmax matters
        terms = [weights[i] * op(x) for i, op in zip(self.computed, self.ops, strict=True)]
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]


class SupernetCell(nn.Module):
    """A cell whose node i is the sum of MixedOps on all 2 + i states before it; all nodes are concatenated."""

    def __init__(self, spec: CellSpec, operations: Sequence[str], num_nodes: int, partial_channels: int) -> None:
        super().__init__()
        self.reduction = spec.reduction
        self.num_nodes = num_nodes
        self.input_0, self.input_1 = input_layers(spec, affine=False)
        self.edges = nn.ModuleList(
            MixedOp(operations, spec.C, 2 if spec.reduction and state < NUM_INPUTS else 1, partial_channels)
            for i in range(num_nodes)
            for state in range(NUM_INPUTS + i)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, edge_weights: Tensor | None) -> Tensor:
        """s0 (N, C_pp, …), s1 (N, C_p, H, W) to (N, num_nodes · C, H, W), halved by a reduction cell."""
        states = [self.input_0(s0), self.input_1(s1)]
        start = 0
        for _ in range(self.num_nodes):
            terms = []
            for j, state in enumerate(states):
                mixed = self.edges[start + j](state, weights[start + j])
                terms.append(mixed if edge_weights is None else edge_weights[start + j] * mixed)
            start += len(states)
            states.append(torch.stack(terms).sum(0))
        return join(states[NUM_INPUTS:])


class Supernet(nn.Module):
    """Stem - cells - global pool - linear, with one set of alphas for the normal and one for the reduction cells.

    `forward(x, mixing)` maps images (N, in_channels, H, W) to logits (N, num_classes).
    Raises UsageError if C cannot be split into `partial_channels` parts, or there are fewer than 3 cells.
    """

    def __init__(
        self,
        operations: Sequence[str],
        *,
        channels: int = 16,
        cells: int = 8,
        num_classes: int = 10,
        num_nodes: int = 4,
        stem_multiplier: int = 3,
        in_channels: int = 3,
        partial_channels: int = 1,
        edge_normalization: bool = False,
    ) -> None:
        super().__init__()
        if channels % partial_channels or channels // partial_channels < 2:
            raise UsageError(
                f"{channels} channels cannot be split into {partial_channels} parts of at least 2 channels; "
                f"choose a multiple of {partial_channels}, from {2 * partial_channels} up"
            )
        self.operations = tuple(operations)
        self.num_nodes = num_nodes
        C_stem = stem_multiplier * channels
        self.stem = CifarStem(in_channels, C_stem)
        specs = cell_specs(channels, cells, C_stem, num_joined=lambda reduction: num_nodes)
        self.cells = nn.ModuleList(SupernetCell(spec, operations, num_nodes, partial_channels) for spec in specs)
        self.head = Head(num_nodes * specs[-1].C, num_classes)

        E, num_ops = num_edges(num_nodes), len(operations)
        self.alpha_normal = nn.Parameter(ALPHA_INIT_DEVIATION * torch.randn(E, num_ops))
        self.alpha_reduce = nn.Parameter(ALPHA_INIT_DEVIATION * torch.randn(E, num_ops))
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

    def forward(self, x: Tensor, mixing: Mixing) -> Tensor:
        s0, s1 = self.stem(x)
        for cell in self.cells:
            if cell.reduction:
                weights, edge_weights = mixing.reduce, mixing.edge_reduce
            else:
                weights, edge_weights = mixing.normal, mixing.edge_normal
            output = cell(s0, s1, weights, edge_weights)
            s0, s1 = s1, output if cell is self.cells[-1] else between_cells(output)
        return self.head(s1)
