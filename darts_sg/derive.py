"""Deriving cells from mixing weights (DARTS paper, section 2.4), also within bounds. Pure functions of arrays."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from darts_sg.errors import UsageError
from darts_sg.genotype import MOST_NODES, NUM_INPUTS, Cell, Edge, Genotype
from darts_sg.quantity import duration_text
from darts_sg.spaces import parse_space

Array = NDArray[np.floating]


def num_edges(num_nodes: int) -> int:
    """Number of edges of a cell whose node i takes all 2 + i states before it: 14 for 4 nodes."""
    return sum(NUM_INPUTS + i for i in range(num_nodes))


def num_nodes_of(edges: int) -> int:
    """Number of nodes of a cell with that many edges; ValueError if there is no such cell."""
    nodes = 0
    while num_edges(nodes) < edges:
        nodes += 1
    if num_edges(nodes) != edges:
        raise ValueError(f"{edges} edges belong to no number of nodes")
    return nodes


def derive_cell(
    weights: Array, operations: Sequence[str], edge_weights: Array | None = None, num_kept: int = 2
) -> Cell:
    """Keep the `num_kept` strongest edges of each node, each with its strongest operation.

    The strength of an edge is the weight of its strongest operation other than `none`. Ties go to the lower state and
    the earlier operation. All nodes are concatenated at the output.

    weights: mixing weights (num_edges, num_operations), edges node by node, each node's from state 0 up.
    edge_weights: factors of the edges (num_edges,) (PC-DARTS, section 3.3), or None.
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


def connected_cell(chosen: Mapping[int, int], strength: Array, operations: Sequence[str]) -> Cell:
    """The cell of some edges of a supernet's cell, without nodes that no edge reaches and the edges that leave them.

    Nodes keep their numbers; those that are left out have no edges and are not joined at the output. If none is
    left, the strongest choosable operation on an edge from one of the two inputs makes up the cell.

    chosen: the number of the operation by that of its edge. strength: (num_edges, num_operations).
    """
    num_nodes = num_nodes_of(len(strength))
    nodes: list[tuple[Edge, ...]] = []
    for i in range(num_nodes):
        reached = [s for s in range(NUM_INPUTS + i) if s < NUM_INPUTS or nodes[s - NUM_INPUTS]]
        edges = [(num_edges(i) + s, s) for s in reached]
        nodes.append(tuple(Edge(operations[chosen[e]], s) for e, s in edges if e in chosen))
    if not any(nodes):
        choices = [i for i, name in enumerate(operations) if name != "none"]
        places = [(num_edges(i) + s, o) for i in range(num_nodes) for s in range(NUM_INPUTS) for o in choices]
        edge, operation = max(places, key=lambda place: float(strength[place]))  # the first of equal ones
        node = max(i for i in range(num_nodes) if num_edges(i) <= edge)
        nodes[node] = (Edge(operations[operation], edge - num_edges(node)),)
    return Cell(tuple(nodes), tuple(NUM_INPUTS + i for i, edges in enumerate(nodes) if edges))


def random_cell(
    num_nodes: int,
    operations: Sequence[str],
    generator: np.random.Generator,
    allowed: NDArray[np.bool_] | None = None,
) -> Cell:
    """Draw a cell uniformly: two states before each node, and an operation other than `none` on each.

    Independent, identically distributed mixing weights favour no pair of states and no operation. allowed: which
    operations each edge has, (num_edges, num_operations); None for all. Edges with lists of different lengths are drawn
    uniformly, too: their strength is drawn apart from their operation. Raises UsageError for more than MOST_NODES
    nodes, or if there is no operation to choose.
    """
    if num_nodes > MOST_NODES:
        raise UsageError(f"{num_nodes} nodes: a cell has at most {MOST_NODES}")
    if not set(operations) - {"none"}:
        raise UsageError("the space has no operation other than none, so no cell can be drawn from it")
    weights = generator.random((num_edges(num_nodes), len(operations)))
    if allowed is not None:
        choosable = allowed & (np.array(operations) != "none")
        best = np.where(choosable, weights, -1).argmax(axis=1)
        weights = np.zeros_like(weights)
        weights[np.arange(len(weights)), best] = generator.random(len(weights))
    return derive_cell(weights, operations)


def random_genotype(space: str, num_nodes: int, seed: int, name: str) -> Genotype:
    """Draw both cells uniformly; see `random_cell`. seed: of the generator (numpy's default_rng).

    Raises UsageError if there is no such space, or if its edges have lists for another number of nodes.
    """
    found = parse_space(space)
    if found.num_nodes not in (None, num_nodes):
        raise UsageError(f"space {found.name} is one of {found.num_nodes} nodes; give --nodes {found.num_nodes}")
    generator = np.random.default_rng(seed)
    normal, reduce = (
        random_cell(num_nodes, found.operations, generator, allowed) for allowed in found.allowed or (None, None)
    )
    provenance = MappingProxyType({"kind": "random", "seed": seed})
    return Genotype(name, found.name, found.operations, normal, reduce, provenance)


