"""The skip limit of P-DARTS."""

from dataclasses import dataclass

import numpy as np

from darts_sg.derive import derive_cell, num_edges, strengths
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS, Cell
from darts_sg.methods.selection import SELECTIONS, Searched, Selection

SKIP = "skip_connect"
GIVEN_UP = -1.0  # below every mixing weight


@dataclass(frozen=True)
class SkipLimit(Selection):
    """argmax, but while the normal cell has more than `most` skip connections its weakest one is given up.

    Chen et al., "Progressive Differentiable Architecture Search" (P-DARTS), ICCV 2019, section 3.3, as in the authors'
    code: the chosen skip_connect of the smallest mixing weight is ruled out, and the cell is derived again. Greedy,
    unlike `bounded:max_skips=2`: the edge takes its next operation or loses its place to another edge of its node. The
    reduction cell is not limited. An edge that has no other operation keeps its skip connection.
    """

    most: int = 2

    def __post_init__(self) -> None:
        if self.most < 0:
            raise UsageError(f"most must be at least 0, found {self.most}")

    def __call__(self, searched: Searched) -> tuple[Cell, Cell]:
        operations = searched.operations
        normal, reduce = strengths(searched.mixing)
        if searched.allowed is not None:
            normal = np.where(searched.allowed[0], normal, GIVEN_UP - 1)
        cell = derive_cell(normal, operations)
        if not set(operations) - {"none", SKIP}:
            return cell, derive_cell(reduce, operations)  # nothing could take the place of a skip
        skip = operations.index(SKIP) if SKIP in operations else -1
        while len(_skipped_edges(cell)) > self.most:
            skips = [edge for edge in _skipped_edges(cell) if normal[edge, skip] > GIVEN_UP]
            if not skips:
                break  # the others are on edges that have no other operation
            normal[min(skips, key=lambda edge: float(normal[edge, skip])), skip] = GIVEN_UP
            cell = derive_cell(normal, operations)
        return cell, derive_cell(reduce, operations)


def _skipped_edges(cell: Cell) -> list[int]:
    """The rows of the mixing weights from which the cell chose a skip connection."""
    return [num_edges(state - NUM_INPUTS) + edge.state for state, edge in cell.edges() if edge.operation == SKIP]


SELECTIONS.add("skip-limit", SkipLimit)
