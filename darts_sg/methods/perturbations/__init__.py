"""Perturbations: what the weights' step mixes with. Each lives in a file of this package and registers itself."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from darts_sg.errors import UsageError
from darts_sg.methods.parts import import_parts
from darts_sg.methods.relaxations import Relaxation
from darts_sg.networks.supernet import Mixing
from darts_sg.registry import Registry


class Perturbation:
    """Base class of the perturbations: a frozen dataclass whose fields are its options.

    Only the step of the weights sees the perturbed mixing weights; the alphas' step, evaluation and derivation do not.
    """

    attacks: ClassVar[bool] = False
    """Whether it searches by the loss and its gradient. It then sees the supernet in eval mode with frozen weights."""

    def refuse(self, relaxation: Relaxation) -> None:
        """UsageError if the perturbation has no meaning with this relaxation."""

    def __call__(
        self, mixing: Mixing, loss: Callable[[Mixing], Tensor], progress: Tensor, generator: torch.Generator
    ) -> Mixing:
        """The mixing weights of the weights' step.

        mixing: those of the relaxation, without gradient. loss: the loss of the training batch under other mixing
        weights, for adversarial perturbations; with several processes its value and its gradient in the mixing weights
        are those of the whole batch. progress: the share of the search that is done, a scalar tensor on the
        device. generator: random numbers on the device.
        """
        raise NotImplementedError


def project(moved: Tensor, weights: Tensor) -> Tensor:
    """Perturbed mixing weights as distributions: clipped to [0, 1], then divided by their sum for each edge.

    An edge on which nothing is left keeps its strongest operation in `weights`, those before the perturbation. The
    authors' code of SDARTS does the same.
    """
    moved = moved.clamp(0, 1)
    total = moved.sum(dim=-1, keepdim=True)
    strongest = torch.zeros_like(weights).scatter_(-1, weights.argmax(dim=-1, keepdim=True), 1.0)
    return torch.where(total > 0, moved / total.clamp_min(torch.finfo(total.dtype).tiny), strongest)


def refuse_independent(relaxation: Relaxation) -> None:
    """UsageError for a relaxation whose mixing weights of an edge do not sum to one, as the perturbed ones do."""
    if not relaxation.sums_to_one:
        raise UsageError(
            "perturbed mixing weights sum to one on each edge, and those of this relaxation do not; leave "
            "--perturbation out, or choose another --relaxation"
        )


PERTURBATIONS: Registry[type[Perturbation]] = Registry("perturbation")

import_parts(__name__)
