"""Derivation against its definition, ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_sg.derive import derive_cell, entropy, num_edges, num_nodes_of, random_cell, strengths
from darts_sg.genotype import Cell, Edge

NAMES = ("sep_conv_3x3", "none", "skip_connect", "sandglass_3x3")


def by_definition(weights: np.ndarray, operations: tuple[str, ...], num_nodes: int, num_kept: int) -> Cell:
    """An edge is kept if fewer than `num_kept` edges into its node beat it; of equals, lower states win."""
    nodes = []
    rows = iter(weights.tolist())
    for node in range(num_nodes):
        candidates = []
        for state in range(2 + node):
            named = [(w, name) for w, name in zip(next(rows), operations, strict=True) if name != "none"]
            strength = max(w for w, _ in named)
            candidates.append((strength, state, next(name for w, name in named if w == strength)))
        kept = []
        for strength, state, name in candidates:
            beaten_by = sum(s > strength or (s == strength and other < state) for s, other, _ in candidates)
            if beaten_by < num_kept:
                kept.append(Edge(name, state))
        nodes.append(tuple(kept))
    return Cell(tuple(nodes), tuple(range(2, 2 + num_nodes)))


@given(st.data(), st.integers(1, 5), st.integers(1, 3), st.booleans())
@settings(max_examples=200)
def test_derived_cell_is_the_defined_one(
    data: st.DataObject, num_nodes: int, num_kept: int, has_edge_weights: bool
) -> None:
    few = st.integers(0, 4)  # few values, so that ties are frequent
    count = num_edges(num_nodes)
    operations = tuple(data.draw(st.permutations(NAMES)))
    rows = st.lists(few, min_size=len(NAMES), max_size=len(NAMES))
    weights = np.array(data.draw(st.lists(rows, min_size=count, max_size=count)), dtype=float)
    before = weights.copy()
    edge_weights, expected = None, weights
    if has_edge_weights:
        edge_weights = np.array(data.draw(st.lists(few, min_size=count, max_size=count)), dtype=float)
        expected = np.stack([row * weight for row, weight in zip(weights, edge_weights, strict=True)])
    cell = derive_cell(weights, operations, edge_weights, num_kept)
    assert cell == by_definition(expected, operations, num_nodes, num_kept)
    assert np.array_equal(weights, before)


@given(st.data(), st.integers(1, 5))
@settings(max_examples=100)
def test_the_cell_that_the_weights_describe_comes_back(data: st.DataObject, num_nodes: int) -> None:
    """Weight 1 on the edges of a random cell, and 2 on `none` everywhere, which must not count."""
    weights = np.full((num_edges(num_nodes), len(NAMES)), 0.1)
    weights[:, NAMES.index("none")] = 2
    nodes, start = [], 0
    for node in range(num_nodes):
        states = sorted(data.draw(st.permutations(range(2 + node)))[:2])
        chosen = data.draw(st.lists(st.sampled_from([n for n in NAMES if n != "none"]), min_size=2, max_size=2))
        nodes.append(tuple(Edge(name, state) for name, state in zip(chosen, states, strict=True)))
        for edge in nodes[-1]:
            weights[start + edge.state, NAMES.index(edge.operation)] = 1
        start += 2 + node
    assert derive_cell(weights, NAMES).nodes == tuple(nodes)


def test_edge_weights_can_turn_the_choice() -> None:
    """PC-DARTS ranks edges by operation weight times edge weight: here state 0 loses its place."""
    weights = np.array([[0.9], [0.8], [0.9], [0.8], [0.7]])
    edge_weights = np.array([0.5, 0.5, 0.1, 0.4, 0.5])
    without = derive_cell(weights, ("skip_connect",))
    with_edges = derive_cell(weights, ("skip_connect",), edge_weights)
    assert [edge.state for edge in without.nodes[1]] == [0, 1]
    assert [edge.state for edge in with_edges.nodes[1]] == [1, 2]


@pytest.mark.parametrize("num_nodes", range(1, 8))
def test_numbers_of_edges_and_nodes_belong_together(num_nodes: int) -> None:
    count = num_edges(num_nodes)
    assert count == num_nodes * (num_nodes + 3) // 2
    assert num_nodes_of(count) == num_nodes
    with pytest.raises(ValueError, match="edges"):
        num_nodes_of(count + 1)


def test_random_cells_favour_no_operation_and_no_pair_of_states() -> None:
    generator = np.random.default_rng(0)
    cells = [random_cell(2, NAMES, generator) for _ in range(6000)]
    operations = [edge.operation for cell in cells for _, edge in cell.edges()]
    pairs = [tuple(edge.state for edge in cell.nodes[1]) for cell in cells]
    for found, choices in ((operations, set(NAMES) - {"none"}), (pairs, {(0, 1), (0, 2), (1, 2)})):
        assert set(found) == choices
        for choice in choices:
            expected = len(found) / 3
            assert abs(found.count(choice) - expected) < 5 * (expected * 2 / 3) ** 0.5
    assert all(edge.state < node for cell in cells for node, edge in cell.edges())


def test_entropy_of_each_edge() -> None:
    weights = np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.25, 0.125, 0.125]])
    assert entropy(weights) == pytest.approx(np.log(2) * np.array([2, 0, 1.75]))


def test_strengths_are_the_mixing_weights_times_the_edge_weights() -> None:
    normal, reduce = np.random.default_rng(0).random((2, 5, 4))
    edges = np.array([0.5, 0.5, 0.2, 0.3, 0.5])
    found = strengths({"normal": normal, "reduce": reduce, "edge_reduce": edges})
    np.testing.assert_array_equal(found[0], normal)
    for i, row in enumerate(found[1]):
        np.testing.assert_array_equal(row, reduce[i] * edges[i])
    weighted = derive_cell(reduce, NAMES, edges)
    assert derive_cell(found[1], NAMES) == weighted
