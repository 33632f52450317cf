"""What is added to the loss of the alphas, so that a search heads for small networks."""

from typing import NamedTuple

import torch
from torch import Tensor

from darts_sg.derive import Costs, num_nodes_of
from darts_sg.genotype import NUM_INPUTS

KEPT = 2  # edges that a node of a derived cell keeps


def expected_cost(normal: Tensor, reduce: Tensor, operations: tuple[str, ...], costs: Costs) -> Tensor:
    """The expected cost of a genotype that is drawn by the mixing weights: a scalar, differentiable in them.

    normal, reduce: (num_edges, num_operations). Each node draws two of its incoming edges, all pairs alike, and each
    of these an operation other than `none` with a probability in proportion to its mixing weight. Since a cost is a
    sum over the edges that are drawn, the expectation is exact: every edge of node i counts 2 / (2 + i) times the mean
    cost of its operations.
    """
    total = normal.new_tensor(float(costs.fixed))
    choosable = torch.tensor([name != "none" for name in operations], device=normal.device)
    for weights, table in ((normal, costs.normal), (reduce, costs.reduce)):
        drawn = weights * choosable
        drawn = drawn / drawn.sum(dim=1, keepdim=True)
        num_nodes = num_nodes_of(len(weights))
        chance = torch.cat([drawn.new_full((NUM_INPUTS + i,), KEPT / (NUM_INPUTS + i)) for i in range(num_nodes)])
        total = total + (drawn * torch.as_tensor(table, device=drawn.device).to(drawn)).sum(dim=1) @ chance
    return total


class Penalty(NamedTuple):
    """weight · expected / uniform without a target, weight · max(0, expected / target - 1) with one.

    uniform: the expected cost with even mixing weights, where a search starts.
    """

    name: str
    weight: float
    operations: tuple[str, ...]
    costs: Costs
    target: int | None = None

    def expected(self, normal: Tensor, reduce: Tensor) -> Tensor:
        return expected_cost(normal, reduce, self.operations, self.costs)

    def __call__(self, normal: Tensor, reduce: Tensor) -> Tensor:
        if self.target is not None:
            return self.weight * torch.relu(self.expected(normal, reduce) / self.target - 1)
        even = torch.ones_like(normal), torch.ones_like(reduce)
        return self.weight * self.expected(normal, reduce) / self.expected(*even)
