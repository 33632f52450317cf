"""Partial channels on the C++ kernels: a cell is one graph, whose values are those of PyTorch and of the textbook."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_sg.backends import accelerate, ir
from darts_sg.backends.batched import plain_tensors
from darts_sg.backends.cpp import build
from darts_sg.backends.cpp import run as cpp
from darts_sg.backends.cpp.run import Layout, images_side_by_side
from darts_sg.derive import num_edges
from darts_sg.networks.skeleton import State
from darts_sg.networks.supernet import CellWeights, Supernet
from darts_sg.spaces import parse_space
from tests.backends.test_chains import UNOPTIMISED, processor_has
from tests.networks.test_supernet import mixing_of, pair, statistics
from tests.reference import textbook
from tests.reference.transfer import assert_equal_tensors, gradients

# (K, channels, images, height and width): channels that fill vectors with two and four images, that leave some of a
# vector empty, and that need more than one vector; numbers of images that four or two do not divide; odd sizes
SHAPES = [
    (4, 16, 4, (8, 8)),
    (4, 16, 3, (9, 7)),
    (4, 8, 8, (8, 6)),
    (2, 6, 4, (9, 9)),
    (2, 4, 6, (7, 8)),
    (3, 12, 2, (6, 6)),
    (8, 16, 4, (5, 8)),
    (4, 48, 2, (6, 5)),
]
SPACE = "none+sep_conv_3x3+dil_conv_5x5+sandglass_3x3+inverted_residual_3x3+max_pool_3x3+avg_pool_3x3+skip_connect"


@pytest.fixture(autouse=True)
def _kernels() -> None:
    try:
        build.kernels(real="double")
    except build.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def network_of(K: int, channels: int, edge_normalization: bool = True) -> tuple[Supernet, textbook.Supernet]:
    torch.manual_seed(0)  # for the classifier's bias
    options = {"channels": channels, "cells": 3, "num_nodes": 3, "num_classes": 5, "partial_channels": K}
    return pair(SPACE, edge_normalization, "cpp", **options)


def images_of(N: int, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(N, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(dtype)


def outcome(network: Supernet, x: Tensor) -> list[Tensor]:
    """Logits, the gradients of all weights by their plain names and of the alphas, and the running statistics."""
    logits = network(x, mixing_of(network.alphas()))
    wanted = [*network.weights(), *network.alphas()]
    found = gradients(F.cross_entropy(logits, torch.arange(len(x)) % 5), wanted)
    mine = dict(zip(wanted, found, strict=True))
    by_name = plain_tensors(network, of=lambda weight: mine[weight])
    return [
        logits,
        *by_name.values(),
        *(mine[a] for a in network.alphas()),
        *plain_tensors(network, "buffers").values(),
    ]


@pytest.mark.parametrize("edge_normalization", [False, True])
@pytest.mark.parametrize(("K", "channels", "N", "size"), SHAPES)
def test_a_network_is_the_textbook_one_and_that_of_pytorch(
    K: int, channels: int, N: int, size: tuple[int, int], edge_normalization: bool
) -> None:
    network, expected = network_of(K, channels, edge_normalization)
    x = images_of(N, size)
    for training in (True, False):
        accelerate(network.train(training), "cpp")
        mine = outcome(network, x)
        alphas = [alpha.detach().clone().requires_grad_() for alpha in network.alphas()]
        logits = expected.train(training)(x, *mixing_of(alphas))
        wanted = [*expected.parameters(), *alphas]
        theirs = gradients(F.cross_entropy(logits, torch.arange(N) % 5), wanted)
        assert_equal_tensors(mine, [logits, *theirs, *statistics(expected)])
        if not training:  # nothing changes between the two passes
            accelerate(network, "batched")
            assert_equal_tensors(mine, outcome(network, x))


@pytest.mark.parametrize("K", [2, 4])
def test_a_cell_is_one_call_of_the_kernels_a_pass(K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = network_of(K, 16)
    graphs: list[ir.CellGraph] = []
    original = cpp.run

    def run(inputs: Any, gammas: Any, graph: ir.CellGraph) -> list[Tensor]:
        graphs.append(graph)
        return original(inputs, gammas, graph)

    monkeypatch.setattr(cpp, "run", run)
    network(images_of(2, (8, 8)), mixing_of(network.alphas()))
    assert len(graphs) == len(network.cells)


@pytest.mark.parametrize("K", [2, 4])
@pytest.mark.parametrize("number", [0, 1])
def test_recomputation_and_the_number_of_threads_change_no_bit(K: int, number: int, threads: object) -> None:
    """Of a normal and of a reduction cell."""
    network, _ = network_of(K, 16)
    cell = network.cells[number]
    weights = torch.rand(num_edges(3), len(network.operations), dtype=torch.float64, requires_grad=True)
    edges = torch.rand(num_edges(3), dtype=torch.float64, requires_grad=True)
    states = [torch.randn(8, C, 9, 8, dtype=torch.float64) for C in (cell.spec.C_pp, cell.spec.C_p)]
    states = [state.contiguous(memory_format=torch.channels_last).requires_grad_() for state in states]
    found = []
    for recompute, of_threads in ((False, 1), (True, 1), (False, 2), (False, 3)):
        torch.set_num_threads(of_threads)
        s0, s1 = (State(state) for state in states)
        output = cell(s0, s1, CellWeights(weights, edges), recompute).joined()
        found.append([output, *torch.autograd.grad((output**3).sum(), [*states, weights, edges, *cell.parameters()])])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("frozen", ["weights", "alphas"])
def test_frozen_weights_and_alphas_get_no_gradient(frozen: str) -> None:
    network, _ = network_of(4, 16)
    x = images_of(4, (8, 8))
    expected = outcome(network, x)
    parameters = {"weights": network.weights(), "alphas": network.alphas()}
    wanted = parameters["alphas" if frozen == "weights" else "weights"]
    for parameter in parameters[frozen]:
        parameter.requires_grad_(False)
    loss = F.cross_entropy(network(x, mixing_of(network.alphas())), torch.arange(4) % 5)
    found = dict(zip(wanted, torch.autograd.grad(loss, wanted), strict=True))
    if frozen == "weights":
        assert_equal_tensors(found.values(), expected[-len(plain_tensors(network, "buffers")) - 4 :][:4])
    else:
        by_name = list(plain_tensors(network, of=found.get).values())
        assert_equal_tensors(by_name, expected[1 : 1 + len(by_name)])


@pytest.mark.parametrize("channels", [8, 16, 32, 64])
def test_float32_agrees_with_float64_to_its_precision(channels: int) -> None:
    """Eight, four and two images in a vector of 16 values, and one."""
    network, _ = network_of(4, channels)
    exact = outcome(network, images_of(8, (8, 8)))
    single, _ = network_of(4, channels)
    found = outcome(single.float(), images_of(8, (8, 8), torch.float32))
    for a, b in zip(found, exact, strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm() + 1e-5  # a ReLU that flips counts in full


@pytest.mark.parametrize(("options", "feature"), [("", "sse2"), ("-mavx2 -mfma", "avx2"), ("-mavx512f", "avx512f")])
def test_vectors_of_any_width(options: str, feature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not processor_has(feature):
        pytest.skip(f"this processor has no {feature}")
    flags = ["-march=x86-64" if flag == "-march=native" else flag for flag in UNOPTIMISED]
    monkeypatch.setattr(build, "FLAGS", (*flags, *options.split()))
    monkeypatch.setattr(build, "_loaded", {})
    for K, channels in ((4, 16), (4, 8), (2, 6)):
        network, _ = network_of(K, channels)
        network.eval()
        x = images_of(4, (9, 8))
        mine = outcome(network, x)
        accelerate(network, "batched")
        assert_equal_tensors(mine, outcome(network, x))


@pytest.mark.parametrize(("K", "channels"), [(2, 4), (4, 16), (3, 9), (8, 16), (4, 12), (4, 36)])
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
def test_channels_that_by_pass_the_operations(K: int, channels: int, size: tuple[int, int]) -> None:
    """All kinds of a RouteStep in one graph, ties and NaN included."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-2, 3, (6, channels, *size), generator=generator).double() for _ in range(2))
    x[0, 0, -1, -1] = torch.nan
    for state in (x, y):
        state.requires_grad_()
    gamma = torch.randn(1, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    steps = [
        ir.RouteStep(ir.TAKE, K, [0], [2]),
        ir.RouteStep(ir.HALVE, K, [0], [3]),
        ir.RouteStep(ir.SHUFFLE, K, [2, 0, 1], [4]),
    ]
    mine = cpp.run([x, y], [one, one, gamma], ir.CellGraph(2, steps, [3, 4]))
    both = gamma[0, 0] * x + gamma[0, 1] * y
    joined = torch.cat([x[:, : channels // K], both[:, channels // K :]], dim=1)
    expected = [F.max_pool2d(x, 2, 2, ceil_mode=True), textbook.channel_shuffle(joined, K)]
    by = [torch.randn(node.shape, dtype=torch.float64, generator=generator) for node in expected]
    found = []
    for nodes in (mine, expected):
        loss = sum((node.nan_to_num() * factor).sum() for node, factor in zip(nodes, by, strict=True))
        found.append([*nodes, *torch.autograd.grad(loss, [x, y])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, check_stride=False)
    finite = [x.nan_to_num() for x in (x, y)]
    of_gamma = (textbook.channel_shuffle(state, K) * by[1] for state in finite)
    bypass = textbook.channel_shuffle(torch.ones(1, channels, 1, 1).index_fill(1, torch.arange(channels // K), 0.0), K)
    expected_gamma = torch.stack([(each * bypass).sum() for each in of_gamma])[None]
    loss = (cpp.run([*finite], [one, one, gamma], ir.CellGraph(2, steps, [3, 4]))[1] * by[1]).sum()
    assert_equal_tensors(torch.autograd.grad(loss, gamma), [expected_gamma])


def test_the_gradient_of_an_output_that_operations_read_in_part_is_left_alone() -> None:
    """The kernels add to the gradient of such a node, so it has to be a copy where only autograd gives one."""
    x = torch.randn(4, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    pool = ir.pool_of([torch.nn.MaxPool2d(3, 1, padding=1)])
    assert pool is not None
    steps = [
        ir.RouteStep(ir.TAKE, 2, [0], [1]),
        ir.RouteStep(ir.SHUFFLE, 2, [1, 0], [2, 3]),
        ir.GraphStep(ir.FusedOps(1, 1, [ir.FusedOp([pool])]), [3], [4]),
    ]
    node, pooled = cpp.run([x], [one, one, one], ir.CellGraph(1, steps, [2, 4]))
    shuffled = textbook.channel_shuffle(x, 2)
    expected = F.max_pool2d(shuffled[:, :4], 3, 1, padding=1)
    assert_equal_tensors([node, pooled.sum()], [shuffled, expected.sum()])
    by = torch.randn_like(node).contiguous(memory_format=torch.channels_last)
    before = by.clone()
    # 1 for each pixel of `pooled`, whose images stand side by side
    mine = torch.autograd.grad([node, pooled], [x], [by, torch.ones_like(pooled)])
    assert_equal_tensors(mine, torch.autograd.grad([shuffled, expected], [x], [before, torch.ones_like(expected)]))
    assert torch.equal(by, before)


def test_how_many_images_share_a_vector() -> None:
    size = build.kernels(real="double").vector_size()
    assert images_side_by_side(12 * size, 1, 8) == size
    assert images_side_by_side(7, size, 8) == 1
    assert images_side_by_side(7, 4 * size, 8) == 1
    for N in range(1, 20):
        found = images_side_by_side(N, 2, 8)
        assert N % found == 0
        assert found == 1 or 2 * found <= size


def test_states_of_another_layout_are_refused() -> None:
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    steps = [ir.RouteStep(ir.SHUFFLE, 2, [0, 1], [2])]
    with pytest.raises(ValueError, match="dense and of one size"):
        cpp.run([x, x], [torch.ones(1, 1).double()], ir.CellGraph(2, steps, [2]))
    assert Layout.dense(2, 4, 6, 6).packed == 1


def test_a_check_of_the_kernels_vouches_for_the_number_of_parts() -> None:
    """Networks of equal operations whose states are split in another way."""
    digests = set()
    for K, channels in ((1, 4), (2, 8), (4, 16)):
        network = Supernet(parse_space("sep_conv_3x3").operations, channels=channels, cells=3, partial_channels=K)
        accelerate(network, "cpp")
        routes = {step.describe() for step in network.cells[2].fused()}
        digests.add(frozenset(routes))
        assert any(f"K {K}" in text for text in routes) == (K > 1)
    assert len(digests) == 3
