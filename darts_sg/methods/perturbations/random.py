"""The random perturbation of SDARTS-RS."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_sg.errors import UsageError
from darts_sg.methods.perturbations import PERTURBATIONS, Perturbation, project, refuse_independent
from darts_sg.methods.relaxations import Relaxation
from darts_sg.networks.supernet import Mixing


@dataclass(frozen=True)
class UniformNoise(Perturbation):
    """Uniform noise of up to epsilon is added to each mixing weight (SDARTS-RS), growing linearly to epsilon_end.

    Chen and Hsieh, "Stabilizing Differentiable Architecture Search via Perturbation-based Regularization", ICML 2020,
    section 4.1, with the schedule and the projection of the authors' code: sums are clipped to [0, 1] and normalised
    for each edge; an edge on which nothing is left keeps its strongest operation. Edge weights are not perturbed.
    """

    epsilon: float = 0.03
    epsilon_end: float = 0.3

    def __post_init__(self) -> None:
        for name in ("epsilon", "epsilon_end"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} must be at least 0, found {getattr(self, name)}")

    def refuse(self, relaxation: Relaxation) -> None:
        refuse_independent(relaxation)

    def __call__(
        self, mixing: Mixing, loss: Callable[[Mixing], Tensor], progress: Tensor, generator: torch.Generator
    ) -> Mixing:
        epsilon = self.epsilon + (self.epsilon_end - self.epsilon) * progress
        normal, reduce = (self._perturbed(weights, epsilon, generator) for weights in (mixing.normal, mixing.reduce))
        return mixing._replace(normal=normal, reduce=reduce)

    def _perturbed(self, weights: Tensor, epsilon: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.empty_like(weights).uniform_(-1, 1, generator=generator) * epsilon
        return project(weights + noise, weights)


PERTURBATIONS.add("random", UniformNoise)
