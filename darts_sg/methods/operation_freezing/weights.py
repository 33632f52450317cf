"""The weights of each candidate operation as slices of tensors, since backends stack the weights of several edges."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

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
    operations: Tensor
    """int64 (slices,): the number of each slice's operation."""


class OperationWeights:
    """The weights of all candidate operations, each on its own edge of its own cell.

    Operations are numbered by cell, edge and place among the candidates, whatever the backend. Those without weights,
    such as an identity, and the auxiliary skip, which is no candidate, have no number.
    """

    def __init__(self, supernet: Supernet) -> None:
        candidates = [name for name in supernet.operations if name != "none"]
        numbers = {id(weight): i for i, weight in enumerate(supernet.weights())}
        self.places: list[tuple[int, int, int]] = []
        """(cell, edge, place among the candidates without `none`) of each operation."""
        slices: dict[int, dict[int, tuple[int, int, int]]] = {}
        for name, one, tensor in plain_slices(supernet):
            found = PLACE.match(name)
            if found is None or int(found[3]) >= len(candidates):
                continue
            place = int(found[1]), int(found[2]), int(found[3])
            if place not in self.places[-1:]:
                self.places.append(place)
            slices.setdefault(numbers[id(tensor)], {})[one.number] = place
        self.device, self.dtype = supernet.alpha_normal.device, supernet.alpha_normal.dtype
        index = {place: i for i, place in enumerate(self.places)}
        self.stacks = [
            _Stack(i, torch.tensor([index[each[k]] for k in range(len(each))], device=self.device))
            for i, each in slices.items()
        ]
        self._gather = self._places_of_sums()

    def _places_of_sums(self) -> Tensor:
        """(num_operations, most tensors of one): where an operation's slices are among those of all stacks.

        The last place, that of a zero, fills up rows of fewer tensors.
        """
        rows: list[list[int]] = [[] for _ in self.places]
        position = 0
        for stack in self.stacks:
            for number in stack.operations.tolist():
                rows[number].append(position)
                position += 1
        most = max(map(len, rows), default=0)
        filled = [row + [position] * (most - len(row)) for row in rows]
        return torch.tensor(filled, dtype=torch.long, device=self.device).view(len(rows), most)

    def per_operation(self, dtype: Literal["bool", "int", "float"] = "float") -> Tensor:
        """Zeros, one for each operation."""
        kinds = {"bool": torch.bool, "int": torch.long, "float": self.dtype}
        return torch.zeros(len(self.places), dtype=kinds[dtype], device=self.device)

    def dot(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """The inner product of two lists of tensors, one for each weight of the supernet, by operation."""
        sums = [first[0].new_zeros(1)]
        for stack in reversed(self.stacks):
            product = first[stack.number] * second[stack.number]
            sums.append(product.unflatten(0, (len(stack.operations), -1)).flatten(1).sum(dim=1))
        return torch.cat(sums[::-1])[self._gather].sum(dim=1).to(self.dtype)

    def of(self, tensors: Sequence[T]) -> list[T]:
        """The items for tensors that hold weights of operations, from one for each weight of the supernet."""
        return [tensors[stack.number] for stack in self.stacks]

    @torch.no_grad()
    def select(self, chosen: Tensor, first: Sequence[Tensor | None], second: Sequence[Tensor | float]) -> None:
        """Overwrite the tensors in `first` by those in `second` where `chosen` (num_operations,) is true.

        Both lists are as `of` returns them; a None stays.
        """
        for stack, target, source in zip(self.stacks, first, second, strict=True):
            if target is None:
                continue
            parts = target.unflatten(0, (len(stack.operations), -1))
            where = chosen[stack.operations].view(-1, *[1] * (parts.dim() - 1))
            other = source.unflatten(0, (len(stack.operations), -1)) if isinstance(source, Tensor) else source
            parts.copy_(torch.where(where, other, parts))
