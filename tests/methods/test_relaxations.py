"""Relaxations: how alphas become mixing weights, against formulas written out in float64."""

import numpy as np
import pytest
import torch
from scipy.stats import beta

from darts_sg.methods.mixing import draw_noise, expected_mixing, sampled_mixing, softmax
from darts_sg.methods.relaxations import RELAXATIONS, Relaxation
from darts_sg.methods.relaxations.gumbel import Gumbel
from darts_sg.methods.relaxations.reinmax import ReinMax
from darts_sg.networks.supernet import Mixing, Supernet
from darts_sg.spaces import parse_space
from tests.reference import textbook
from tests.reference.transfer import assert_equal_tensors, gradients

VARIANTS = [*(RELAXATIONS[name]() for name in RELAXATIONS), Gumbel(temperature=5.0, hard=True)]
SHARE = torch.tensor(0.25, dtype=torch.float64)


def supernet(edge_normalization: bool, scale: float = 1.0, num_nodes: int = 4) -> Supernet:
    """A small supernet in float64 whose alphas (and betas) are normal with deviation `scale`."""
    operations = parse_space("darts+sandglass").operations
    net = Supernet(operations, channels=4, cells=3, num_nodes=num_nodes, edge_normalization=edge_normalization).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for alpha in net.alphas():
            alpha.copy_(scale * torch.randn(alpha.shape, generator=generator, dtype=torch.float64))
    return net


def sampled(net: Supernet, relaxation: Relaxation, progress: float = 0.0, seed: int = 0) -> Mixing:
    share, generator = torch.tensor(progress), torch.Generator().manual_seed(seed)
    return sampled_mixing(net, relaxation, share, draw_noise(net, relaxation, share, generator))


def parts(mixing: Mixing) -> list[torch.Tensor]:
    return [weights for weights in mixing if weights is not None]


@pytest.mark.parametrize("num_nodes", [1, 4])
@pytest.mark.parametrize("edge_normalization", [False, True])
def test_softmax_is_the_textbook_one(edge_normalization: bool, num_nodes: int) -> None:
    net = supernet(edge_normalization, num_nodes=num_nodes)
    actual = parts(softmax(net))
    alphas = net.alphas()
    expected = [textbook.softmax_over_operations(alpha) for alpha in alphas[:2]]
    expected += [textbook.softmax_over_edges(beta) for beta in alphas[2:]]
    assert_equal_tensors(actual, expected)
    directions = [torch.randn_like(weights) for weights in expected]
    losses = [sum((d * w).sum() for d, w in zip(directions, ws, strict=True)) for ws in (actual, expected)]
    assert_equal_tensors(gradients(losses[0], alphas), gradients(losses[1], alphas))


def test_softmax_of_equal_alphas_is_uniform_and_survives_large_ones() -> None:
    net = supernet(True, scale=0.0)
    mixing = softmax(net)
    torch.testing.assert_close(mixing.normal, torch.full_like(mixing.normal, 1 / 9))
    sizes = torch.tensor([n for n in (2, 3, 4, 5) for _ in range(n)], dtype=torch.float64)
    torch.testing.assert_close(mixing.edge_reduce, 1 / sizes)
    assert all(weights.isfinite().all() for weights in parts(softmax(supernet(True, scale=1e4))))


def test_a_sample_of_softmax_draws_nothing_and_is_the_expected_weights() -> None:
    net, relaxation, generator = supernet(True), RELAXATIONS["softmax"](), torch.Generator()
    before = generator.get_state()
    draw = draw_noise(net, relaxation, torch.tensor(0.5), generator)
    assert set(draw) == {None}
    assert torch.equal(generator.get_state(), before)
    assert_equal_tensors(parts(sampled_mixing(net, relaxation, torch.tensor(0.5), draw)), parts(softmax(net)))


