"""The weights of each candidate operation as slices of tensors, since backends stack the weights of several edges."""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from darts_sg.backends.batched import plain_slices
from darts_sg.networks.supernet import Supernet

T = TypeVar("T")
PLACE = re.compile(r"cells\.(\d+)\.edges\.(\d+)\.ops\.(\d+)\.")


class _Stack(NamedTuple):
    """A tensor that holds the weights of some operations, one after the other in its first dimension."""

    number: int
    """Its number among the weights of the supernet."""
    operations: list[int]
    """The number of each slice's operation."""
    shape: tuple[int, int]
    """Slices, and weights of a slice."""


class OperationWeights:
    """The weights of all candidate operations, each on its own edge of its own cell.

    Operations are numbered by cell, edge and place among the candidates, whatever the backend. Those without weights,
    such as an identity, and the auxiliary skip, which is no candidate, have no number.
    """

    def __init__(self, supernet: Supernet) -> None:
        weights = supernet.weights()
        numbers = {id(weight): i for i, weight in enumerate(weights)}
        self.places: list[tuple[int, int, int]] = []
        """(cell, edge, place among the candidates without `none`) of each operation."""
        slices: dict[int, dict[int, tuple[int, int, int]]] = {}
        for name, one, tensor in plain_slices(supernet):
            found = PLACE.match(name)
            if found is None:
                continue
            place = int(found[1]), int(found[2]), int(found[3])
            if place[2] == _num_candidates(supernet, *place[:2]):  # the auxiliary skip stands behind the candidates
                continue
            if place not in self.places[-1:]:
                self.places.append(place)
            slices.setdefault(numbers[id(tensor)], {})[one.number] = place
        index = {place: i for i, place in enumerate(self.places)}
        stacks = [
            _Stack(i, [index[each[k]] for k in range(len(each))], (len(each), weights[i].numel() // len(each)))
            for i, each in slices.items()
        ]
        # stacks of one shape are summed together: there are hundreds of small tensors
        self._stacks = sorted(stacks, key=lambda stack: stack.shape)
        self._groups = [list(group) for _, group in itertools.groupby(self._stacks, key=lambda stack: stack.shape)]
        self._device, self._dtype = supernet.alpha_normal.device, supernet.alpha_normal.dtype
        of_slices = [number for stack in self._stacks for number in stack.operations]
        self._of_slices = torch.tensor(of_slices, dtype=torch.long, device=self._device)
        self._gather = self._places_of_sums(of_slices)

    def _places_of_sums(self, of_slices: Sequence[int]) -> Tensor:
        """(num_operations, most slices of one): where an operation's slices are among those of all stacks.

        The last place, that of a zero, fills up rows of fewer slices. A sum along rows has the same bits each time, as
        adding to an index has not on a GPU.
        """
        rows: list[list[int]] = [[] for _ in self.places]
        for position, number in enumerate(of_slices):
            rows[number].append(position)
        most = max(map(len, rows), default=0)
        filled = [row + [len(of_slices)] * (most - len(row)) for row in rows]
        return torch.tensor(filled, dtype=torch.long, device=self._device).view(len(rows), most)

    def per_operation(self, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros, one for each operation; by default of the alphas' type."""
        return torch.zeros(len(self.places), dtype=dtype or self._dtype, device=self._device)

    def grouped(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies of tensors, one for each weight of the supernet, in the form that `dot` takes: those of operations by
        shape, (number of tensors, slices, weights of a slice)."""
        return [torch.stack([tensors[one.number].reshape(one.shape) for one in group]) for group in self._groups]

    def dot(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """The inner product of two lists of tensors by operation; both lists as `grouped` returns them."""
        sums = [(a * b).sum(dim=-1).flatten() for a, b in zip(first, second, strict=True)]
        sums.append(torch.zeros(1, dtype=self._dtype, device=self._device))
        return torch.cat([each.to(self._dtype) for each in sums])[self._gather].sum(dim=1)

    def of(self, tensors: Sequence[T]) -> list[T]:
        """The items for tensors that hold weights of operations, from one for each weight of the supernet."""
        return [tensors[stack.number] for stack in self._stacks]

    @torch.no_grad()
    def clear(self, chosen: Tensor, tensors: Sequence[Tensor | None]) -> None:
        """Zero the slices of the operations that `chosen` (num_operations,) marks, in tensors as `of` returns them."""
        for target, where in zip(tensors, self._marks(chosen), strict=True):
            if target is not None:
                parts, mark = _by_slice(target, where)
                parts.masked_fill_(mark, 0.0)

    @torch.no_grad()
    def copy(self, chosen: Tensor, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """Copy the slices of the operations that `chosen` marks, between tensors as `of` returns them."""
        for target, source, where in zip(targets, sources, self._marks(chosen), strict=True):
            parts, mark = _by_slice(target, where)
            parts.copy_(torch.where(mark, _by_slice(source, where)[0], parts))

    def _marks(self, chosen: Tensor) -> Sequence[Tensor]:
        """For each stack, which of its slices are of chosen operations, (slices,)."""
        return chosen[self._of_slices].split([len(stack.operations) for stack in self._stacks])


def _num_candidates(supernet: Supernet, cell: int, edge: int) -> int:
    """The number of modules of an edge for candidate operations; `none` has no module."""
    allowed = [True] * len(supernet.operations)
    if supernet.choices is not None:
        allowed = supernet.choices[supernet.specs[cell].reduction].of_edge(edge)
    return sum(name != "none" and has for name, has in zip(supernet.operations, allowed, strict=True))


def _by_slice(tensor: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """A view of the tensor with its slices in front, and their marks in a shape that goes with it."""
    parts = tensor.unflatten(0, (len(marks), -1))
    return parts, marks.view(-1, *[1] * (parts.dim() - 1))
