"""The auxiliary skip of DARTS- under several schedules of its factor β.

Chu et al., "DARTS-: Robustly Stepping out of Performance Collapse Without Indicators", ICLR 2021, section 3.2. As in
the authors' code β changes from epoch to epoch, so that the last of E epochs of the linear schedule has β = 1 / E.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_sg.errors import UsageError
from darts_sg.methods.auxiliary_skips import AUXILIARY_SKIPS, AuxiliarySkip


@dataclass(frozen=True)
class Scheduled(AuxiliarySkip):
    """Base class of the schedules; `beta` is the factor of the first epoch."""

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UsageError(f"beta must be above 0, found {self.beta}")


@dataclass(frozen=True)
class Linear(Scheduled):
    """The factor falls on a straight line from beta to 0: DARTS-."""

    def __call__(self, epochs_done: Tensor) -> Tensor:
        return self.beta * (1 - epochs_done)


@dataclass(frozen=True)
class Cosine(Scheduled):
    """The factor falls on half a cosine from beta to 0."""

    def __call__(self, epochs_done: Tensor) -> Tensor:
        return self.beta * (1 + torch.cos(math.pi * epochs_done)) / 2


@dataclass(frozen=True)
class Constant(Scheduled):
    """The factor stays beta, also in the network that is evaluated last."""

    def __call__(self, epochs_done: Tensor) -> Tensor:
        return torch.full_like(epochs_done, self.beta)


for name, schedule in (("linear", Linear), ("cosine", Cosine), ("constant", Constant)):
    AUXILIARY_SKIPS.add(name, schedule)