@pytest.mark.parametrize("edge_normalization", [False, True])
@pytest.mark.parametrize("relaxation", VARIANTS, ids=str)
def test_samples_and_expected_weights_are_distributions_that_pass_gradients_to_the_alphas(
    relaxation: Relaxation, edge_normalization: bool
) -> None:
    net = supernet(edge_normalization)
    for mixing in (expected_mixing(net, relaxation), sampled(net, relaxation)):
        assert [w.shape for w in parts(mixing)] == [a.shape for a in net.alphas()]
        assert (mixing.edge_normal is None) == (mixing.edge_reduce is None) == (not edge_normalization)
        for weights in (mixing.normal, mixing.reduce):
            assert weights.min() >= 0
            if relaxation.sums_to_one:
                torch.testing.assert_close(weights.sum(1), torch.ones(14, dtype=torch.float64))
            else:
                assert weights.max() <= 1
        for weights in parts(mixing)[2:]:
            sums = torch.stack([part.sum() for part in weights.split([2, 3, 4, 5])])
            torch.testing.assert_close(sums, torch.ones(4, dtype=torch.float64))
        directions = [torch.randn_like(weights) for weights in parts(mixing)]
        loss = sum((d * w).sum() for d, w in zip(directions, parts(mixing), strict=True))
        assert all(gradient.abs().max() > 0 for gradient in gradients(loss, net.alphas()))


@pytest.mark.parametrize("relaxation", VARIANTS, ids=str)
def test_the_same_draw_gives_the_same_sample_and_the_next_one_another(relaxation: Relaxation) -> None:
    net, progress, generator = supernet(False), torch.tensor(0.3), torch.Generator().manual_seed(3)
    first, second = (draw_noise(net, relaxation, progress, generator) for _ in range(2))
    one, again, other = (sampled_mixing(net, relaxation, progress, draw) for draw in (first, first, second))
    assert_equal_tensors(parts(one), parts(again))
    assert torch.equal(one.normal, other.normal) == (first.normal is None)
    assert first.normal is None or not torch.equal(first.normal, first.reduce)


@pytest.mark.parametrize("name", RELAXATIONS)
def test_the_supernet_starts_from_the_initial_alphas_of_the_relaxation(name: str) -> None:
    """Drawn after the weights, normal cells first, as the supernet draws its own."""
    relaxation, drawn = RELAXATIONS[name](), []

    def initial(num_edges: int, num_operations: int) -> torch.Tensor:
        drawn.append(relaxation.initial(num_edges, num_operations))
        return drawn[-1]

    options = {"channels": 4, "cells": 3, "num_nodes": 2, "edge_normalization": True}
    torch.manual_seed(5)
    net = Supernet(("none", "skip_connect", "sep_conv_3x3"), **options, initial_alphas=initial)
    assert_equal_tensors([net.alpha_normal, net.alpha_reduce], drawn)
    if name == "softmax":
        torch.manual_seed(5)
        expected = Supernet(("none", "skip_connect", "sep_conv_3x3"), **options)
        assert_equal_tensors(list(net.parameters()), list(expected.parameters()))


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("hard", [False, True])
def test_gumbel_samples_are_those_of_the_formula_with_its_gradient(hard: bool, progress: float) -> None:
    """softmax((α + g) / τ) with g = -ln(E), E exponential; its gradient is J v, J = (diag(p) - p pᵀ) / τ, in numpy."""
    net, relaxation = supernet(False), Gumbel(temperature=4.0, temperature_end=0.5, hard=hard)
    mixing = sampled(net, relaxation, progress, seed=7)
    generator = torch.Generator().manual_seed(7)
    temperature = 4.0 + (0.5 - 4.0) * progress
    for alpha, weights in zip(net.alphas(), (mixing.normal, mixing.reduce), strict=True):
        noise = -np.log(torch.empty(alpha.shape, dtype=torch.float64).exponential_(generator=generator).numpy())
        scores = np.exp((alpha.detach().numpy() + noise) / temperature)
        soft = scores / scores.sum(axis=1, keepdims=True)
        expected = np.eye(soft.shape[1])[soft.argmax(axis=1)] if hard else soft
        np.testing.assert_allclose(weights.detach().numpy(), expected, rtol=1e-12, atol=0)
        direction = torch.randn(alpha.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        v = direction.numpy()
        gradient = soft * (v - (soft * v).sum(axis=1, keepdims=True)) / temperature
        actual = torch.autograd.grad((weights * direction).sum(), alpha)[0].numpy()
        np.testing.assert_allclose(actual, gradient, rtol=1e-9, atol=1e-14)


def test_gumbel_samples_an_operation_as_often_as_its_expected_weight_says() -> None:
    relaxation, generator = Gumbel(hard=True), torch.Generator().manual_seed(0)
    alphas, progress = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64).expand(20_000, 3), torch.tensor(0.9)
    found = relaxation.sample(alphas, progress, relaxation.draw(alphas, progress, generator)).mean(dim=0)
    torch.testing.assert_close(found, relaxation.expected(alphas[0]), rtol=0, atol=0.02)


