"""The supernet against the textbook one in float64, on every CPU backend: logits, gradients and statistics."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_sg.analysis.cost import count_macs
from darts_sg.backends import accelerate, batched
from darts_sg.backends.batched import plain_tensors
from darts_sg.backends.cpp import build
from darts_sg.derive import num_edges
from darts_sg.errors import UsageError
from darts_sg.networks.supernet import Mixing, Supernet
from darts_sg.ops import OPERATIONS
from darts_sg.spaces import SPACES, parse_space
from tests.reference import textbook
from tests.reference.transfer import assert_equal_tensors, copy_tensors, gradients, randomize

EVERY = "+".join(name for name in OPERATIONS if not OPERATIONS[name].is_random)
PLAIN = {"channels": 4, "cells": 4, "num_classes": 7}
IMAGENET = {**PLAIN, "network": "imagenet"}
PARTIAL = {"channels": 8, "cells": 3, "num_classes": 7, "partial_channels": 4}
FEW = {"num_nodes": 2}  # where there are many operations


def pair(
    space: str, edge_normalization: bool, backend: str = "eager", **options: Any
) -> tuple[Supernet, textbook.Supernet]:
    """(the package's, the textbook's) supernet in float64 with the same random weights; alphas are normal."""
    operations = parse_space(space).operations
    expected = textbook.Supernet(operations, **options).double()
    randomize(expected, seed=1)
    actual = Supernet(operations, **options, edge_normalization=edge_normalization).double()
    accelerate(actual, backend)
    copy_tensors(plain_tensors(actual).values(), expected.parameters())
    copy_tensors(plain_tensors(actual, "buffers").values(), statistics(expected))
    # the pools on all edges that leave a state see the same images, and so have the same statistics
    copy_tensors(statistics(expected), plain_tensors(actual, "buffers").values())
    generator = torch.Generator().manual_seed(2)
    copy_tensors(actual.alphas(), [torch.randn(a.shape, generator=generator) for a in actual.alphas()])
    return actual, expected


def statistics(net: torch.nn.Module) -> list[Tensor]:
    """The running statistics, without the counters of batches, which the package does not keep."""
    return [buffer for name, buffer in net.named_buffers() if not name.endswith("num_batches_tracked")]


def mixing_of(alphas: list[Tensor]) -> Mixing:
    """Alphas (and betas) as mixing weights, by the textbook's softmax."""
    over_operations = [textbook.softmax_over_operations(alpha) for alpha in alphas[:2]]
    return Mixing(*over_operations, *[textbook.softmax_over_edges(beta) for beta in alphas[2:]])


@pytest.fixture(params=["eager", "batched", "cpp"])
def backend(request: pytest.FixtureRequest) -> str:
    """What executes the cells."""
    if request.param == "cpp":
        try:
            build.kernels()
        except build.Unavailable as reason:
            pytest.skip(str(reason))
    return request.param


