"""The Gumbel-softmax relaxation: each step mixes with one random sample, sharper as the search goes on.

Maddison et al., "The Concrete Distribution", ICLR 2017, equation 10; Jang et al., "Categorical Reparameterization with
Gumbel-Softmax", ICLR 2017, section 2. Soft samples are those of SNAS (Xie et al., ICLR 2019), hard ones with the
straight-through gradient those of GDAS (Dong and Yang, CVPR 2019, section 3.2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from darts_sg.methods.relaxations import RELAXATIONS, Relaxation
from darts_sg.methods.relaxations.one_hot import at_progress, check_gradient, check_temperatures, one_hot


@dataclass(frozen=True)
class Gumbel(Relaxation):
    """Gumbel-softmax: softmax((alpha + Gumbel noise) / temperature), one sample a step.

    The temperature falls linearly over the search, from `temperature` to `temperature_end`. `hard` rounds a sample to
    its largest operation in the forward pass; its gradient stays that of the soft sample (straight-through).
    Expected weights are softmax(alpha): the probability of each operation to be the largest of a sample, at any
    temperature.

    gradient, for hard samples: `chosen` computes the sampled operation of each edge alone, so that the loss reaches the
    alphas through the probability of that operation (the GDAS of the authors' NASNet cells); `all` computes every
    operation in the step of the alphas, as the straight-through estimator is defined.
    """

    temperature: float = 1.0
    temperature_end: float = 0.1
    hard: bool = False
    gradient: str = "chosen"

    def __post_init__(self) -> None:
        check_temperatures(self)
        check_gradient(self.gradient)

    @property
    def is_one_hot(self) -> bool:
        return self.hard

    @property
    def needs_all_operations(self) -> bool:
        return self.gradient == "all"

    def draw(self, alphas: Tensor, progress: Tensor, generator: torch.Generator) -> Tensor:
        """Standard Gumbel noise: the negative logarithm of exponential random numbers."""
        numbers = torch.empty_like(alphas).exponential_(generator=generator)
        return -numbers.clamp_min(torch.finfo(numbers.dtype).tiny).log()

    def sample(self, alphas: Tensor, progress: Tensor, drawn: Tensor | None) -> Tensor:
        assert drawn is not None
        soft = ((alphas + drawn) / at_progress(self, progress)).softmax(dim=-1)
        if not self.hard:
            return soft
        return one_hot(soft) + (soft - soft.detach())  # exactly one-hot in the forward pass

    def expected(self, alphas: Tensor) -> Tensor:
        return alphas.softmax(dim=-1)


RELAXATIONS.add("gumbel", Gumbel)
