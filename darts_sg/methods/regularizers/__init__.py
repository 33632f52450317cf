"""Regularizers: terms added to the loss of the alphas. Each lives in a file of this package and registers itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from darts_sg.derive import Bound, Costs
from darts_sg.errors import UsageError
from darts_sg.methods.mixing import Alphas
from darts_sg.methods.parts import import_parts
from darts_sg.methods.relaxations import Relaxation
from darts_sg.networks.supernet import Mixing
from darts_sg.registry import Registry
from darts_sg.spaces import Allowed


class Problem(NamedTuple):
    """The search that a regularizer is part of."""

    operations: tuple[str, ...]
    num_nodes: int
    costs: Callable[[str], Costs]
    """The cost tables of the derived network: `params` and `macs`, of the papers' size for its shape, or `latency`, of
    the size in --latency-table. UsageError without such a table."""
    allowed: Allowed | None = None
    """Which operations the edges of either cell have; None if every edge has all. The alphas of others are -inf."""


class Regularizer:
    """Base class of the regularizers: a frozen dataclass whose fields are its options."""

    def prepare(self, problem: Problem) -> "Regularizer":
        """The regularizer for one search, by default itself. UsageError if it cannot be met there."""
        return self

    def refuse(self, relaxation: Relaxation) -> None:
        """UsageError if the term has no meaning with this relaxation."""

    def __call__(self, alphas: Alphas, mixing: Mixing, progress: Tensor) -> Tensor:
        """The scalar that is added to the loss, differentiable in the alphas.

        mixing: the expected mixing weights. progress: the share of the search that is done, a scalar tensor.
        """
        raise NotImplementedError

    def metrics(self, mixing: Mapping[str, Tensor]) -> dict[str, float]:
        """Columns of metrics.csv after an epoch, from the expected mixing weights `normal`, `reduce`, …"""
        return {}

    def bounds(self) -> Sequence[Bound]:
        """Bounds that the derived genotype has to keep."""
        return ()


def refuse_edge_lists(problem: Problem) -> None:
    """UsageError for a space whose edges have lists of operations of their own."""
    if problem.allowed is not None:
        raise UsageError("the term reads the alphas of all operations on every edge, which this space does not have")


REGULARIZERS: Registry[type[Regularizer]] = Registry("regularizer")

import_parts(__name__)
