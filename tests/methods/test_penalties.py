"""The expected cost against enumeration, and the penalties on it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_sg.derive import Costs, num_edges
from darts_sg.methods.penalties import Penalty, expected_cost

NAMES = ("none", "skip_connect", "sep_conv_3x3")


def problem(seed: int, num_nodes: int) -> tuple[torch.Tensor, torch.Tensor, Costs]:
    rng = np.random.default_rng(seed)
    shape = (num_edges(num_nodes), len(NAMES))
    normal, reduce = (torch.from_numpy(rng.dirichlet(np.ones(len(NAMES)), shape[0])) for _ in range(2))
    return normal, reduce, Costs(rng.integers(0, 100, shape), rng.integers(0, 100, shape), fixed=7)


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_the_expected_cost_is_the_mean_over_all_genotypes(seed: int) -> None:
    normal, reduce, costs = problem(seed, 2)
    total = float(costs.fixed)
    for weights, table in ((normal.numpy(), costs.normal), (reduce.numpy(), costs.reduce)):
        for node in range(2):
            start = num_edges(node)
            pairs = list(itertools.combinations(range(2 + node), 2))
            for (s, t), a, b in itertools.product(pairs, (1, 2), (1, 2)):
                chance = 1 / len(pairs)
                for edge, op in ((start + s, a), (start + t, b)):
                    chance *= weights[edge, op] / weights[edge, 1:].sum()
                total += chance * (table[start + s, a] + table[start + t, b])
    assert expected_cost(normal, reduce, NAMES, costs).item() == pytest.approx(total)


def test_the_expected_cost_is_differentiable_in_the_mixing_weights() -> None:
    normal, reduce, costs = problem(1, 3)
    inputs = normal.requires_grad_(), reduce.requires_grad_()
    assert torch.autograd.gradcheck(lambda *weights: expected_cost(*weights, NAMES, costs), inputs)


def test_a_penalty_is_measured_in_units_of_even_weights_or_above_its_target() -> None:
    _, _, costs = problem(1, 4)
    even = torch.full((14, 3), 1 / 3, dtype=torch.float64)
    expected = expected_cost(even, even, NAMES, costs).item()
    assert Penalty("params", 0.1, NAMES, costs)(even, even).item() == pytest.approx(0.1)
    half = Penalty("params", 2.0, NAMES, costs, target=int(expected / 2))
    assert half(even, even).item() == pytest.approx(2 * (expected / int(expected / 2) - 1))
    assert Penalty("params", 2.0, NAMES, costs, target=int(2 * expected))(even, even).item() == 0
