"""Selections: from mixing weights to cells."""

from collections.abc import Callable

import numpy as np
import pytest

from darts_sg.derive import Bound, Costs, derive_bounded, derive_cell, num_edges
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell, Edge, Genotype
from darts_sg.methods.parts import build_part
from darts_sg.methods.selection import SELECTIONS, Searched
from darts_sg.methods.selection.bounded import Bounded
from darts_sg.methods.selection.skip_limit import SkipLimit
from darts_sg.methods.selection.threshold import Threshold

TITLES = ("normal", "reduce")
NAMES = ("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3")


def mixing_weights(seed: int, num_nodes: int = 4, edges: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    count = num_edges(num_nodes)
    found = {title: rng.dirichlet(np.ones(len(NAMES)), count) for title in ("normal", "reduce")}
    return found | ({f"edge_{title}": rng.random(count) for title in ("normal", "reduce")} if edges else {})


def skips(cell: Cell) -> int:
    return sum(edge.operation == "skip_connect" for _, edge in cell.edges())


@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("name", SELECTIONS)
def test_every_selection_gives_a_valid_genotype(name: str, edges: bool) -> None:
    for seed in range(5):
        normal, reduce = build_part(SELECTIONS, name, "--selection")(Searched(mixing_weights(seed, 4, edges), NAMES))
        genotype = Genotype("found", "", NAMES, normal, reduce)  # checks it
        if name not in {"threshold", "every-edge"}:
            assert [len(node) for node in genotype.normal.nodes] == [2, 2, 2, 2]


def test_argmax_is_the_rule_of_darts_and_sees_edge_weights() -> None:
    mixing = mixing_weights(1, edges=True)
    found = SELECTIONS["argmax"]()(Searched(mixing, NAMES))
    assert found == tuple(derive_cell(mixing[t], NAMES, mixing[f"edge_{t}"]) for t in ("normal", "reduce"))
    assert found != tuple(derive_cell(mixing[t], NAMES) for t in ("normal", "reduce"))


def test_bounded_keeps_bounds_and_its_limit_on_skips() -> None:
    mixing, table = mixing_weights(2), np.random.default_rng(0).integers(0, 100, (14, 4))
    costs = Costs(table, table, fixed=0)
    classic = SELECTIONS["argmax"]()(Searched(mixing, NAMES))
    assert Bounded()(Searched(mixing, NAMES)) == classic
    most = costs.of(classic, NAMES) - 100
    found = Bounded()(Searched(mixing, NAMES, [Bound("cost", costs, most)]))
    assert costs.of(found, NAMES) <= most
    assert found == derive_bounded(mixing["normal"], mixing["reduce"], NAMES, [Bound("cost", costs, most)])
    assert skips(Bounded(max_skips=0)(Searched(mixing, NAMES))[0]) == 0


def limited(normal: np.ndarray, most: int) -> Cell:
    """The rule of P-DARTS's code written out: zero the smallest probability among the chosen skips, derive again."""
    normal = normal.copy()
    while True:
        cell, start, chosen = derive_cell(normal, NAMES), 0, []
        for i, node in enumerate(cell.nodes):
            chosen += [(normal[start + e.state, 1], start + e.state) for e in node if e.operation == "skip_connect"]
            start += 2 + i
        if len(chosen) <= most:
            return cell
        normal[min(chosen)[1], 1] = 0


@pytest.mark.parametrize("most", [0, 1, 2, 8])
def test_the_skip_limit_rules_out_the_weakest_skip_until_few_enough_are_left(most: int) -> None:
    limits = 0
    for seed in range(30):
        mixing = mixing_weights(seed)
        mixing["normal"][:, 1] += 0.3
        normal, reduce = SkipLimit(most)(Searched(mixing, NAMES))
        assert normal == limited(mixing["normal"], most)
        assert skips(normal) <= most
        assert reduce == derive_cell(mixing["reduce"], NAMES)
        limits += normal != derive_cell(mixing["normal"], NAMES)
    assert (limits > 0) == (most < 8)


def test_the_skip_limit_ends_where_other_operations_have_no_weight_or_do_not_exist() -> None:
    certain = np.zeros((14, 4))
    certain[:, 1] = 1.0
    normal, _ = SkipLimit(0)(Searched({"normal": certain, "reduce": certain}, NAMES))
    assert skips(normal) == 0
    only = np.ones((14, 2))
    normal, _ = SkipLimit(0)(Searched({"normal": only, "reduce": only}, ("none", "skip_connect")))
    assert skips(normal) == 8
    without = SkipLimit(0)(Searched({"normal": only, "reduce": only}, ("sep_conv_3x3", "none")))
    assert skips(without[0]) == 0


def cell_by_hand(weights: np.ndarray, wanted: Callable[[np.ndarray], int | None], most: int) -> list[list[Edge]]:
    """The rules of FairDARTS and SNAS written out: the wanted operation of each edge that starts at a reached state."""
    nodes: list[list[Edge]] = []
    start = 0
    for i in range(4):
        rows = weights[start : start + 2 + i]
        found = [(row[op], Edge(NAMES[op], s)) for s, row in enumerate(rows) if (op := wanted(row)) is not None]
        kept = sorted(found, key=lambda one: -one[0])[:most]
        edges = [edge for _, edge in kept if edge.state < 2 or nodes[edge.state - 2]]
        nodes.append(sorted(edges, key=lambda edge: edge.state))
        start += 2 + i
    return nodes


@pytest.mark.parametrize("seed", range(20))
def test_a_threshold_keeps_the_two_strongest_edges_of_a_node_that_reach_it(seed: int) -> None:
    mixing = {title: np.random.default_rng((seed, i)).random((14, 4)) ** 0.3 for i, title in enumerate(TITLES)}
    limit = 0.93

    def wanted(row: np.ndarray) -> int | None:
        op = 1 + int(row[1:].argmax())
        return op if row[op] >= limit else None

    cells = Threshold(limit)(Searched(mixing, NAMES))
    for title, cell in zip(TITLES, cells, strict=True):
        # an edge below the limit ranks behind all others, so it never takes the place of one above it
        expected = cell_by_hand(mixing[title], wanted, 2)
        assert [list(node) for node in cell.nodes] == expected
        assert cell.concat == tuple(2 + i for i, node in enumerate(expected) if node)
    assert Threshold(0.0)(Searched(mixing, NAMES)) == SELECTIONS["argmax"]()(Searched(mixing, NAMES))


@pytest.mark.parametrize("seed", range(20))
def test_every_edge_keeps_all_edges_but_those_where_none_wins(seed: int) -> None:
    mixing = mixing_weights(seed)
    for title, cell in zip(TITLES, SELECTIONS["every-edge"]()(Searched(mixing, NAMES)), strict=True):
        expected = cell_by_hand(mixing[title], lambda row: int(row.argmax()) or None, 5)
        assert [list(node) for node in cell.nodes] == expected


@pytest.mark.parametrize("name", ["threshold", "every-edge"])
def test_a_cell_without_edges_keeps_its_strongest_one_from_an_input(name: str) -> None:
    weights = np.full((14, 4), 0.1)
    weights[:, 0] = 0.5  # none
    weights[5, 2] = 0.2  # node 2, input 0
    weights[4, 3] = 0.3  # node 1, but from node 0
    normal, reduce = build_part(SELECTIONS, name, "--selection")(
        Searched({"normal": weights, "reduce": weights}, NAMES)
    )
    assert normal == reduce == Cell(((), (), (Edge("sep_conv_3x3", 0),), ()), (4,))


def test_an_edge_from_a_node_that_is_left_out_is_left_out() -> None:
    weights = np.zeros((14, 4))
    weights[2, 1] = weights[4, 2] = weights[11, 3] = 1.0  # into node 1 from c_{k-2} and node 0, into node 3 from node 0
    normal, _ = Threshold()(Searched({"normal": weights, "reduce": weights}, NAMES))
    assert normal == Cell(((), (Edge("skip_connect", 0),), (), ()), (3,))


@pytest.mark.parametrize("text", ["skip-limit:most=-1", "bounded:max_skips=-1"])
def test_negative_limits_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be at least 0, found -1"):
        build_part(SELECTIONS, text, "--selection")