def strengths(mixing: Mapping[str, Array]) -> tuple[Array, Array]:
    """The strengths that the (normal, reduction) cell is derived from, (num_edges, num_operations) each.

    mixing: the mixing weights `normal` and `reduce`. They are multiplied by the edge weights `edge_normal` and
    `edge_reduce`, (num_edges,), if there are any (PC-DARTS, section 3.3).
    """
    normal, reduce = (
        mixing[title] * mixing.get(f"edge_{title}", np.ones(len(mixing[title])))[:, None]
        for title in ("normal", "reduce")
    )
    return normal, reduce


def entropy(weights: Array) -> Array:
    """Entropy of the mixing weights of each edge, (num_edges, num_operations) to (num_edges,), in nats."""
    return -(weights * np.log(np.clip(weights, 1e-300, None))).sum(axis=1)


class Costs(NamedTuple):
    """Cost tables of derived networks in one unit, such as parameters: a fixed part and a term per chosen edge."""

    normal: NDArray[np.int64]
    """(num_edges, num_operations), summed over all normal cells of the network."""
    reduce: NDArray[np.int64]
    """The same for the reduction cells."""
    fixed: int
    """Cost of everything outside the edges."""
    size: str = ""
    """Size of the networks whose costs these are, for messages: C=36, 20 cells."""
    unit: str = ""
    """Unit of the costs: us (microseconds) for a latency, empty for a count."""

    def both(self) -> NDArray[np.int64]:
        """Both tables, (2 · num_edges, num_operations)."""
        return np.concatenate([self.normal, self.reduce])

    def of(self, cells: Sequence[Cell], operations: Sequence[str]) -> int:
        """The cost of the network built from a (normal, reduction) cell."""
        chosen = (
            table[num_edges(state - NUM_INPUTS) + edge.state, operations.index(edge.operation)]
            for table, cell in zip((self.normal, self.reduce), cells, strict=True)
            for state, edge in cell.edges()
        )
        return self.fixed + int(sum(chosen))


def amount(costs: Costs, value: int) -> str:
    """A cost for a message: 2,450,000, or with its unit 12.3 ms."""
    return duration_text(value) if costs.unit == "us" else f"{value:,}"


def at_size(costs: Costs) -> str:
    """` at C=36, 20 cells`, to stand behind a cost; empty if the size is unknown."""
    return f" at {costs.size}" if costs.size else ""


class Bound(NamedTuple):
    """An upper bound on a cost; `name` is for error messages."""

    name: str
    costs: Costs
    maximum: int


class Point(NamedTuple):
    """A point of a Pareto frontier: two cells, their cost, and the sum of the mixing weights they keep."""

    cost: int
    weight: float
    normal: Cell
    reduce: Cell


def kept_weight(weights: Sequence[Array], cells: Sequence[Cell], operations: Sequence[str]) -> float:
    """Sum of the mixing weights of the chosen edges.

    weights: (num_edges, num_operations) for the normal and the reduction cell.
    """
    return float(
        sum(
            table[num_edges(state - NUM_INPUTS) + edge.state, operations.index(edge.operation)]
            for table, cell in zip(weights, cells, strict=True)
            for state, edge in cell.edges()
        )
    )


