"""Selection: from the mixing weights of a search to its cells. Each lives in a file of this package and registers
itself."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from darts_sg.derive import Array, Bound
from darts_sg.genotype import Cell
from darts_sg.methods.parts import import_parts
from darts_sg.registry import Registry


class Searched(NamedTuple):
    """What a search has learned so far."""

    mixing: Mapping[str, Array]
    """Expected mixing weights `normal` and `reduce`, (num_edges, num_operations), and with edge normalisation
    `edge_normal` and `edge_reduce`, (num_edges,)."""
    operations: tuple[str, ...]
    bounds: Sequence[Bound] = ()
    """Bounds that the genotype has to keep, such as that of --target-params."""


class Selection:
    """Base class of the selections: a frozen dataclass whose fields are its options."""

    keeps_bounds: ClassVar[bool] = False
    """Whether it derives within `Searched.bounds`; one that does not is refused beside a target."""

    def __call__(self, searched: Searched) -> tuple[Cell, Cell]:
        """The (normal, reduction) cell. UsageError if there is none."""
        raise NotImplementedError


SELECTIONS: Registry[type[Selection]] = Registry("selection")

import_parts(__name__)
