"""Relaxations: how alphas become mixing weights."""

import pytest
import torch

from darts_sg.methods.relaxation import RELAXATIONS, softmax
from darts_sg.networks.supernet import Mixing, Supernet
from darts_sg.spaces import parse_space
from tests.reference import textbook
from tests.reference.transfer import assert_equal_tensors, gradients


def supernet(edge_normalization: bool, scale: float = 1.0, num_nodes: int = 4) -> Supernet:
    """A small supernet in float64 whose alphas (and betas) are normal with deviation `scale`."""
    operations = parse_space("darts+sandglass").operations
    net = Supernet(operations, channels=4, cells=3, num_nodes=num_nodes, edge_normalization=edge_normalization).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for alpha in net.alphas():
            alpha.copy_(scale * torch.randn(alpha.shape, generator=generator, dtype=torch.float64))
    return net


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


@pytest.mark.parametrize("edge_normalization", [False, True])
@pytest.mark.parametrize("name", RELAXATIONS)
def test_every_relaxation_gives_distributions_that_pass_gradients_to_the_alphas(
    name: str, edge_normalization: bool
) -> None:
    net = supernet(edge_normalization)
    mixing = RELAXATIONS[name](net)
    assert [w.shape for w in parts(mixing)] == [a.shape for a in net.alphas()]
    assert (mixing.edge_normal is None) == (mixing.edge_reduce is None) == (not edge_normalization)
    for weights in (mixing.normal, mixing.reduce):
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(1), torch.ones(14, dtype=torch.float64))
    for weights in parts(mixing)[2:]:
        sums = torch.stack([part.sum() for part in weights.split([2, 3, 4, 5])])
        torch.testing.assert_close(sums, torch.ones(4, dtype=torch.float64))
    directions = [torch.randn_like(weights) for weights in parts(mixing)]
    loss = sum((d * w).sum() for d, w in zip(directions, parts(mixing), strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients(loss, net.alphas()))
