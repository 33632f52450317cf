"""Carries the weights of a supernet over to one with wider partial channels, or fewer operations an edge (DrNAS).

Net2WiderNet of Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016, for
each operation: new channels are copies of random old ones, and weights that read a channel are divided by the number of
its copies. The widened operation gives, for an input with copied channels, the old outputs with copied channels.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from darts_sg.networks.supernet import MixedOp, Supernet, SupernetCell
from darts_sg.ops.primitives import HalvingConvBN

State = dict[str, Tensor]


class ChannelCopies:
    """Which old channel each channel of a widened dimension copies, the same for all dimensions of these sizes."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._sources: dict[tuple[int, int], Tensor] = {}

    def sources(self, old: int, new: int) -> Tensor:
        """(new,): the old channels in order, then random ones."""
        if (old, new) not in self._sources:
            drawn = torch.randint(old, (new - old,), generator=self.generator)
            self._sources[old, new] = torch.cat([torch.arange(old), drawn])
        return self._sources[old, new]


def carry_over(old: Supernet, new: Supernet, generator: torch.Generator) -> None:
    """Load the tensors of a plain supernet into a plain one whose edges have some of its operations, with as many or
    more channels. A linear map of the weights, so that momentum buffers in their place are carried over alike."""
    state = {name: tensor for name, tensor in old.state_dict().items() if ".edges." not in name}
    for number, (cell, before) in enumerate(zip(_cells(new), _cells(old), strict=True)):
        for e, (edge, edge_before) in enumerate(zip(cell.edges, before.edges, strict=True)):
            assert isinstance(edge, MixedOp)
            assert isinstance(edge_before, MixedOp)
            for place, column in enumerate(edge.columns):
                op = edge_before.ops[edge_before.columns.index(column)]
                found = widened(op, edge.ops[place].state_dict(), ChannelCopies(generator))
                state |= {f"cells.{number}.edges.{e}.ops.{place}.{name}": tensor for name, tensor in found.items()}
    new.load_state_dict(state)


def _cells(supernet: Supernet) -> list[SupernetCell]:
    return [cast(SupernetCell, cell) for cell in supernet.cells]


def widened(op: nn.Module, like: Mapping[str, Tensor], copies: ChannelCopies) -> State:
    """The state of an operation with more channels, whose tensors have the shapes of `like`."""
    halves = {f"{name}.bn".lstrip("."): module for name, module in op.named_modules() if type(module) is HalvingConvBN}
    found: State = {}
    for name, tensor in op.state_dict().items():
        wanted = like[name].shape
        for dim, (size, more) in enumerate(zip(tensor.shape, wanted, strict=True)):
            if size == more:
                continue
            owner = halves.get(name.rpartition(".")[0])
            sources = copies.sources(size, more) if owner is None else _joined_halves(owner, more, copies)
            tensor = tensor.index_select(dim, sources)
            if dim == 1:  # what a layer reads: the copies of a channel share its weight
                number = torch.bincount(sources, minlength=size)[sources]
                tensor = tensor / number.view(1, -1, *[1] * (tensor.dim() - 2))
        found[name] = tensor
    return found


def _joined_halves(layer: HalvingConvBN, more: int, copies: ChannelCopies) -> Tensor:
    """The sources of the joined outputs of two convolutions, each widened by itself."""
    first, second = (conv.weight.shape[0] for conv in (layer.conv_1, layer.conv_2))
    return torch.cat([copies.sources(first, more // 2), first + copies.sources(second, more - more // 2)])
