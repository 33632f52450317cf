"""The rule of SNAS."""

from dataclasses import dataclass

from darts_sg.derive import connected_cell, strengths
from darts_sg.genotype import Cell
from darts_sg.methods.selection import SELECTIONS, Searched, Selection


@dataclass(frozen=True)
class EveryEdge(Selection):
    """The strongest operation of every edge; an edge is left out where that is `none` (SNAS).

    Xie et al., "SNAS: Stochastic Neural Architecture Search", ICLR 2019, with `none` as in the authors' code: nodes
    have from 0 edges to one from each state before them. A node without edges is left out of the cell, and so are the
    edges that leave it; a cell in which `none` wins everywhere keeps the strongest other operation on an edge from
    one of its inputs.
    """

    def __call__(self, searched: Searched) -> tuple[Cell, Cell]:
        names, found = searched.operations, []
        for strength in strengths(searched.mixing):
            best = strength.argmax(axis=1).tolist()  # (num_edges,)
            kept = {edge: o for edge, o in enumerate(best) if names[o] != "none"}
            found.append(connected_cell(kept, strength, names))
        return found[0], found[1]


SELECTIONS.add("every-edge", EveryEdge)
