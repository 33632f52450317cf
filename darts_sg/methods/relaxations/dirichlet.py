"""The Dirichlet relaxation of DrNAS: each step mixes with one sample, whose spread the alphas learn, too."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_sg.methods.relaxations import RELAXATIONS, Relaxation


@dataclass(frozen=True)
class Dirichlet(Relaxation):
    """A sample of Dirichlet(elu(alpha) + 1) for each edge and step, with its pathwise gradient (DrNAS).

    Chen et al., "DrNAS: Dirichlet Neural Architecture Search", ICLR 2021, section 3.2. Expected weights are the mean of
    the distribution, by which the paper derives. The authors' code takes softmax(alpha), which chooses the same
    operation on an edge but may rank edges differently.
    """

    def draw(self, alphas: Tensor, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The sample itself: its gradient is computed from sample and concentration, not from the noise behind it."""
        return torch._sample_dirichlet(concentration(alphas), generator=generator)

    def sample(self, alphas: Tensor, progress: Tensor, drawn: Tensor | None) -> Tensor:
        return _Pathwise.apply(concentration(alphas), drawn)

    def expected(self, alphas: Tensor) -> Tensor:
        parameters = concentration(alphas)
        return parameters / parameters.sum(dim=-1, keepdim=True)


def concentration(alphas: Tensor) -> Tensor:
    """The parameters of the distribution, elu(alpha) + 1, kept above 0 where alpha is so low that it rounds to 0."""
    return (F.elu(alphas) + 1).clamp_min(torch.finfo(alphas.dtype).eps)


class _Pathwise(torch.autograd.Function):
    """Returns the sample that was drawn; the backward pass is that of `torch.distributions.Dirichlet.rsample`."""

    @staticmethod
    def forward(ctx: Any, parameters: Tensor, drawn: Tensor) -> Tensor:
        ctx.save_for_backward(parameters, drawn)
        return drawn.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        parameters, drawn = ctx.saved_tensors
        [gradient] = gradients
        total = parameters.sum(dim=-1, keepdim=True).expand_as(parameters)
        by_parameter = torch._dirichlet_grad(drawn, parameters, total)
        return by_parameter * (gradient - (drawn * gradient).sum(dim=-1, keepdim=True)), None


RELAXATIONS.add("dirichlet", Dirichlet)
