"""Bounds on the network of a fit, at the size in which it is trained and used.

A bound is a kind of cost and a maximum. A kind has a table of costs by edge for a network size, so that derivation
within bounds stays exact (`derive.derive_bounded`). Another kind, such as a latency from a table of measured
operations, is one more entry of KINDS and an option of its name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from darts_sg.analysis.cost import choice_costs, derived_cost, human
from darts_sg.derive import Bound, Costs, derive_bounded
from darts_sg.errors import UsageError
from darts_sg.fitting.options import FitOptions
from darts_sg.genotype import Genotype
from darts_sg.methods.regularizers.size import expected_cost
from darts_sg.networks.derived import NetworkShape
from darts_sg.options import flag
from darts_sg.quantity import parse_quantity
from darts_sg.spaces import Space

LEAST_CHANNELS, LEAST_CELLS = 4, 3
"""The smallest network that a fit makes on its own."""


class Size(NamedTuple):
    """All that the cost of a derived network depends on beside its cells."""

    network: NetworkShape
    image_size: int
    channels: int
    cells: int
    num_classes: int


class Kind(NamedTuple):
    """A kind of cost that can be bounded."""

    title: str
    costs: Callable[[Sequence[str], int, Size], Costs]
    """(operations, nodes of a cell, size) to the table of costs by edge."""
    of: Callable[[Genotype, Size], float]
    """The cost of a genotype's network."""


def cost_tables(operations: Sequence[str], nodes: int, size: Size) -> tuple[Costs, Costs]:
    return choice_costs(
        operations, size.network, size.channels, size.cells, nodes,
        num_classes=size.num_classes, image_size=size.image_size,
    )  # fmt: skip


def counted(genotype: Genotype, size: Size) -> tuple[int, int]:
    """(parameters, MACs) of a genotype's network, without the auxiliary head."""
    cost = derived_cost(genotype, size.network, size.channels, size.cells, size.num_classes, size.image_size)
    return cost.params, cost.macs


KINDS: Mapping[str, Kind] = {
    "max_params": Kind("parameters", lambda *given: cost_tables(*given)[0], lambda g, size: counted(g, size)[0]),
    "max_macs": Kind("MACs", lambda *given: cost_tables(*given)[1], lambda g, size: counted(g, size)[1]),
}
"""By the option that gives the maximum."""


@dataclass(frozen=True)
class Limits:
    """The bounds of a fit; none is fine."""

    maxima: Mapping[str, int]
    """By the names in KINDS."""

    def __bool__(self) -> bool:
        return bool(self.maxima)

    @property
    def text(self) -> str:
        """The bounds in words: "at most 1.00M parameters and 300.00M MACs"."""
        return "at most " + " and ".join(f"{human(most)} {KINDS[name].title}" for name, most in self.maxima.items())

    def bounds(self, space: Space, nodes: int, size: Size) -> list[Bound]:
        """The bounds for `derive_bounded`."""
        return [
            Bound(KINDS[name].title, KINDS[name].costs(space.operations, nodes, size), most)
            for name, most in self.maxima.items()
        ]

    def kept(self, genotype: Genotype, size: Size) -> bool:
        """Whether the network of a genotype keeps all bounds."""
        return all(KINDS[name].of(genotype, size) <= most for name, most in self.maxima.items())

    def possible(self, space: Space, nodes: int, size: Size) -> bool:
        """Whether any network of this size keeps them."""
        bounds = self.bounds(space, nodes, size)
        if len(bounds) == 1 and bounds[0].costs.fixed > bounds[0].maximum:
            return False
        even = np.ones(bounds[0].costs.normal.shape) if bounds else np.ones((1, 1))
        try:
            if bounds:
                derive_bounded(even, even, space.operations, bounds, allowed=space.allowed)
        except UsageError:
            return False
        return True

    def roomy(self, space: Space, nodes: int, size: Size) -> bool:
        """Whether the mean network of this size keeps them, so that a search can choose freely."""
        return all(mean_cost(bound.costs, space) <= bound.maximum for bound in self.bounds(space, nodes, size))

    def widest(self, space: Space, nodes: int, size: Size) -> int | None:
        """The largest even C up to that of `size` whose mean network keeps the bounds.

        If there is none, LEAST_CHANNELS if any network of that width keeps them, and None if none does.
        """
        low, high = LEAST_CHANNELS, size.channels // 2 * 2
        if high <= low or not self.roomy(space, nodes, size._replace(channels=low)):
            least = size._replace(channels=min(low, size.channels))
            return least.channels if self.possible(space, nodes, least) else None
        if self.roomy(space, nodes, size):
            return size.channels
        while high - low > 2:
            middle = (low + high) // 4 * 2
            low, high = (middle, high) if self.roomy(space, nodes, size._replace(channels=middle)) else (low, middle)
        return low

    def refuse_impossible(self, space: Space, nodes: int, size: Size, *, fixed: bool) -> None:
        """UsageError if no network keeps them, which names the least of each cost.

        fixed: `size` was asked for; otherwise the smallest that a fit makes.
        """
        if not self or self.possible(space, nodes, size):
            return
        least = {name: least_cost(KINDS[name].costs(space.operations, nodes, size), space) for name in self.maxima}
        texts = [f"{flag(name)} {human(most)} (the least is {least[name]:,})" for name, most in self.maxima.items()]
        at = f"C={size.channels}, {size.cells} cells, {size.image_size}×{size.image_size} pixels"
        ways = "loosen the bound, or lower --channels, --cells or --image-size" if fixed else "loosen the bound"
        if not fixed and "max_macs" in self.maxima:
            ways += ", or give a smaller --image-size"
        raise UsageError(f"no network of the space {space.name} keeps {' and '.join(texts)} at {at}; {ways}")


def limits_of(options: FitOptions) -> Limits:
    """The bounds that the options ask for."""
    given = {name: getattr(options, name) for name in KINDS}
    return Limits({name: parse_quantity(flag(name), text) for name, text in given.items() if text})


def mean_cost(costs: Costs, space: Space) -> float:
    """The mean cost of the networks that a search starts from: even mixing weights."""
    shape = costs.normal.shape
    allowed = space.allowed or (np.ones(shape), np.ones(shape))
    even = [torch.as_tensor(np.asarray(one, dtype=np.float64)) for one in allowed]
    return float(expected_cost(even[0], even[1], space.operations, costs))


def least_cost(costs: Costs, space: Space) -> int:
    """The cost of the cheapest network: the two cheapest edges of each node, each with its cheapest operation."""
    total, real = costs.fixed, np.array([name != "none" for name in space.operations])
    for half, table in enumerate((costs.normal, costs.reduce)):
        choosable = real if space.allowed is None else space.allowed[half] & real
        cheapest = np.where(choosable, table, np.iinfo(np.int64).max).min(axis=1)  # (num_edges,)
        start, inputs = 0, 2
        while start < len(cheapest):
            total += int(np.sort(cheapest[start : start + inputs])[:2].sum())
            start, inputs = start + inputs, inputs + 1
    return total
