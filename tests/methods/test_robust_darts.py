"""R-DARTS: drop path on the edges of a supernet, against the formula written out, and cutout that grows."""

import copy

import pytest
import torch
from torch import Tensor, nn

from darts_sg.backends import accelerate, backend_of
from darts_sg.backends.batched import plain_tensors
from darts_sg.backends.cpp import build
from darts_sg.config import SearchConfig, load_recipe
from darts_sg.data import Augment, TrainBatches
from darts_sg.engine.distributed import Ranks
from darts_sg.errors import UsageError
from darts_sg.methods.drop_path import EdgeDropPath
from darts_sg.networks.supernet import Mixing, Supernet
from tests.methods.textbook_search import UnrolledTextbook, compare_ten_steps, job_of
from tests.reference import textbook
from tests.reference.transfer import assert_equal_tensors, copy_tensors
from tests.test_command_line import assert_same

OPERATIONS = ("skip_connect", "dil_conv_3x3", "sandglass_3x3", "avg_pool_3x3", "conv_7x1_1x7", "none")


class DroppedEdge(nn.Module):
    """The output of an edge, each image of it times a factor."""

    def __init__(self, edge: nn.Module) -> None:
        super().__init__()
        self.edge = edge
        self.factors = torch.ones(1, dtype=torch.float64)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.factors[:, None, None, None] * self.edge(x, weights)


def drop_edges(net: textbook.Supernet) -> None:
    for cell in net.cells:
        cell.edges = nn.ModuleList(DroppedEdge(edge) for edge in cell.edges)


def set_factors(net: textbook.Supernet, factors: Tensor) -> None:
    """factors: (cells, edges, images)."""
    for cell, of_cell in zip(net.cells, factors, strict=True):
        for edge, of_edge in zip(cell.edges, of_cell, strict=True):
            edge.factors = of_edge


@pytest.mark.parametrize("partial_channels", [1, 2])
@pytest.mark.parametrize("backend", ["eager", "batched", "cpp"])
def test_each_image_of_an_edge_has_its_factor(backend: str, partial_channels: int) -> None:
    if backend == "cpp":
        try:
            build.kernels()
        except build.Unavailable as reason:
            pytest.skip(str(reason))
    torch.manual_seed(0)
    options = {"channels": 4, "cells": 3, "num_nodes": 2, "num_classes": 3, "partial_channels": partial_channels}
    net = Supernet(OPERATIONS, edge_normalization=partial_channels > 1, **options).double()
    accelerate(net, backend)
    exact = textbook.Supernet(OPERATIONS, **options).double()
    drop_edges(exact)
    copy_tensors(exact.parameters(), plain_tensors(net).values())
    kept = torch.tensor([0.0, 1.25, 2.0], dtype=torch.float64)[torch.randint(3, (3, 5, 4))]
    set_factors(exact, kept)
    inputs = [torch.rand(5, len(OPERATIONS), dtype=torch.float64).requires_grad_() for _ in range(2)]
    if partial_channels > 1:
        inputs += [torch.rand(5, dtype=torch.float64).requires_grad_() for _ in range(2)]
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    found, expected = net(x, Mixing(*inputs), kept=kept), exact(x, *inputs)
    assert_equal_tensors([found], [expected])
    found.square().sum().backward()
    theirs = torch.autograd.grad(expected.square().sum(), [*inputs, *exact.parameters()])
    mine = [*(tensor.grad for tensor in inputs), *plain_tensors(net, of=lambda tensor: tensor.grad).values()]
    assert_equal_tensors(mine, theirs, 1e-7)


