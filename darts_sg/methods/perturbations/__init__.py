"""Perturbations: what the weights' step mixes with. Each lives in a file of this package and registers itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from darts_sg.methods.parts import import_parts
from darts_sg.networks.supernet import Mixing
from darts_sg.registry import Registry


class Perturbation:
    """Base class of the perturbations: a frozen dataclass whose fields are its options.

    Only the step of the weights sees the perturbed mixing weights; the alphas' step, evaluation and derivation do not.
    """

    def __call__(
        self, mixing: Mixing, loss: Callable[[Mixing], Tensor], progress: Tensor, generator: torch.Generator
    ) -> Mixing:
        """The mixing weights of the weights' step.

        mixing: those of the relaxation, without gradient. loss: the loss of the training batch under other mixing
        weights, for adversarial perturbations. progress: the share of the search that is done, a scalar tensor on the
        device. generator: random numbers on the device.
        """
        raise NotImplementedError


PERTURBATIONS: Registry[type[Perturbation]] = Registry("perturbation")

import_parts(__name__)
