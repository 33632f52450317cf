"""Perturbations: what the step of the weights mixes with."""

import numpy as np
import pytest
import torch

from darts_sg.methods.perturbations import PERTURBATIONS
from darts_sg.methods.perturbations.random import UniformNoise
from darts_sg.networks.supernet import Mixing


def mixing_weights(edges: bool = False) -> Mixing:
    generator = torch.Generator().manual_seed(1)
    normal, reduce = torch.randn(2, 14, 5, generator=generator, dtype=torch.float64).softmax(dim=-1)
    beta = torch.rand(14, generator=generator, dtype=torch.float64) if edges else None
    return Mixing(normal, reduce, beta, beta)


def no_loss(mixing: Mixing) -> torch.Tensor:
    raise AssertionError("needs no loss")


@pytest.mark.parametrize("progress", [0.0, 1.0])
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_perturbed_weights_are_distributions_and_edge_weights_stay(name: str, progress: float) -> None:
    mixing, generator = mixing_weights(edges=True), torch.Generator().manual_seed(0)
    given = [weights.clone() for weights in mixing]
    found = PERTURBATIONS[name]()(mixing, lambda other: (other.normal**2).sum(), torch.tensor(progress), generator)
    for weights in (found.normal, found.reduce):
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(14, dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(given, mixing, strict=True))
    assert torch.equal(found.edge_normal, mixing.edge_normal)


def test_none_changes_nothing_and_draws_nothing() -> None:
    mixing, generator = mixing_weights(), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert PERTURBATIONS["none"]()(mixing, no_loss, torch.tensor(0.5), generator) is mixing
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_random_adds_uniform_noise_clips_and_normalises(progress: float) -> None:
    """SDARTS-RS edge by edge in numpy, with the same random numbers."""
    mixing = mixing_weights()
    share = torch.tensor(progress, dtype=torch.float64)
    found = UniformNoise(0.1, 0.6)(mixing, no_loss, share, torch.Generator().manual_seed(3))
    generator, epsilon = torch.Generator().manual_seed(3), 0.1 + 0.5 * progress
    for weights, perturbed in ((mixing.normal, found.normal), (mixing.reduce, found.reduce)):
        uniform = torch.empty(14, 5, dtype=torch.float64).uniform_(-1, 1, generator=generator).numpy()
        for row, noise, actual in zip(weights.numpy(), uniform, perturbed.numpy(), strict=True):
            moved = np.minimum(np.maximum(row + epsilon * noise, 0), 1)
            expected = moved / moved.sum() if moved.any() else np.eye(5)[row.argmax()]
            np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_an_edge_on_which_nothing_is_left_keeps_its_strongest_operation() -> None:
    weights = torch.tensor([[0.2, 0.3, 0.25, 0.25]], dtype=torch.float64)
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.empty_like(weights).uniform_(-1, 1, generator=generator)
        if (noise < -0.3).all():
            break
    generator.manual_seed(seed)
    found = UniformNoise(1.0, 1.0)(Mixing(weights, weights), no_loss, torch.tensor(0.0), generator)
    assert found.normal.tolist() == [[0, 1, 0, 0]]
