"""The adversarial perturbation of SDARTS-ADV."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from darts_sg.errors import UsageError
from darts_sg.methods.perturbations import PERTURBATIONS, Perturbation, project, refuse_independent
from darts_sg.methods.relaxations import Relaxation
from darts_sg.networks.supernet import Mixing


@dataclass(frozen=True)
class Adversarial(Perturbation):
    """The mixing weights within epsilon that raise the training loss most (SDARTS-ADV), by projected gradient ascent.

    Chen and Hsieh, "Stabilizing Differentiable Architecture Search via Perturbation-based Regularization", ICML 2020,
    section 4.2, with the settings of the authors' code: `steps` steps of 2 · epsilon / steps along the sign of the
    gradient, from a uniform random start. After each step the perturbation is limited to ±epsilon, then the mixing
    weights are clipped to [0, 1] and normalised for each edge. If the result does not raise the loss, the weights see
    the mixing weights as they are. epsilon grows linearly to epsilon_end; edge weights are not perturbed. The attack
    takes `steps` + 2 forward and `steps` backward passes in eval mode, which leaves running statistics alone.
    """

    attacks: ClassVar[bool] = True

    epsilon: float = 0.03
    epsilon_end: float = 0.3
    steps: int = 7

    def __post_init__(self) -> None:
        for name in ("epsilon", "epsilon_end"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} must be at least 0, found {getattr(self, name)}")
        if self.steps < 1:
            raise UsageError(f"steps must be at least 1, found {self.steps}")

    def refuse(self, relaxation: Relaxation) -> None:
        refuse_independent(relaxation)

    def __call__(
        self, mixing: Mixing, loss: Callable[[Mixing], Tensor], progress: Tensor, generator: torch.Generator
    ) -> Mixing:
        epsilon = self.epsilon + (self.epsilon_end - self.epsilon) * progress
        weights = mixing.normal, mixing.reduce
        moved = [self._start(each, epsilon, generator) for each in weights]
        for _ in range(self.steps):
            with torch.enable_grad():
                inputs = [each.detach().requires_grad_() for each in moved]
                gradients = torch.autograd.grad(loss(self._replaced(mixing, inputs)), inputs, materialize_grads=True)
            moved = [
                self._limited(each + 2 / self.steps * epsilon * gradient.sign(), before, epsilon)
                for each, gradient, before in zip(moved, gradients, weights, strict=True)
            ]
        found = self._replaced(mixing, moved)
        with torch.no_grad():
            rose = loss(found) > loss(mixing)  # stays on the device
        kept = [torch.where(rose, new, old) for new, old in zip(found[:2], weights, strict=True)]
        return self._replaced(mixing, kept)

    def _start(self, weights: Tensor, epsilon: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.empty_like(weights).uniform_(-1, 1, generator=generator) * epsilon
        return self._limited(weights + noise, weights, epsilon)

    @staticmethod
    def _limited(moved: Tensor, weights: Tensor, epsilon: Tensor) -> Tensor:
        """The distributions that come from mixing weights within ±epsilon of those before the perturbation."""
        return project(weights + (moved - weights).clamp(-epsilon, epsilon), weights)

    @staticmethod
    def _replaced(mixing: Mixing, weights: list[Tensor]) -> Mixing:
        normal, reduce = weights
        return mixing._replace(normal=normal, reduce=reduce)


PERTURBATIONS.add("adversarial", Adversarial)
