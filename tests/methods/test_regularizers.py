"""Regularizers: the expected cost against enumeration, and each term over its registry."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_sg.derive import Costs, num_edges
from darts_sg.errors import UsageError
from darts_sg.methods.mixing import Alphas
from darts_sg.methods.parts import build_part
from darts_sg.methods.regularizers import REGULARIZERS, Problem
from darts_sg.methods.regularizers.size import Penalty, expected_cost
from darts_sg.networks.supernet import Mixing

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


def value_of(penalty: Penalty, weights: torch.Tensor) -> float:
    """The value of a penalty where both cells have the same mixing weights."""
    return penalty(Alphas(weights, weights), Mixing(weights, weights), torch.tensor(0.0)).item()


def test_a_penalty_is_relative_to_even_weights_or_to_its_target() -> None:
    _, _, costs = problem(1, 4)
    even = torch.full((14, 3), 1 / 3, dtype=torch.float64)
    expected = expected_cost(even, even, NAMES, costs).item()
    assert value_of(Penalty("params", 0.1, NAMES, costs), even) == pytest.approx(0.1)
    half = Penalty("params", 2.0, NAMES, costs, target=int(expected / 2))
    assert value_of(half, even) == pytest.approx(2 * (expected / int(expected / 2) - 1))
    assert value_of(Penalty("params", 2.0, NAMES, costs, target=int(2 * expected)), even) == 0


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_is_a_finite_scalar_with_a_gradient_in_the_alphas(name: str) -> None:
    _, _, costs = problem(1, 4)
    term = build_part(REGULARIZERS, name, "--regularizer").prepare(Problem(NAMES, 4, lambda unit: costs))
    generator = torch.Generator().manual_seed(0)
    alphas = [torch.randn(14, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]

    def value(normal: torch.Tensor, reduce: torch.Tensor) -> torch.Tensor:
        mixing = Mixing(normal.softmax(dim=-1), reduce.softmax(dim=-1))
        return term(Alphas(normal, reduce), mixing, torch.tensor(0.5))

    assert value(*alphas).shape == ()
    assert value(*alphas).isfinite()
    assert torch.autograd.gradcheck(value, alphas)
    assert all(
        math.isfinite(number)
        for number in term.metrics(
            {"normal": alphas[0].softmax(-1).detach(), "reduce": alphas[1].softmax(-1).detach()}
        ).values()
    )


def random_alphas(seed: int = 0) -> Alphas:
    generator = torch.Generator().manual_seed(seed)
    return Alphas(*(torch.randn(14, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)))


def value_and_gradients(text: str, alphas: Alphas, progress: float) -> tuple[float, np.ndarray]:
    """A regularizer's value, and its gradients in both sets of alphas one under the other."""
    term = build_part(REGULARIZERS, text, "--regularizer")
    value = term(alphas, Mixing(*(a.softmax(dim=-1) for a in alphas[:2])), torch.tensor(progress, dtype=torch.float64))
    return value.item(), torch.cat(torch.autograd.grad(value, alphas[:2])).numpy()


@pytest.mark.parametrize("progress", [0.0, 0.3])
def test_beta_decay_is_the_mean_logsumexp_with_a_growing_weight(progress: float) -> None:
    alphas = random_alphas()
    value, gradient = value_and_gradients("beta-decay:weight=2,weight_end=12", alphas, progress)
    rows = np.concatenate([a.detach().numpy() for a in alphas[:2]])
    weight = 2 + 10 * progress
    assert value == pytest.approx(weight * np.mean([np.log(sum(np.exp(row))) for row in rows]), rel=1e-12)
    softmax = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(gradient, weight * softmax / 28, rtol=1e-12)


def test_zero_one_is_minus_the_mean_squared_distance_from_one_half() -> None:
    alphas = random_alphas()
    value, gradient = value_and_gradients("zero-one:3", alphas, 0.5)
    sigma = 1 / (1 + np.exp(-np.concatenate([a.detach().numpy() for a in alphas[:2]])))
    assert value == pytest.approx(-3 * ((sigma - 0.5) ** 2).mean(), rel=1e-12)
    np.testing.assert_allclose(gradient, -3 * 2 * (sigma - 0.5) * sigma * (1 - sigma) / sigma.size, rtol=1e-12)


def test_kl_is_the_divergence_of_dirichlet_distributions_from_the_uniform_one() -> None:
    alphas = random_alphas()
    value, gradient = value_and_gradients("kl:0.5", alphas, 0.5)
    a = torch.cat([torch.where(x > 0, x + 1, x.exp()) for x in alphas[:2]])  # elu + 1
    uniform = torch.distributions.Dirichlet(torch.ones_like(a))
    exact = 0.5 * torch.distributions.kl_divergence(torch.distributions.Dirichlet(a), uniform).sum()
    assert value == pytest.approx(exact.item(), rel=1e-9)
    expected = torch.cat(torch.autograd.grad(exact, alphas[:2]))
    np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-8, atol=1e-12)
    assert value_and_gradients("kl", Alphas(*(torch.zeros(14, 3).requires_grad_() for _ in range(2))), 0.0)[0] == 0


def test_a_target_becomes_a_bound_on_the_genotype() -> None:
    _, _, costs = problem(1, 4)
    search = Problem(NAMES, 4, lambda unit: costs)
    assert list(build_part(REGULARIZERS, "params", "--regularizer").prepare(search).bounds()) == []
    [bound] = build_part(REGULARIZERS, "macs:target=1M", "--regularizer").prepare(search).bounds()
    assert (bound.name, bound.maximum) == ("macs", 1_000_000)
    with pytest.raises(UsageError, match=r"--target-macs 8: the smallest network of this space has"):
        build_part(REGULARIZERS, "macs:target=8", "--regularizer").prepare(search)
