"""A relaxation: a softmax that sharpens as the search goes on.

    python search.py --plugin examples/plugins/sharpened_softmax.py --relaxation sharpened:temperature_end=0.2

Mixing weights that stay soft to the end leave a gap between the supernet and the derived cell. Here the temperature
falls geometrically from 1 to `temperature_end`, as in ASAP (Noy et al., AISTATS 2020, section 3.1) without its pruning.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from darts_sg.errors import UsageError
from darts_sg.methods.relaxations import RELAXATIONS, Relaxation


@dataclass(frozen=True)
class Sharpened(Relaxation):
    """softmax(alpha / T), T falling geometrically from 1 to temperature_end.

    The expected weights are softmax(alpha): the derived genotype depends on the order of the alphas alone.
    """

    temperature_end: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.temperature_end <= 1:
            raise UsageError(f"temperature_end must be above 0 and at most 1, found {self.temperature_end}")

    def sample(self, alphas: Tensor, progress: Tensor, drawn: Tensor | None) -> Tensor:
        temperature = (math.log(self.temperature_end) * progress).exp()  # a tensor: progress changes in a CUDA graph
        return (alphas / temperature).softmax(dim=-1)

    def expected(self, alphas: Tensor) -> Tensor:
        return alphas.softmax(dim=-1)


RELAXATIONS.add("sharpened", Sharpened)