def test_dirichlet_samples_have_the_expected_mean_and_rows_that_sum_to_one() -> None:
    alphas = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64).expand(20_000, 3)
    relaxation, share = RELAXATIONS["dirichlet"](), torch.tensor(0.0)
    drawn = relaxation.draw(alphas, share, torch.Generator().manual_seed(0))
    samples = relaxation.sample(alphas, share, drawn)
    torch.testing.assert_close(samples.sum(dim=-1), torch.ones(20_000, dtype=torch.float64))
    torch.testing.assert_close(samples.mean(dim=0), relaxation.expected(alphas)[0], rtol=0, atol=0.005)


def test_the_gradient_of_a_dirichlet_sample_is_pathwise() -> None:
    """With two operations the first weight x is of a beta distribution: dx/da = -(dF/da) / f at a fixed quantile."""
    alphas = torch.tensor([[0.7, -0.4]], dtype=torch.float64, requires_grad=True)
    relaxation, share = RELAXATIONS["dirichlet"](), torch.tensor(0.0)
    drawn = relaxation.draw(alphas.detach(), share, torch.Generator().manual_seed(3))
    x = float(drawn[0, 0])
    [found] = torch.autograd.grad(relaxation.sample(alphas, share, drawn)[0, 0], [alphas])

    def quantile(first: float, second: float) -> float:
        a, b = (np.exp(v) if v < 0 else v + 1 for v in (first, second))  # elu + 1
        return float(beta.ppf(level, a, b))

    level = float(beta.cdf(x, 1.7, np.exp(-0.4)))
    step = 1e-6
    expected = [
        (quantile(0.7 + step, -0.4) - quantile(0.7 - step, -0.4)) / (2 * step),
        (quantile(0.7, -0.4 + step) - quantile(0.7, -0.4 - step)) / (2 * step),
    ]
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4)


def test_dirichlet_stays_finite_where_all_alphas_are_very_low() -> None:
    alphas = torch.full((4, 5), -60.0, requires_grad=True)
    relaxation, share = RELAXATIONS["dirichlet"](), torch.tensor(0.0)
    drawn = relaxation.draw(alphas.detach(), share, torch.Generator().manual_seed(0))
    samples = relaxation.sample(alphas, share, drawn)
    [gradient] = torch.autograd.grad(samples[:, 0].sum(), [alphas])
    assert samples.isfinite().all()
    assert gradient.isfinite().all()


def test_sigmoid_weights_are_independent_and_start_at_one_half() -> None:
    relaxation = RELAXATIONS["sigmoid"]()
    assert relaxation.expected(relaxation.initial(5, 3)).tolist() == [[0.5] * 3] * 5
    alphas = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = 1 / (1 + np.exp(-alphas.detach().numpy()))
    for weights in (relaxation.sample(alphas, SHARE, None), relaxation.expected(alphas)):
        np.testing.assert_allclose(weights.detach().numpy(), expected, rtol=1e-12)
        [gradient] = torch.autograd.grad(weights.sum(), [alphas])
        np.testing.assert_allclose(gradient.numpy(), expected * (1 - expected), rtol=1e-12)


