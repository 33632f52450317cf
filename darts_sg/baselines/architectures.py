"""Random architectures of a space, and their mutations."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from darts_sg.baselines import Cells, Problem
from darts_sg.derive import num_edges, random_cell
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS, Cell, Edge


def random_cells(problem: Problem, generator: np.random.Generator) -> Cells:
    """Two cells drawn uniformly: two different states before each node, and an operation other than `none` on each."""
    tables = problem.allowed or (None, None)
    return Cells(*(random_cell(problem.num_nodes, problem.operations, generator, table) for table in tables))


def mutate(problem: Problem, cells: Cells, generator: np.random.Generator) -> Cells:
    """The cells with one edge changed: another operation, or another state as its input, one as likely as the other.

    Real et al., "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019, section 3.2, without the
    mutation that changes nothing. The two inputs of a node stay different, as in the space of DARTS. Raises UsageError
    if the space has one architecture only.
    """
    kinds: list[Callable[[Problem, str, Cell, int, int], list[Edge]]] = [_other_operations, _other_states]
    generator.shuffle(kinds)
    for others in kinds:
        places = [
            (title, node, i, found)
            for title, cell in cells._asdict().items()
            for node, edges in enumerate(cell.nodes)
            for i in range(len(edges))
            if (found := others(problem, title, cell, node, i))
        ]
        if places:
            title, node, i, found = places[generator.integers(len(places))]
            cell = getattr(cells, title)
            edges = list(cell.nodes[node])
            edges[i] = found[generator.integers(len(found))]
            nodes = (*cell.nodes[:node], tuple(sorted(edges, key=lambda edge: edge.state)), *cell.nodes[node + 1 :])
            return cells._replace(**{title: Cell(nodes, cell.concat)})
    raise UsageError("the space has one architecture only, so nothing can be mutated; add an operation or nodes")


def from_plain(plain: dict[str, Any]) -> Cells:
    """The architecture that `as_plain` wrote."""
    return Cells(*(_cell([[Edge(*edge) for edge in node] for node in plain[name]]) for name in Cells._fields))


def _cell(nodes: Sequence[Sequence[Edge]]) -> Cell:
    return Cell(tuple(map(tuple, nodes)), tuple(range(NUM_INPUTS, NUM_INPUTS + len(nodes))))


def _other_operations(problem: Problem, title: str, cell: Cell, node: int, i: int) -> list[Edge]:
    edge = cell.nodes[node][i]
    names = _choices(problem, title, node, edge.state)
    return [Edge(name, edge.state) for name in names if name != edge.operation]


def _other_states(problem: Problem, title: str, cell: Cell, node: int, i: int) -> list[Edge]:
    """The edge from another state; the operation stays, so that state's edge must have it."""
    taken, name = {edge.state for edge in cell.nodes[node]}, cell.nodes[node][i].operation
    free = [state for state in range(NUM_INPUTS + node) if state not in taken]
    return [Edge(name, state) for state in free if name in _choices(problem, title, node, state)]


def _choices(problem: Problem, title: str, node: int, state: int) -> list[str]:
    """The operations other than `none` of an edge."""
    names = problem.operations
    if problem.allowed is None:
        return [name for name in names if name != "none"]
    table = problem.allowed[Cells._fields.index(title)][num_edges(node) + state]
    return [name for name, has in zip(names, table, strict=True) if has and name != "none"]