def derive_bounded(
    normal: Array,
    reduce: Array,
    operations: Sequence[str],
    bounds: Sequence[Bound] = (),
    max_skips: int | None = None,
    allowed: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
) -> tuple[Cell, Cell]:
    """Find the (normal, reduction) cell with the largest sum of mixing weights within the bounds; two edges a node.

    Without bounds this is `derive_cell` for each cell. With bounds the maximum is exact, an integer program: costs are
    additive over the chosen edges.

    normal, reduce: (num_edges, num_operations), multiplied by edge weights if there are any. max_skips: bound on the
    skip_connects of the normal cell. allowed: which operations each edge of either cell has, (num_edges,
    num_operations); None for all. Raises UsageError if no pair of cells meets the bounds.
    """
    if not bounds and max_skips is None:
        return derive_cell(normal, operations), derive_cell(reduce, operations)
    weights = np.concatenate([np.asarray(normal, dtype=np.float64), np.asarray(reduce, dtype=np.float64)])
    rows, num_operations = weights.shape
    choosable = np.tile([float(name != "none") for name in operations], rows)
    if allowed is not None:
        choosable = choosable * np.concatenate(allowed).ravel()
    nodes = [
        [half * rows // 2 + edge for edge in range(num_edges(node), num_edges(node + 1))]
        for half in (0, 1)
        for node in range(num_nodes_of(rows // 2))
    ]
    from scipy import sparse  # imported here: takes half a second
    from scipy.optimize import Bounds, LinearConstraint, milp

    ones = np.ones((1, num_operations))
    one_per_edge = sparse.kron(sparse.eye(rows), ones)
    members = sparse.csr_matrix(
        (
            np.ones(sum(map(len, nodes))),
            (np.repeat(np.arange(len(nodes)), list(map(len, nodes))), list(itertools.chain(*nodes))),
        ),
        shape=(len(nodes), rows),
    )
    constraints = [
        LinearConstraint(one_per_edge, -np.inf, 1),  # at most one operation an edge
        LinearConstraint(sparse.kron(members, ones), 2, 2),  # exactly two edges a node
    ]
    if max_skips is not None:
        skips = np.zeros((rows, num_operations))
        skips[: rows // 2, [i for i, name in enumerate(operations) if name == "skip_connect"]] = 1
        constraints.append(LinearConstraint(skips.reshape(1, -1), -np.inf, max_skips))
    # Costs of millions beside weights below 1 are badly conditioned, so limits are scaled to 1. The solver keeps them
    # up to a tolerance; a solution that exceeds a bound by rounding is cut off by a limit that is smaller by 1.
    rooms = [bound.maximum - bound.costs.fixed for bound in bounds]
    while True:
        limits = [
            LinearConstraint(bound.costs.both().reshape(1, -1) / max(1.0, abs(room)), -np.inf, np.sign(room))
            for bound, room in zip(bounds, rooms, strict=True)
        ]
        found = milp(
            -weights.ravel(),
            integrality=np.ones(weights.size),
            bounds=Bounds(0, choosable),
            constraints=[*constraints, *limits],
            options={"mip_rel_gap": 0},
        )
        if found.x is None:
            asked = [f"{name} at most {amount(costs, most)}{at_size(costs)}" for name, costs, most in bounds]
            asked += [] if max_skips is None else [f"at most {max_skips} skip_connect in the normal cell"]
            raise UsageError(f"no genotype of this space has {' and '.join(asked)}; loosen a bound")
        chosen = found.x.reshape(weights.shape) > 0.5
        cells = tuple(_cell_of(half, operations) for half in np.split(chosen, 2))
        over = [bound.costs.of(cells, operations) > bound.maximum for bound in bounds]
        if not any(over):
            return cells[0], cells[1]
        rooms = [room - is_over for room, is_over in zip(rooms, over, strict=True)]


def _cell_of(chosen: NDArray[np.bool_], operations: Sequence[str]) -> Cell:
    """The cell of a boolean table (num_edges, num_operations) of chosen operations."""
    nodes = []
    for i in range(num_nodes_of(len(chosen))):
        part = chosen[num_edges(i) : num_edges(i + 1)]
        nodes.append(tuple(Edge(operations[op], state) for state, op in np.argwhere(part).tolist()))
    return Cell(tuple(nodes), tuple(range(NUM_INPUTS, NUM_INPUTS + len(nodes))))


def frontier(
    normal: Array,
    reduce: Array,
    operations: Sequence[str],
    costs: Costs,
    allowed: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
) -> list[Point]:
    """The Pareto frontier of cost and kept mixing weight, cheapest first.

    allowed: which operations each edge of either cell has, (num_edges, num_operations); None for all. Exact, by dynamic
    programming: the undominated partial sums over the first nodes are extended node by node.
    """
    real = np.array([name != "none" for name in operations])
    cost, weight = np.array([costs.fixed]), np.array([0.0])
    taken: list[tuple[tuple[Edge, ...], ...]] = [()]
    tables = (
        (np.asarray(normal, dtype=np.float64), costs.normal),
        (np.asarray(reduce, dtype=np.float64), costs.reduce),
    )
    for half, (weights, table) in enumerate(tables):
        choosable = np.tile(real, (len(weights), 1)) if allowed is None else allowed[half] & real
        choices = [np.flatnonzero(edge).tolist() for edge in choosable]
        for node in range(num_nodes_of(len(weights))):
            start = num_edges(node)
            options = [
                (int(table[start + s, a] + table[start + t, b]), float(weights[start + s, a] + weights[start + t, b]),
                 (Edge(operations[a], s), Edge(operations[b], t)))
                for s, t in itertools.combinations(range(NUM_INPUTS + node), 2)
                for a, b in itertools.product(choices[start + s], choices[start + t])
            ]  # fmt: skip
            keep = list(_undominated(np.array([o[0] for o in options]), np.array([o[1] for o in options])))
            kept = [options[i] for i in keep]
            costs_now = (cost[:, None] + np.array([o[0] for o in kept])).ravel()
            weights_now = (weight[:, None] + np.array([o[1] for o in kept])).ravel()
            best = list(_undominated(costs_now, weights_now))
            cost, weight = costs_now[best], weights_now[best]
            taken = [(*taken[i // len(kept)], kept[i % len(kept)][2]) for i in best]
    nodes = num_nodes_of(len(tables[0][0]))
    concat = tuple(range(NUM_INPUTS, NUM_INPUTS + nodes))
    return [
        Point(int(c), float(w), Cell(edges[:nodes], concat), Cell(edges[nodes:], concat))
        for c, w, edges in zip(cost, weight, taken, strict=True)
    ]


def _undominated(cost: NDArray[np.int64], weight: Array) -> Iterator[int]:
    """Indices of the points that no other point dominates, by rising cost."""
    best = -np.inf
    for i in np.lexsort((-weight, cost)).tolist():
        if weight[i] > best:
            best = weight[i]
            yield i
