"""One operation an edge of a batched cell: what a step with a hard sample computes (GDAS, Dong and Yang, CVPR 2019).

A batched cell holds the weights of all its edges side by side, in one tensor a layer. A hard sample needs slices of
some of these tensors. So there is a plain cell without tensors of its own: for a forward pass the weights of its chosen
operations become views into the stacked ones, through which their gradients reach them.
"""

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from darts_sg.backends import ir
from darts_sg.derive import num_edges
from darts_sg.networks.supernet import MixedOp, SupernetCell

if TYPE_CHECKING:
    from darts_sg.backends.batched import BatchedCell, Slice


class SampledEdges:
    """A plain cell whose chosen operations compute with the tensors of a batched cell.

    All edges that leave a state share the running statistics of their pools in a batched cell. If several of these
    edges choose the same pool in one pass, the first of them updates the statistics.
    """

    def __init__(self, cell: "BatchedCell") -> None:
        with torch.device("meta"):  # draws no random numbers: no tensor of it is used
            self.plain = SupernetCell(cell.spec, cell.operations, cell.num_nodes, cell.K)
        self._columns = {number: column for column, number in enumerate(cast(MixedOp, self.plain.edges[0]).columns)}
        layers = dict(self.plain.named_modules())
        # the layers with tensors of each operation (edge, column), and their places in the stacked layers
        self._layers: dict[tuple[int, int], list[tuple[nn.Module, Slice]]] = {}
        for one in cell.slices():
            names = one.name.split(".")
            if names[0] == "edges" and (one.layer._parameters or one.layer._buffers):
                place = int(names[1]), int(names[3])
                self._layers.setdefault(place, []).append((layers[one.name], one))
        # operations that are not stacked have modules of their own
        for batch, each in zip(cell.edge_batches(), cell.edge_lists, strict=True):
            for column, op in enumerate(batch.ops):
                if type(op) is nn.ModuleList:
                    for own, (state, node) in zip(op, each, strict=True):
                        edge = num_edges(node) + state
                        cast(MixedOp, self.plain.edges[edge]).ops[column] = own
                        self._layers.pop((edge, column), None)
        self._stages: dict[tuple[int, int], list[ir.FusedStage] | None] = {}  # cache of `stages`

    def operation(self, edge: int, number: int) -> nn.Module | None:
        """The plain module of an operation of an edge; None for `none`."""
        column = self._columns.get(number)
        return None if column is None else cast(MixedOp, self.plain.edges[edge]).ops[column]

    def bind(self, chosen: Sequence[int]) -> None:
        """Give the chosen operation of each edge its tensors for one forward pass."""
        updated: set[int] = set()  # addresses of the statistics that this pass updates
        for edge, number in enumerate(chosen):
            for layer, one in self._layers.get((edge, self._columns.get(number, -1)), []):
                _bind(layer, one, updated)

    def stages(self, edge: int, number: int) -> list[ir.FusedStage] | None:
        """The fused form of an operation other than `none`; None if the kernels do not know it."""
        place = edge, number
        if place not in self._stages:
            op = self.operation(edge, number)
            pool = ir.pool_of(list(op)) if isinstance(op, nn.Sequential) else None
            self._stages[place] = ir.stages_of_operation(cast(nn.Module, op)) if pool is None else [pool]
        return self._stages[place]


def _bind(layer: Any, one: "Slice", updated: set[int]) -> None:
    """Let a plain layer compute with its slice of the stacked layer's tensors, in that layer's mode."""
    stacked: Any = one.layer
    layer.training = stacked.training
    for name, tensor in stacked._parameters.items():
        layer._parameters.pop(name, None)
        layer.__dict__[name] = None if tensor is None else one.of(tensor)
    if isinstance(layer, nn.BatchNorm2d):
        layer.momentum = stacked.momentum  # 0 while a pass is recomputed
        layer.num_batches_tracked = None
        for name in ("running_mean", "running_var"):
            view = one.of(stacked._buffers[name])
            layer._buffers[name] = view.clone() if view.data_ptr() in updated else view
            updated.add(view.data_ptr())


_SAMPLED: "weakref.WeakKeyDictionary[nn.Module, SampledEdges]" = weakref.WeakKeyDictionary()


def sampled_edges(cell: "BatchedCell") -> SampledEdges:
    """The sampled edges of a cell, made on first use. They are no part of it: copies of the cell make their own."""
    if cell not in _SAMPLED:
        _SAMPLED[cell] = SampledEdges(cell)
    return _SAMPLED[cell]


def zero_step(reduction: bool, node: int, states: Sequence[int], to: int) -> ir.GraphStep:
    """The step that gives a node on whose edges only `none` was chosen, with a gamma of 0: zeros of its size.

    states: the numbers of the states before the node. to: that of the node.
    """
    if reduction and node == 0:  # both states are twice the size of the node
        halved = ir.FusedStage(None, pool=nn.MaxPool2d(3, 2, padding=1))
        return ir.GraphStep(ir.FusedOps(1, 1, [ir.FusedOp([halved])]), [states[0]], [to])
    return ir.GraphStep(ir.FusedOps(1, 1, [ir.FusedOp()]), [states[-1]], [to])