def test_the_probability_grows_from_0_to_its_end() -> None:
    drawn = torch.rand(2, 3, 10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for epoch in range(5):
        kept = EdgeDropPath(0.6).kept(drawn, torch.tensor(epoch / 4, dtype=torch.float64))
        p = 0.6 * epoch / 4
        torch.testing.assert_close(kept.max(), torch.tensor(1 / (1 - p), dtype=torch.float64))
        assert ((kept == 0) | (kept == kept.max())).all()
        assert (kept == 0).double().mean() == pytest.approx(p, abs=0.01)
        assert kept.mean() == pytest.approx(1, abs=0.03)


class RobustDarts(UnrolledTextbook):
    """Drop path with the job's random numbers: one draw for the alphas' step, one for the weights'."""

    def change_edges(self) -> None:
        drop_edges(self.net)

    def step(self, epoch: int, step: int) -> None:
        self.epoch = epoch
        self.generator = torch.Generator().manual_seed(self.job.generator.initial_seed())  # the job stepped before
        super().step(epoch, step)

    def draw(self) -> None:
        uniform = torch.rand(3, 2, 8, generator=self.generator).double()
        p = 0.5 * self.epoch / 3
        set_factors(self.net, (uniform < 1 - p) / (1 - p))

    def alpha_gradients(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        self.draw()
        return super().alpha_gradients(batch)

    def weight_gradients(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        self.draw()
        return super().weight_gradients(batch)


def test_ten_steps_of_drop_path_are_those_of_the_textbook() -> None:
    assert load_recipe("search", "robust-darts-dp")["drop_path_prob"] == 0.2
    job = job_of(recipe="robust-darts-dp", drop_path_prob=0.5, cutout_length=4)
    compare_ten_steps(job, RobustDarts(job), 1e-5)


def test_ten_steps_of_a_larger_weight_decay_are_those_of_the_textbook() -> None:
    job = job_of(recipe="robust-darts-l2")
    assert job.config.weight_decay == pytest.approx(0.0027)
    compare_ten_steps(job, UnrolledTextbook(job), 1e-5)


def test_the_passes_of_a_finite_difference_see_one_draw_and_evaluation_none() -> None:
    job = job_of(hypergradient="unrolled", drop_path_prob=0.5, perturbation="random")
    seen: list[Tensor | None] = []
    job.supernet.register_forward_pre_hook(lambda net, inputs, named: seen.append(named["kept"]), with_kwargs=True)
    job.step(3, 0)
    *hypergradient, weights = seen
    assert len(hypergradient) == 4
    assert all(torch.equal(kept, hypergradient[0]) for kept in hypergradient)
    assert not torch.equal(weights, hypergradient[0])
    assert (weights == 0).any()
    del seen[:]
    job.evaluate()
    job.eigenvalue()
    assert set(seen) == {None}


def test_a_resumed_job_draws_the_same_and_ranks_share_one_draw() -> None:
    options = {"drop_path_prob": 0.5, "cutout_length": 4, "cutout_schedule": "linear", "relaxation": "gumbel"}
    whole, resumed = job_of(**options), job_of(**options)
    whole.step(2, 0)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for job in (whole, resumed):
        job.step(2, 1)
    assert_same(whole.state_dict(), resumed.state_dict())
    draw, batch = whole._draw(), whole.train[0]
    parts = []
    for rank in range(2):
        whole.setting.ranks = Ranks(rank, 2)
        parts.append(whole._kept(draw, (batch[0][:4], batch[1][:4])))
    whole.setting.ranks = Ranks()
    assert torch.equal(torch.cat(parts, dim=-1), whole._kept(draw, batch))


def test_native_kernels_leave_drop_path_to_pytorch() -> None:
    job = job_of(drop_path_prob=0.2, kernels="auto")
    assert backend_of(job.supernet) == "batched"
    job.attempt(20, recompute=True)  # more images than in a batch
    assert "drop path: PyTorch computes the cells, without kernels of our own" in job.facts()
    with pytest.raises(UsageError, match="--kernels native computes no drop path in a search; leave one of them out"):
        job_of(drop_path_prob=0.2, kernels="native")


def test_cutout_grows_by_pass_and_leaves_crops_and_flips_alone() -> None:
    job = job_of()
    images, spec = job.train_images, job.setting.data.spec
    plain, growing = (TrainBatches(images, spec, 8, Augment(cutout_length=4, cutout_growth=n), 0, "a") for n in (0, 3))
    for number in range(3):
        positions = range(number * len(growing), (number + 1) * len(growing))
        draws = [growing.own_draws(position) for position in positions]
        cut = torch.cat([draw.cut for draw in draws])
        assert {0: not cut.any(), 1: 0 < cut.sum() < len(cut), 2: cut.all()}[number]
        for position, draw in zip(positions, draws, strict=True):
            assert_same([draw.offsets, draw.flips, draw.centres], list(vars(plain.own_draws(position)).values())[:3])
            same = [torch.equal(a, b) for a, b in zip(plain[position][0], growing[position][0], strict=True)]
            assert all(same[i] for i in range(len(same)) if draw.cut[i])
            assert number != 0 or not any(same)


def test_what_cannot_be_is_refused() -> None:
    for options, said in (
        ({"drop_path_prob": 1.0}, "--drop-path-prob must be from 0 up to, not including, 1: 1.0"),
        ({"cutout_schedule": "linear"}, "--cutout-schedule linear has nothing to cut: add --cutout-length"),
    ):
        with pytest.raises(UsageError, match=said):
            SearchConfig(**options)