@pytest.mark.parametrize(
    ("space", "size", "options"),
    [
        *((name, (8, 8), options) for name in SPACES if name != "S4" for options in (PLAIN, PARTIAL)),  # S4: noise
        *((f"darts+{name}", (8, 8), options | FEW) for name in ("ir", "sandglass") for options in (PLAIN, PARTIAL)),
        (EVERY, (9, 7), PLAIN | FEW),
        (EVERY, (9, 7), PARTIAL | FEW),
        ("darts+sandglass", (65, 64), IMAGENET | FEW),
    ],
)
def test_supernet_is_the_textbook_one(space: str, size: tuple[int, int], options: dict[str, Any], backend: str) -> None:
    actual, expected = pair(space, "partial_channels" in options, backend, **options)
    alphas = [a.detach().clone().requires_grad_() for a in actual.alphas()]
    x = torch.randn(3, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mixings = [mixing_of(actual.alphas()), mixing_of(alphas)]
    for training in (True, False):
        outputs = [actual.train(training)(x, mixings[0]), expected.train(training)(x, *mixings[1])]
        assert_equal_tensors(outputs[:1], outputs[1:])
        losses = [F.cross_entropy(logits, torch.arange(3)) for logits in outputs]
        mine = dict(zip(actual.weights(), gradients(losses[0], actual.weights()), strict=True))
        by_edge = plain_tensors(actual, of=lambda weight, mine=mine: mine[weight])
        assert_equal_tensors(by_edge.values(), gradients(losses[1], expected.parameters()))
        # the mixing weights set the scale: alphas of a single operation have gradients of zero
        assert_equal_tensors(
            gradients(losses[0], [*mixings[0][: len(alphas)], *actual.alphas()]),
            gradients(losses[1], [*mixings[1][: len(alphas)], *alphas]),
        )
        assert_equal_tensors(plain_tensors(actual, "buffers").values(), statistics(expected))


@pytest.mark.parametrize("options", [PLAIN, PARTIAL])
def test_operations_that_are_no_chains_of_known_layers_give_the_same(
    options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new operation works at once: without a stacked form each edge keeps a module of its own."""
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(batched, "chain_of", lambda operation: None)
    actual, expected = pair("darts+sandglass", True, "batched", **options)
    modules = {type(op) for cell in actual.cells for batch in cell.batches for op in batch.ops}
    assert modules == {torch.nn.Identity, torch.nn.ModuleList}
    mixing = mixing_of(actual.alphas())
    outputs = [actual(x, mixing), expected(x, *mixing)]
    assert_equal_tensors(outputs[:1], outputs[1:])
    by_alphas = [gradients(F.cross_entropy(logits, torch.arange(3)), actual.alphas()) for logits in outputs]
    assert_equal_tensors(*by_alphas)


@pytest.mark.parametrize(
    ("num_nodes", "space", "partial_channels"),
    [
        (3, "skip_connect+sandglass+max_pool_3x3", 2),
        *((1, space, K) for space in ("sep_conv_3x3", "max_pool_3x3", "skip_connect+sandglass") for K in (1, 2)),
    ],
)
def test_other_shapes_are_the_textbook_ones_too(
    num_nodes: int, space: str, partial_channels: int, backend: str
) -> None:
    options = {"channels": 6, "cells": 4, "num_nodes": num_nodes, "stem_multiplier": 2, "in_channels": 1}
    actual, expected = pair(space, False, backend, **options, partial_channels=partial_channels)
    x = torch.randn(3, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mixing = mixing_of(actual.alphas())
    outputs = [actual(x, mixing), expected(x, *mixing)]
    assert_equal_tensors(outputs[:1], outputs[1:])
    # the mixing weights set the scale: alphas of a single operation have gradients of zero
    wanted = [mixing.normal, mixing.reduce, *actual.alphas()]
    assert_equal_tensors(*(gradients(F.cross_entropy(y, torch.arange(3)), wanted) for y in outputs))


@pytest.mark.parametrize("options", [PLAIN | FEW, PARTIAL | FEW, IMAGENET | FEW])
@pytest.mark.parametrize("backend", ["eager", "batched"])
def test_multiply_adds_are_those_of_the_textbook_layers(options: dict[str, Any], backend: str) -> None:
    with torch.device("meta"), torch.no_grad():
        actual, expected = (of(parse_space("darts+ir").operations, **options) for of in (Supernet, textbook.Supernet))
        accelerate(actual, backend)
        x, mixing = torch.empty(1, 3, 64, 64), mixing_of(actual.alphas())
        assert count_macs(actual, x, mixing) == count_macs(expected, x, *mixing)


def test_channels_last_gives_the_same(backend: str) -> None:
    actual, _ = pair("darts+sandglass", True, backend, **PARTIAL)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    mixing = mixing_of(actual.alphas())
    logits = actual(x, mixing)
    last = actual.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), mixing)
    assert_equal_tensors([last], [logits])


def test_a_one_hot_mixing_selects_one_operation_an_edge() -> None:
    """With all weight on `none`, no image reaches the classifier: the logits are its bias."""
    actual, _ = pair("darts", False, **PLAIN)
    one_hot = torch.zeros(num_edges(4), 8, dtype=torch.float64)
    one_hot[:, 0] = 1
    logits = actual(torch.randn(2, 3, 8, 8, dtype=torch.float64), Mixing(one_hot, one_hot))
    assert_equal_tensors([logits], [actual.head.classifier.bias.expand(2, -1)])


@pytest.mark.parametrize("edge_normalization", [False, True])
def test_parameters_are_either_weights_or_alphas(edge_normalization: bool) -> None:
    torch.manual_seed(0)
    supernet = Supernet(parse_space("darts").operations, **PARTIAL, edge_normalization=edge_normalization)
    weights, alphas = supernet.weights(), supernet.alphas()
    assert len(weights) + len(alphas) == len(list(supernet.parameters()))
    assert {id(p) for p in weights + alphas} == {id(p) for p in supernet.parameters()}
    shapes = [(14, 8), (14, 8), (14,), (14,)]
    assert [tuple(a.shape) for a in alphas] == shapes[: 4 if edge_normalization else 2]
    assert (supernet.beta_normal is not None) == edge_normalization
    start = torch.cat([a.flatten() for a in alphas])
    assert 0.8e-3 < start.std() < 1.2e-3


@pytest.mark.parametrize(
    "options", [{"channels": 6, "partial_channels": 4}, {"channels": 4, "partial_channels": 4}, {"cells": 2}]
)
def test_impossible_shapes_are_answered_in_one_line(options: dict[str, int]) -> None:
    with pytest.raises(UsageError) as caught:
        Supernet(parse_space("darts").operations, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [PLAIN, PARTIAL])
def test_recomputation_changes_no_bit(options: dict[str, int], backend: str) -> None:
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net, _ = pair("darts+sandglass", options is PARTIAL, backend, **options, **FEW)
        net.recompute = recompute
        loss = F.cross_entropy(net(x, mixing_of(net.alphas())), torch.arange(3))
        wanted = [*net.weights(), *net.alphas()]
        twice = torch.autograd.grad(loss, net.alphas(), retain_graph=True, allow_unused=True)
        found.append([loss, *(g for g in twice if g is not None), *gradients(loss, wanted), *net.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
