"""The rule of DARTS."""

from dataclasses import dataclass

from darts_sg.derive import derive_cell, strengths
from darts_sg.genotype import Cell
from darts_sg.methods.selection import SELECTIONS, Searched, Selection


@dataclass(frozen=True)
class Argmax(Selection):
    """The strongest operation of each edge, and the two strongest edges of each node.

    DARTS paper, section 2.4; `none` is not chosen.
    """

    def __call__(self, searched: Searched) -> tuple[Cell, Cell]:
        normal, reduce = (derive_cell(weights, searched.operations) for weights in strengths(searched.mixing))
        return normal, reduce


SELECTIONS.add("argmax", Argmax)
