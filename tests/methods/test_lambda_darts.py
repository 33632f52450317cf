"""Λ-DARTS: the alignment of the normal cells, its gradient, and ten steps against the formula written out."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_sg.backends import accelerate
from darts_sg.config import SearchConfig, load_recipe
from darts_sg.errors import UsageError
from darts_sg.methods.weight_regularizers.alignment import Alignment
from darts_sg.networks.supernet import Mixing, Supernet
from tests.methods.textbook_search import TextbookSearch, compare_ten_steps, job_of
from tests.reference.transfer import assert_equal_tensors
from tests.test_command_line import assert_same

SMALL = {"cells": 4}


def direction(gradients: list[Tensor]) -> list[Tensor]:
    """2 / (n (n - 1)) · 1 / ‖g_l‖ · (I - u_l u_lᵀ) · Σ_j u_j with u = g / ‖g‖ (Λ-DARTS, the appendix)."""
    n = len(gradients)
    units = [g.flatten() / g.norm() for g in gradients]
    found = []
    for g, u in zip(gradients, units, strict=True):
        projection = torch.eye(len(u), dtype=u.dtype) - torch.outer(u, u)
        found.append((2 / (n * (n - 1)) / g.norm() * projection @ sum(units)).view_as(g))
    return found


def test_the_direction_is_the_gradient_of_the_mean_cosine() -> None:
    torch.manual_seed(0)
    g = torch.randn(3, 4, 5, dtype=torch.float64)
    assert_equal_tensors(Alignment().direction(g), direction(list(g)))


def test_the_direction_by_signs_is_that_of_the_other_agreement() -> None:
    torch.manual_seed(0)
    g = torch.randn(3, 4, 5, dtype=torch.float64)
    expected = []
    for i in range(3):
        found = torch.zeros(20, dtype=torch.float64)
        for j in range(3):
            if i != j:
                a, b = g[i].flatten(), g[j].flatten()
                size = (a * b).abs().sum()
                found += (b - (a @ b) / size * a.sign() * b.abs()) / size
        expected.append(found.view(4, 5) / 3)
    assert_equal_tensors(Alignment(signs=True).direction(g), expected)


def test_identical_cells_are_aligned_and_ask_for_nothing() -> None:
    g = torch.randn(1, 4, 5, dtype=torch.float64).expand(3, -1, -1)
    assert Alignment().direction(g).abs().max() < 1e-12


class LambdaDarts(TextbookSearch):
    """The weights' gradient plus λ(e) · (∇w L(p - εu) - ∇w L(p + εu)) / 2ε."""

    def loss_of_cells(self, batch: tuple[Tensor, Tensor], normal: list[Tensor], reduce: Tensor) -> Tensor:
        """The loss with mixing weights for each normal cell."""
        s0 = s1 = self.net.stem0(batch[0].double())
        own = iter(normal)
        for cell in self.net.cells:
            weights = reduce if cell.reduction else next(own)
            s0, s1 = s1, cell(s0, s1, weights, torch.ones(2, dtype=torch.float64))
        return F.cross_entropy(self.net.classifier(s1.mean(dim=(2, 3))), batch[1])

    def weight_gradients(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        normal, reduce = (weights.detach() for weights in self.mixing())
        cells = [normal.clone().requires_grad_() for cell in self.net.cells if not cell.reduction]
        loss = self.loss_of_cells(batch, cells, reduce)
        found = torch.autograd.grad(loss, [*cells, *self.weights])
        of_cells, gradients = found[: len(cells)], found[len(cells) :]
        u = direction(list(of_cells))
        eps = self.radius / torch.cat([part.flatten() for part in u]).norm()
        plus, minus = (
            torch.autograd.grad(
                self.loss_of_cells(batch, [normal + sign * eps * part for part in u], reduce), self.weights
            )
            for sign in (1, -1)
        )
        strength = self.strength * self.epoch / (self.config.epochs - 1)
        return [g + strength * (m - p) / (2 * eps) for g, p, m in zip(gradients, plus, minus, strict=True)]


def test_ten_steps_are_those_of_the_textbook() -> None:
    assert load_recipe("search", "lambda-darts")["weight_regularizer"] == "alignment:strength=0.125,radius=1e-4"
    job = job_of(recipe="lambda-darts", weight_regularizer="alignment:strength=3,radius=1e-3", **SMALL)
    expected = LambdaDarts(job)
    expected.strength, expected.radius = 3, 1e-3
    compare_ten_steps(job, expected, 1e-5)


@pytest.mark.parametrize("backend", ["eager", "batched"])
def test_cells_with_the_same_mixing_weights_of_their_own_compute_the_same(backend: str) -> None:
    torch.manual_seed(0)
    net = Supernet(("sep_conv_3x3", "skip_connect"), channels=4, cells=5, num_nodes=2, auxiliary_skip=True).eval()
    accelerate(net, backend)
    x, normal, reduce, beta = torch.randn(2, 3, 8, 8), torch.rand(5, 2), torch.rand(5, 2), torch.tensor(0.5)
    shared = net(x, Mixing(normal, reduce), skip=beta)
    own = Mixing(normal.expand(3, 5, 2), reduce.expand(2, 5, 2))
    assert torch.equal(shared, net(x, own, skip=beta))
    changed = own.normal.clone()
    changed[1] += 0.5
    assert not torch.equal(shared, net(x, own._replace(normal=changed), skip=beta))


def test_a_resumed_job_goes_on_to_the_same_bits_beside_other_parts() -> None:
    options = {
        "weight_regularizer": "alignment:signs=true", "auxiliary_skip": "linear", "perturbation": "random",
        "relaxation": "gumbel:hard=true", "drop_path_prob": 0.2, "hypergradient": "unrolled", **SMALL,
    }  # fmt: skip
    whole, resumed = job_of(**options), job_of(**options)
    whole.step(2, 0)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for job in (whole, resumed):
        assert job.step(2, 1).means["train_loss"].isfinite()
    assert_same(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cells": 3}, "compares normal cells, of which --cells 3 leaves 1; give --cells 4 or more"),
        ({"weight_regularizer": "alignment:0"}, "strength must be above 0, found 0.0"),
        ({"weight_regularizer": "align"}, "unknown weight regularizer 'align'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        SearchConfig(**{"recipe": "lambda-darts", "data": Path(), **options})
    assert said in str(caught.value)
