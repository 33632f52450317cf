"""The best cells within bounds."""

from dataclasses import dataclass
from typing import ClassVar

from darts_sg.derive import derive_bounded, strengths
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell
from darts_sg.methods.selection import SELECTIONS, Searched, Selection


@dataclass(frozen=True)
class Bounded(Selection):
    """The largest sum of mixing weights within --target-params, --target-macs and max_skips, exactly.

    An integer program (darts_sg.derive.derive_bounded). max_skips bounds the skip connections of the normal cell.
    """

    keeps_bounds: ClassVar[bool] = True
    max_skips: int | None = None

    def __post_init__(self) -> None:
        if self.max_skips is not None and self.max_skips < 0:
            raise UsageError(f"max_skips must be at least 0, found {self.max_skips}")

    def __call__(self, searched: Searched) -> tuple[Cell, Cell]:
        weights = strengths(searched.mixing)
        return derive_bounded(*weights, searched.operations, searched.bounds, self.max_skips, searched.allowed)


SELECTIONS.add("bounded", Bounded)
