"""Derivation under bounds against brute force, and its costs against those of the networks."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_sg.analysis.cost import choice_costs, derived_cost
from darts_sg.derive import Bound, Costs, derive_bounded, derive_cell, frontier, kept_weight, num_edges
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell, Edge, Genotype
from darts_sg.spaces import parse_space

NAMES = ("none", "skip_connect", "sep_conv_3x3", "sandglass_3x3")


def all_cells(num_nodes: int) -> list[Cell]:
    a_node = [
        [
            (Edge(a, s), Edge(b, t))
            for s, t in itertools.combinations(range(2 + node), 2)
            for a, b in itertools.product(NAMES[1:], repeat=2)
        ]
        for node in range(num_nodes)
    ]
    return [Cell(nodes, tuple(range(2, 2 + num_nodes))) for nodes in itertools.product(*a_node)]


def random_problem(seed: int, num_nodes: int) -> tuple[list[np.ndarray], Costs]:
    rng = np.random.default_rng(seed)
    shape = (num_edges(num_nodes), len(NAMES))
    weights = [rng.dirichlet(np.ones(len(NAMES)), shape[0]) for _ in range(2)]
    tables = [rng.integers(0, 1000, shape) for _ in range(2)]
    return weights, Costs(*tables, fixed=500)


@given(st.integers(0, 10**6), st.floats(0, 1), st.one_of(st.none(), st.integers(0, 2)))
@settings(max_examples=40, deadline=None)
def test_the_best_cells_in_bounds_are_those_of_brute_force(seed: int, tightness: float, max_skips: int | None) -> None:
    (normal, reduce), costs = random_problem(seed, 1)
    pairs = list(itertools.product(all_cells(1), repeat=2))
    totals = [costs.of(pair, NAMES) for pair in pairs]
    maximum = int(min(totals) + tightness * (max(totals) - min(totals)))
    allowed = [
        kept_weight((normal, reduce), pair, NAMES)
        for pair, total in zip(pairs, totals, strict=True)
        if total <= maximum
        and (max_skips is None or sum(e.operation == "skip_connect" for _, e in pair[0].edges()) <= max_skips)
    ]
    bounds = [Bound("cost", costs, maximum)]
    if not allowed:
        with pytest.raises(UsageError, match="no genotype of this space has cost at most"):
            derive_bounded(normal, reduce, NAMES, bounds, max_skips)
        return
    found = derive_bounded(normal, reduce, NAMES, bounds, max_skips)
    assert costs.of(found, NAMES) <= maximum
    assert kept_weight((normal, reduce), found, NAMES) == pytest.approx(max(allowed), abs=1e-9)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_bound_that_binds_nothing_leaves_the_classic_rule(seed: int) -> None:
    (normal, reduce), costs = random_problem(seed, 4)
    classic = derive_cell(normal, NAMES), derive_cell(reduce, NAMES)
    assert derive_bounded(normal, reduce, NAMES) == classic
    assert derive_bounded(normal, reduce, NAMES, [Bound("cost", costs, 10**9)], max_skips=8) == classic


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_frontier_is_that_of_brute_force(seed: int) -> None:
    (normal, reduce), costs = random_problem(seed, 1)
    pairs = list(itertools.product(all_cells(1), repeat=2))
    everything = [(costs.of(p, NAMES), kept_weight((normal, reduce), p, NAMES)) for p in pairs]
    expected, best = [], -1.0
    for cost, weight in sorted(everything, key=lambda cw: (cw[0], -cw[1])):
        if weight > best:
            expected.append((cost, weight))
            best = weight
    found = frontier(normal, reduce, NAMES, costs)
    assert [p.cost for p in found] == [cost for cost, _ in expected]
    assert [p.weight for p in found] == pytest.approx([weight for _, weight in expected])


def test_every_point_of_a_large_frontier_is_what_the_integer_program_finds() -> None:
    (normal, reduce), costs = random_problem(1, 4)
    points = frontier(normal, reduce, NAMES, costs)
    assert len(points) > 20
    for point in points[:: len(points) // 8]:
        cells = derive_bounded(normal, reduce, NAMES, [Bound("cost", costs, point.cost)])
        assert kept_weight((normal, reduce), cells, NAMES) == pytest.approx(point.weight, abs=1e-9)
        assert costs.of((point.normal, point.reduce), NAMES) == point.cost


@pytest.mark.parametrize(
    ("network", "channels", "cells"), [("cifar", None, None), ("imagenet", None, None), ("cifar", 6, 5)]
)
def test_costs_add_up_to_those_of_the_network(network: str, channels: int | None, cells: int | None) -> None:
    operations = parse_space("darts+ir+sandglass").operations
    params, macs = choice_costs(operations, network, channels, cells)
    rng = np.random.default_rng(0)
    for _ in range(3):
        halves = [derive_cell(rng.random((num_edges(4), len(operations))), operations) for _ in range(2)]
        cost = derived_cost(Genotype("random", "", operations, *halves), network, channels, cells)
        assert params.of(halves, operations) == cost.params
        assert macs.of(halves, operations) == cost.macs
