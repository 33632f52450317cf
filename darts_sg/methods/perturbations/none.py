"""No perturbation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_sg.methods.perturbations import PERTURBATIONS, Perturbation
from darts_sg.networks.supernet import Mixing


@dataclass(frozen=True)
class Unperturbed(Perturbation):
    """The weights see the mixing weights as they are."""

    def __call__(
        self, mixing: Mixing, loss: Callable[[Mixing], Tensor], progress: Tensor, generator: torch.Generator
    ) -> Mixing:
        return mixing


PERTURBATIONS.add("none", Unperturbed)
