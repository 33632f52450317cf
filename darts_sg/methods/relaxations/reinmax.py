"""The ReinMax estimator: one-hot samples whose gradient is accurate to second order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from darts_sg.methods.relaxations import RELAXATIONS, Relaxation
from darts_sg.methods.relaxations.one_hot import at_progress, check_gradient, check_temperatures, one_hot


@dataclass(frozen=True)
class ReinMax(Relaxation):
    """One operation an edge, drawn from softmax(alpha), with a gradient of second order (ReinMax).

    Liu et al., "Bridging Discrete and Backpropagation: Straight-Through and Beyond", NeurIPS 2023 (arXiv 2304.08612),
    section 4.2: with p0 = softmax(alpha), D drawn from p0 and p1 = (D + softmax(alpha / temperature)) / 2, the gradient
    is that of 2 · softmax(ln p1 + alpha - sg(alpha)) - p0 / 2, sg being the value without a gradient. The temperature
    enters the gradient only; it goes linearly from `temperature` to `temperature_end`. Expected weights are
    softmax(alpha).

    gradient: see `Gumbel`. The estimator is accurate to second order with `all` only.
    """

    temperature: float = 1.0
    temperature_end: float = 1.0
    gradient: str = "chosen"

    def __post_init__(self) -> None:
        check_temperatures(self)
        check_gradient(self.gradient)

    @property
    def is_one_hot(self) -> bool:
        return True

    @property
    def needs_all_operations(self) -> bool:
        return self.gradient == "all"

    def draw(self, alphas: Tensor, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The sample itself, one-hot rows: the largest of alphas with Gumbel noise is drawn from softmax(alpha)."""
        numbers = torch.empty_like(alphas).exponential_(generator=generator)
        return one_hot(alphas - numbers.clamp_min(torch.finfo(numbers.dtype).tiny).log())

    def sample(self, alphas: Tensor, progress: Tensor, drawn: Tensor | None) -> Tensor:
        assert drawn is not None
        p0 = alphas.softmax(dim=-1)
        tempered = (alphas.detach() / at_progress(self, progress)).softmax(dim=-1)
        p1 = ((drawn + tempered) / 2).clamp_min(torch.finfo(drawn.dtype).tiny)
        corrected = (p1.log() + (alphas - alphas.detach())).softmax(dim=-1)
        total = 2 * corrected - p0 / 2
        return drawn + (total - total.detach())  # exactly one-hot in the forward pass

    def expected(self, alphas: Tensor) -> Tensor:
        return alphas.softmax(dim=-1)


RELAXATIONS.add("reinmax", ReinMax)
