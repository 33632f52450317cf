"""No auxiliary skip."""

from dataclasses import dataclass

from torch import Tensor

from darts_sg.methods.auxiliary_skips import AUXILIARY_SKIPS, AuxiliarySkip


@dataclass(frozen=True)
class NoAuxiliarySkip(AuxiliarySkip):
    """Edges have their candidate operations only."""

    def __call__(self, epochs_done: Tensor) -> None:
        return None

    @property
    def needed(self) -> bool:
        return False


AUXILIARY_SKIPS.add("none", NoAuxiliarySkip)
