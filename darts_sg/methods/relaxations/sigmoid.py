"""The relaxation of FairDARTS: the operations of an edge do not compete."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from darts_sg.methods.relaxations import RELAXATIONS, Relaxation


@dataclass(frozen=True)
class Sigmoid(Relaxation):
    """sigmoid(alpha) for each operation by itself (FairDARTS); alphas start at 0.

    Chu et al., "Fair DARTS: Eliminating Unfair Advantages in Differentiable Architecture Search", ECCV 2020, section
    4.1. All mixing weights start at 1/2, and those of an edge need not sum to one. Nothing is random: a sample is the
    expected weights.
    """

    sums_to_one: ClassVar[bool] = False

    def initial(self, num_edges: int, num_operations: int) -> Tensor:
        return torch.zeros(num_edges, num_operations)

    def sample(self, alphas: Tensor, progress: Tensor, drawn: Tensor | None) -> Tensor:
        return alphas.sigmoid()

    def expected(self, alphas: Tensor) -> Tensor:
        return alphas.sigmoid()


RELAXATIONS.add("sigmoid", Sigmoid)
