"""The relaxation of DARTS and PC-DARTS."""

from dataclasses import dataclass

from torch import Tensor

from darts_sg.methods.relaxations import RELAXATIONS, Relaxation


@dataclass(frozen=True)
class Softmax(Relaxation):
    """Softmax over the operations of each edge.

    DARTS paper, equation 2. Nothing is random: a sample is the expected weights.
    """

    def sample(self, alphas: Tensor, progress: Tensor, drawn: Tensor | None) -> Tensor:
        return alphas.softmax(dim=-1)

    def expected(self, alphas: Tensor) -> Tensor:
        return alphas.softmax(dim=-1)


RELAXATIONS.add("softmax", Softmax)
