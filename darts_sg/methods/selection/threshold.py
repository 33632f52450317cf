"""The threshold of FairDARTS."""

from dataclasses import dataclass

from darts_sg.derive import connected_cell, derive_cell, num_edges, strengths
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS, Cell
from darts_sg.methods.selection import SELECTIONS, Searched, Selection


@dataclass(frozen=True)
class Threshold(Selection):
    """argmax, but an edge is kept only if its mixing weight is at least `least`: nodes have 0 to 2 edges (FairDARTS).

    Chu et al., "Fair DARTS", ECCV 2020, section 4.3. A node without edges is left out of the cell, and so are the edges
    that leave it. A cell in which nothing reaches the threshold, as at the start of a search, keeps the strongest edge
    from one of its inputs, because an empty cell is no network. With edge normalisation edges are ranked by the product
    with their edge weight; the threshold applies to the mixing weight of the operation.
    """

    least: float = 0.85

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise UsageError(f"least must be from 0 to 1, found {self.least}")

    def __call__(self, searched: Searched) -> tuple[Cell, Cell]:
        names, found = searched.operations, []
        for title, strength in zip(("normal", "reduce"), strengths(searched.mixing), strict=True):
            cell = derive_cell(strength, names)
            chosen = {
                num_edges(state - NUM_INPUTS) + edge.state: names.index(edge.operation) for state, edge in cell.edges()
            }
            kept = {edge: o for edge, o in chosen.items() if searched.mixing[title][edge, o] >= self.least}
            found.append(connected_cell(kept, strength, names))
        return found[0], found[1]


SELECTIONS.add("threshold", Threshold)
