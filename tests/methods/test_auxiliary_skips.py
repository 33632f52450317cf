"""The auxiliary skip of DARTS-: the edge against the formula written out, and what must not see it."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from darts_sg.backends import accelerate, ir
from darts_sg.backends.batched import edge_batches, plain_tensors
from darts_sg.backends.cpp import build
from darts_sg.config import SearchConfig, load_recipe
from darts_sg.errors import UsageError
from darts_sg.methods.auxiliary_skips import AUXILIARY_SKIPS
from darts_sg.methods.perturbations import PERTURBATIONS
from darts_sg.networks.supernet import Mixing, Supernet
from tests.methods.textbook_search import TextbookSearch, compare_ten_steps, job_of
from tests.reference import textbook
from tests.reference.transfer import assert_equal_tensors, copy_tensors
from tests.test_command_line import assert_same

OPERATIONS = ("skip_connect", "sep_conv_3x3", "avg_pool_3x3", "none")


class EdgeWithSkip(nn.Module):
    """o(x) = Σ_k w_k · op_k(x) + β · s(x), with s behind the operations."""

    def __init__(self, edge: textbook.MixedOp, beta: Tensor) -> None:
        super().__init__()
        C = edge.C_mixed
        self.edge, self.beta = edge, beta
        self.s = nn.Identity() if edge.stride == 1 else textbook.FactorizedReduce(C, C, affine=False)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        K, C = self.edge.K, self.edge.C_mixed
        own = self.beta * self.s(x[:, :C])
        if K == 1:
            return self.edge(x, weights) + own
        passed = torch.zeros_like(own).repeat(1, K - 1, 1, 1)  # the skip is on the channels that are searched
        return self.edge(x, weights) + textbook.channel_shuffle(torch.cat([own, passed], dim=1), K)


def add_skips(net: textbook.Supernet, beta: Tensor) -> None:
    for cell in net.cells:
        cell.edges = nn.ModuleList(EdgeWithSkip(edge, beta) for edge in cell.edges)
    net.double()


@pytest.mark.parametrize("partial_channels", [1, 2])
@pytest.mark.parametrize("backend", ["eager", "batched", "cpp"])
def test_an_edge_adds_beta_times_the_skip(backend: str, partial_channels: int) -> None:
    if backend == "cpp":
        try:
            build.kernels()
        except build.Unavailable as reason:
            pytest.skip(str(reason))
    torch.manual_seed(0)
    options = {"channels": 4, "cells": 3, "num_nodes": 2, "num_classes": 3, "partial_channels": partial_channels}
    edge_weighted = partial_channels > 1
    net = Supernet(OPERATIONS, auxiliary_skip=True, edge_normalization=edge_weighted, **options).double()
    accelerate(net, backend)
    beta = torch.tensor(0.3, dtype=torch.float64)
    exact = textbook.Supernet(OPERATIONS, **options)
    add_skips(exact, beta)
    copy_tensors(exact.parameters(), plain_tensors(net).values())
    weights = [torch.randn(5, 4, dtype=torch.float64).softmax(dim=1).requires_grad_() for _ in range(2)]
    edges = [torch.rand(5, dtype=torch.float64).requires_grad_() for _ in range(2)] if edge_weighted else []
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = net(x, Mixing(*weights, *edges), skip=beta)
    expected = exact(x, *weights, *edges)
    assert_equal_tensors([found], [expected])
    wanted = [*weights, *edges]
    found.square().sum().backward()
    theirs = torch.autograd.grad(expected.square().sum(), [*wanted, *exact.parameters()])
    assert_equal_tensors([weight.grad for weight in wanted], theirs[: len(wanted)], 1e-8)
    mine = plain_tensors(net, of=lambda tensor: tensor.grad)
    assert_equal_tensors(mine.values(), theirs[len(wanted) :], 1e-8)


def test_without_a_factor_the_skip_adds_nothing() -> None:
    torch.manual_seed(0)
    net = Supernet(OPERATIONS, channels=4, cells=3, num_nodes=1, auxiliary_skip=True).eval()
    x, weights = torch.randn(2, 3, 8, 8), torch.rand(2, 4)
    assert torch.equal(net(x, Mixing(weights, weights)), net(x, Mixing(weights, weights), skip=torch.zeros(())))
    assert not torch.equal(net(x, Mixing(weights, weights)), net(x, Mixing(weights, weights), skip=torch.ones(())))


def test_the_skip_of_stride_1_is_one_more_coefficient_of_the_identity() -> None:
    """The fused form of a normal cell is the same with and without it."""
    nets = []
    for auxiliary_skip in (False, True):
        net = Supernet(OPERATIONS, channels=4, cells=3, num_nodes=2, auxiliary_skip=auxiliary_skip)
        accelerate(net, "batched")
        nets.append([batch for batch in edge_batches(net) if batch.stride == 1])
    for plain, with_skip in zip(*nets, strict=True):
        described = [ir.digest("", [batch.fused(batch.known())]) for batch in (plain, with_skip)]
        assert described[0] == described[1]


@pytest.mark.parametrize("name", [name for name in AUXILIARY_SKIPS if name != "none"])
def test_schedules(name: str) -> None:
    skip = AUXILIARY_SKIPS[name](0.5)
    shares = {
        "linear": lambda t: 1 - t,
        "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
        "constant": lambda t: 1.0,
    }
    for done in (0.0, 0.25, 0.98):
        expected = torch.tensor(0.5 * shares[name](done), dtype=torch.float64)
        torch.testing.assert_close(skip(torch.tensor(done, dtype=torch.float64)), expected)
    with pytest.raises(UsageError, match="beta must be above 0"):
        AUXILIARY_SKIPS[name](0.0)


class DartsMinus(TextbookSearch):
    """β falls from 1 in the first epoch to 1 / E in the last one."""

    def change_edges(self) -> None:
        self.beta = torch.ones((), dtype=torch.float64)
        add_skips(self.net, self.beta)

    def step(self, epoch: int, step: int) -> None:
        self.beta.fill_((self.config.epochs - epoch) / self.config.epochs)
        super().step(epoch, step)


def test_ten_steps_are_those_of_the_textbook() -> None:
    assert load_recipe("search", "darts-minus") == {"auxiliary_skip": "linear"}
    job = job_of(recipe="darts-minus")
    compare_ten_steps(job, DartsMinus(job))


def test_logs_genotypes_and_sizes_do_not_know_the_skip() -> None:
    job = job_of(auxiliary_skip="linear", regularizer="macs:0.5", perturbation="random")
    job.step(0, 0)
    assert {name: weights.shape for name, weights in job.mixing().items()} == {"normal": (2, 3), "reduce": (2, 3)}
    assert [alpha.shape for alpha in job.alphas] == [(2, 3), (2, 3)]
    assert job.select(job.mixing())


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_every_pass_of_an_epoch_sees_its_factor(perturbation: str) -> None:
    """The passes of an attack, the evaluation and the eigenvalue included."""
    job = job_of(
        auxiliary_skip="linear", relaxation="gumbel", partial_channels=2, edge_normalization=True,
        hypergradient="unrolled", perturbation=perturbation,
    )  # fmt: skip
    seen: list[Tensor] = []
    job.supernet.register_forward_pre_hook(lambda net, inputs, named: seen.append(named["skip"]), with_kwargs=True)
    job.step(1, 0)
    job.evaluate()
    if perturbation == "none":
        job.eigenvalue()
    assert len(seen) > 9
    assert {skip.item() for skip in seen} == {0.75}


@pytest.mark.parametrize("perturbation", ["none", "random"])
def test_a_resumed_job_goes_on_to_the_same_bits_and_evaluates_the_same(perturbation: str) -> None:
    options = {"auxiliary_skip": "cosine", "hypergradient": "unrolled", "perturbation": perturbation}
    whole, resumed = job_of(**options), job_of(**options)
    whole.step(2, 4)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert whole.evaluate() == resumed.evaluate()
    for job in (whole, resumed):
        job.step(3, 0)
    assert_same(whole.state_dict(), resumed.state_dict())


def test_none_leaves_the_random_numbers_as_they_were() -> None:
    states = []
    for options in ({}, {"auxiliary_skip": False}):
        torch.manual_seed(0)
        net = Supernet(OPERATIONS, channels=4, cells=3, num_nodes=2, **options)
        states.append((net.state_dict(), torch.get_rng_state()))
    assert_same(*states)


def test_a_schedule_that_cannot_be_is_refused() -> None:
    for text, said in (("linea", "did you mean 'linear'"), ("none:1", "it has no options")):
        with pytest.raises(UsageError, match=said):
            SearchConfig(auxiliary_skip=text, data=Path())
