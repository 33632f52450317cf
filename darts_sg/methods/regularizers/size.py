"""Penalties on the expected size or latency of the derived network, so that a search heads for small or fast ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from darts_sg.derive import Bound, Costs, amount, at_size, frontier, num_nodes_of
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS
from darts_sg.methods.mixing import Alphas
from darts_sg.methods.regularizers import REGULARIZERS, Problem, Regularizer
from darts_sg.networks.supernet import Mixing
from darts_sg.quantity import MICROSECONDS, parse_duration, parse_quantity

EDGES_PER_NODE = 2  # that a derived cell keeps


class Tables(NamedTuple):
    """The costs of operations on a device."""

    normal: Tensor
    reduce: Tensor
    choosable: Tensor
    """bool (num_operations,): whether a derived network can have the operation."""

    @classmethod
    def of(cls, operations: tuple[str, ...], costs: Costs, like: Tensor) -> "Tables":
        """On the device of `like` and of its type."""
        normal, reduce = (torch.as_tensor(table, device=like.device).to(like) for table in (costs.normal, costs.reduce))
        return cls(normal, reduce, torch.tensor([name != "none" for name in operations], device=like.device))


def expected_cost(
    normal: Tensor, reduce: Tensor, operations: tuple[str, ...], costs: Costs, tables: Tables | None = None
) -> Tensor:
    """The expected cost of a genotype drawn by the mixing weights: a scalar, differentiable in them.

    normal, reduce: (num_edges, num_operations). Each node draws two of its incoming edges, all pairs with the same
    probability, and for each of them an operation other than `none` with a probability proportional to its mixing
    weight. A cost is a sum over the drawn edges, so the expectation is exact: every edge of node i counts 2 / (2 + i)
    times the mean cost of its operations. tables: the same costs on the device, from an earlier call.
    """
    tables = tables or Tables.of(operations, costs, normal)
    total = normal.new_full((), float(costs.fixed))
    for weights, table in ((normal, tables.normal), (reduce, tables.reduce)):
        drawn = weights * tables.choosable
        drawn = drawn / drawn.sum(dim=1, keepdim=True)
        num_nodes = num_nodes_of(len(weights))
        chance = torch.cat(
            [drawn.new_full((NUM_INPUTS + i,), EDGES_PER_NODE / (NUM_INPUTS + i)) for i in range(num_nodes)]
        )
        total = total + (drawn * table).sum(dim=1) @ chance
    return total


@dataclass(frozen=True)
class Penalty(Regularizer):
    """weight · expected / uniform without a target, weight · max(0, expected / target - 1) with one.

    uniform: the expected cost with even mixing weights, where a search starts.
    """

    name: str
    weight: float
    operations: tuple[str, ...]
    costs: Costs
    target: int | None = None
    tables: dict[tuple[torch.device, torch.dtype], Tables] = field(default_factory=dict, compare=False, repr=False)
    """The costs by device and type: a cache, as a step that is captured may copy nothing to a GPU."""

    def expected(self, normal: Tensor, reduce: Tensor) -> Tensor:
        key = normal.device, normal.dtype
        if key not in self.tables:
            self.tables[key] = Tables.of(self.operations, self.costs, normal)
        return expected_cost(normal, reduce, self.operations, self.costs, self.tables[key])

    def __call__(self, alphas: Alphas, mixing: Mixing, progress: Tensor) -> Tensor:
        normal, reduce = mixing.normal, mixing.reduce
        if self.target is not None:
            return self.weight * torch.relu(self.expected(normal, reduce) / self.target - 1)
        even = [(weights.detach() > 0).to(weights) for weights in (normal, reduce)]  # 0: the edge does not have it
        return self.weight * self.expected(normal, reduce) / self.expected(*even)

    def metrics(self, mixing: Mapping[str, Tensor]) -> dict[str, float]:
        expected = self.expected(mixing["normal"], mixing["reduce"]).item()
        if self.costs.unit == "us":
            return {f"expected_{self.name}_ms": expected / MICROSECONDS["ms"]}
        return {f"expected_{self.name}": expected}

    def bounds(self) -> Sequence[Bound]:
        return () if self.target is None else (Bound(self.name, self.costs, self.target),)


@dataclass(frozen=True)
class Size(Regularizer):
    """Base class of the options of all these penalties: `prepare` makes a Penalty of them."""

    name: ClassVar[str]
    least: ClassVar[str] = "smallest"
    """The network of the lowest cost, in a word."""
    weight: float = 1.0
    target: str = ""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UsageError(f"weight must be at least 0, found {self.weight}")
        if self.target:
            self.parse("target", self.target)

    @staticmethod
    def parse(option_flag: str, text: str) -> int:
        """A target in the unit of the cost tables; UsageError naming the option if it is none."""
        return parse_quantity(option_flag, text)

    def prepare(self, problem: Problem) -> Penalty:
        """Raises UsageError if no network of the space is as small as the target."""
        costs = problem.costs(self.name)
        if not self.target:
            return Penalty(self.name, self.weight, problem.operations, costs)
        target = self.parse("target", self.target)
        even = np.ones(costs.normal.shape)
        smallest = frontier(even, even, problem.operations, costs, problem.allowed)[0].cost
        if smallest > target:
            has = f"{amount(costs, smallest)}{at_size(costs)}"
            raise UsageError(
                f"--target-{self.name} {amount(costs, target)}: the {self.least} network of this space has {has}"
            )
        return Penalty(self.name, self.weight, problem.operations, costs, target)


@dataclass(frozen=True)
class Params(Size):
    """The expected number of parameters; with a target, such as 2.45M, what is above it."""

    name: ClassVar[str] = "params"


@dataclass(frozen=True)
class Macs(Size):
    """The expected number of multiply-adds; with a target, such as 600M, what is above it."""

    name: ClassVar[str] = "macs"


@dataclass(frozen=True)
class MeasuredLatency(Size):
    """The expected latency by --latency-table; with a target, such as 12ms, what is above it."""

    name: ClassVar[str] = "latency"
    least: ClassVar[str] = "fastest"

    @staticmethod
    def parse(option_flag: str, text: str) -> int:
        """A duration in microseconds, such as that of 12ms."""
        return parse_duration(option_flag, text)


for penalty in (Params, Macs, MeasuredLatency):
    REGULARIZERS.add(penalty.name, penalty)
