"""Perturbations: what the step of the weights mixes with."""

import numpy as np
import pytest
import torch

from darts_sg.methods.perturbations import PERTURBATIONS
from darts_sg.methods.perturbations.adversarial import Adversarial
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


def projected(moved: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Clipped to [0, 1] and normalised; an edge on which nothing is left keeps its strongest operation."""
    rows = []
    for row, old in zip(np.clip(moved, 0, 1), before, strict=True):
        rows.append(row / row.sum() if row.any() else np.eye(len(row))[old.argmax()])
    return np.array(rows)


@pytest.mark.parametrize("progress", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 7])
def test_adversarial_is_projected_sign_ascent_from_a_random_start(steps: int, progress: float) -> None:
    """SDARTS-ADV in numpy, on a quadratic loss with a known gradient and the same random numbers."""
    mixing = mixing_weights(edges=True)
    peaks = torch.randn(2, 14, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    calls = []

    def loss(other: Mixing) -> torch.Tensor:
        calls.append(other)
        return -sum(((w - peak) ** 2).sum() for w, peak in zip(other[:2], peaks, strict=True))

    share = torch.tensor(progress, dtype=torch.float64)
    found = Adversarial(0.1, 0.4, steps)(mixing, loss, share, torch.Generator().manual_seed(3))
    generator, epsilon = torch.Generator().manual_seed(3), 0.1 + 0.3 * progress
    for before, actual, peak in zip(mixing[:2], found[:2], peaks, strict=True):
        old = before.numpy()
        noise = torch.empty(14, 5, dtype=torch.float64).uniform_(-1, 1, generator=generator).numpy()
        moved = projected(old + epsilon * noise, old)
        for _ in range(steps):
            up = moved + 2 * epsilon / steps * np.sign(-2 * (moved - peak.numpy()))
            moved = projected(old + np.clip(up - old, -epsilon, epsilon), old)
        np.testing.assert_allclose(actual.numpy(), moved, rtol=1e-10, atol=1e-14)
    assert loss(found) > loss(mixing)
    assert len(calls) == steps + 2 + 2
    assert torch.equal(found.edge_normal, mixing.edge_normal)


def test_an_attack_that_does_not_raise_the_loss_is_rejected() -> None:
    mixing = mixing_weights()

    def at_its_peak(other: Mixing) -> torch.Tensor:
        return -sum(((w - old) ** 2).sum() for w, old in zip(other[:2], mixing[:2], strict=True))

    found = Adversarial()(mixing, at_its_peak, torch.tensor(0.5), torch.Generator().manual_seed(0))
    assert torch.equal(found.normal, mixing.normal)
    assert torch.equal(found.reduce, mixing.reduce)


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
