"""The zero-one loss of FairDARTS."""

from dataclasses import dataclass

import torch
from torch import Tensor

from darts_sg.errors import UsageError
from darts_sg.methods.mixing import Alphas
from darts_sg.methods.regularizers import REGULARIZERS, Problem, Regularizer, refuse_edge_lists
from darts_sg.methods.relaxations import Relaxation
from darts_sg.networks.supernet import Mixing


@dataclass(frozen=True)
class ZeroOne(Regularizer):
    """The zero-one loss of FairDARTS, -weight · mean((sigmoid(alpha) - 1/2)²), which drives weights to 0 or 1.

    Chu et al., "Fair DARTS", ECCV 2020, section 4.2: L_0-1, the mean being over all entries of both cell types.
    """

    weight: float = 10.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UsageError(f"weight must be at least 0, found {self.weight}")

    def prepare(self, problem: Problem) -> "ZeroOne":
        refuse_edge_lists(problem)
        return self

    def refuse(self, relaxation: Relaxation) -> None:
        if relaxation.sums_to_one:
            raise UsageError(
                "zero-one drives independent mixing weights to 0 or 1, and those of this relaxation sum to one; add "
                "--relaxation sigmoid"
            )

    def __call__(self, alphas: Alphas, mixing: Mixing, progress: Tensor) -> Tensor:
        both = torch.cat([alphas.alpha_normal, alphas.alpha_reduce])
        return -self.weight * (both.sigmoid() - 0.5).square().mean()


REGULARIZERS.add("zero-one", ZeroOne)