def test_reinmax_is_the_formula_of_the_paper_row_by_row() -> None:
    """The gradient of 2 π2 - ½ π0 with π1 = (D + softmax(θ / τ)) / 2, by Jacobians of softmax in numpy."""
    relaxation = ReinMax(temperature=2.0, temperature_end=1.0)
    alphas = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    drawn = relaxation.draw(alphas.detach(), SHARE, torch.Generator().manual_seed(2))
    weights = relaxation.sample(alphas, SHARE, drawn)
    assert torch.equal(weights, drawn)
    assert drawn.sum(dim=1).tolist() == [1.0] * 6
    direction = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    [found] = torch.autograd.grad((weights * direction).sum(), [alphas])

    def softmax(row: np.ndarray) -> np.ndarray:
        scores = np.exp(row - row.max())
        return scores / scores.sum()

    def jacobian(p: np.ndarray) -> np.ndarray:
        return np.diag(p) - np.outer(p, p)

    for theta, sample, v, actual in zip(alphas.detach().numpy(), drawn.numpy(), direction.numpy(), found, strict=True):
        middle = (sample + softmax(theta / 1.75)) / 2  # a distribution already, so that its logarithm's softmax is it
        expected = 2 * jacobian(middle) @ v - jacobian(softmax(theta)) @ v / 2
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9, atol=1e-13)


def test_reinmax_draws_operations_by_softmax_whatever_the_temperature() -> None:
    alphas = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64).expand(20_000, 3)
    found = ReinMax(temperature=9.0).draw(alphas, SHARE, torch.Generator().manual_seed(0)).mean(dim=0)
    torch.testing.assert_close(found, alphas[0].softmax(dim=0), rtol=0, atol=0.02)


def test_reinmax_estimates_the_gradient_of_a_quadratic_without_bias() -> None:
    """It is accurate to second order: exact on average for a loss of degree two, unlike straight-through."""
    target = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return ((weights - target) ** 2).sum(dim=-1)

    theta = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    each = torch.eye(3, dtype=torch.float64)
    chances = theta.softmax(dim=0)
    [exact] = torch.autograd.grad((chances * loss(each)).sum(), [theta])
    means = []
    for relaxation in (ReinMax(), Gumbel(hard=True)):
        alphas = theta.detach().expand(3, 3).clone().requires_grad_()
        if isinstance(relaxation, ReinMax):
            weights = relaxation.sample(alphas, SHARE, each)
        else:  # straight-through without noise in the gradient: the case that ReinMax improves on
            soft = alphas.softmax(dim=-1)
            weights = each + soft - soft.detach()
        [by_sample] = torch.autograd.grad(loss(weights).sum(), [alphas])
        means.append((chances.detach()[:, None] * by_sample).sum(dim=0))
    torch.testing.assert_close(means[0], exact, rtol=1e-9, atol=1e-12)
    assert (means[1] - exact).abs().max() > 0.01


class Squares(Relaxation):
    """A relaxation as a plug-in writes it: it knows nothing of edges."""

    def sample(self, alphas: torch.Tensor, progress: torch.Tensor, drawn: torch.Tensor | None) -> torch.Tensor:
        return self.expected(alphas)

    def expected(self, alphas: torch.Tensor) -> torch.Tensor:
        return alphas**2 / (alphas**2).sum(dim=-1, keepdim=True)


def test_any_relaxation_goes_with_edge_normalisation() -> None:
    net = supernet(edge_normalization=True)
    for mixing in (sampled(net, Squares()), expected_mixing(net, Squares())):
        alphas = net.alphas()
        expected = [alpha**2 / (alpha**2).sum(dim=-1, keepdim=True) for alpha in alphas[:2]]
        expected += [textbook.softmax_over_edges(beta) for beta in alphas[2:]]
        assert_equal_tensors(parts(mixing), expected)
        assert net(torch.randn(2, 3, 8, 8, dtype=torch.float64), mixing).shape == (2, 10)
