"""From mixing weights to a genotype (DARTS paper, section 2.4). Pure functions of arrays."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from darts_sg.genotype import NUM_INPUTS, Cell, Edge

Array = NDArray[np.floating]


def num_edges(num_nodes: int) -> int:
    """Edges of a cell whose node i takes all of the 2 + i states before it: 14 for 4 nodes."""
    return sum(NUM_INPUTS + i for i in range(num_nodes))


def num_nodes_of(edges: int) -> int:
    """The number of nodes of a cell with so many edges; ValueError if there is none such."""
    nodes = 0
    while num_edges(nodes) < edges:
        nodes += 1
    if num_edges(nodes) != edges:
        raise ValueError(f"{edges} edges belong to no number of nodes")
    return nodes


def derive_cell(
    weights: Array, operations: Sequence[str], edge_weights: Array | None = None, num_kept: int = 2
) -> Cell:
    """The cell that keeps, for each node, its `num_kept` strongest edges with the strongest operation each.

    weights: (num_edges, num_operations) mixing weights, edges node by node, each from states 0 up.
    edge_weights: (num_edges,) weights that multiply them (PC-DARTS, section 3.3), or None.
    An edge is as strong as its strongest operation other than `none`. Of equal weights, the lower state and the
    earlier operation win. All nodes are joined at the output.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if edge_weights is not None:
        weights = weights * np.asarray(edge_weights, dtype=np.float64)[:, None]
    choices = [i for i, name in enumerate(operations) if name != "none"]
    best = np.array(choices)[weights[:, choices].argmax(axis=1)]  # (num_edges,) operation index
    strength = weights[np.arange(len(weights)), best]
    nodes = []
    start = 0
    for i in range(num_nodes_of(len(weights))):
        states = range(NUM_INPUTS + i)
        kept = sorted(sorted(states, key=lambda s: -strength[start + s])[:num_kept])
        nodes.append(tuple(Edge(operations[best[start + s]], s) for s in kept))
        start += NUM_INPUTS + i
    return Cell(tuple(nodes), tuple(range(NUM_INPUTS, NUM_INPUTS + len(nodes))))
