"""No auxiliary skip."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from darts_sg.methods.auxiliary_skips import AUXILIARY_SKIPS, AuxiliarySkip


@dataclass(frozen=True)
class NoAuxiliarySkip(AuxiliarySkip):
    """Edges have their candidate operations only."""

    needed: ClassVar[bool] = False

    def __call__(self, epochs_done: Tensor) -> None:
        return None


AUXILIARY_SKIPS.add("none", NoAuxiliarySkip)
