"""One operation an edge: the supernet against the textbook one with all other mixing weights at zero, in float64."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_sg.backends import accelerate, batched
from darts_sg.backends.batched import plain_tensors
from darts_sg.networks.supernet import Chosen, Mixing, Supernet, chosen_by
from tests.networks.test_supernet import EVERY, backend, mixing_of, pair, statistics
from tests.reference.transfer import assert_equal_tensors, gradients

__all__ = ["backend"]

SPACE = "none+sep_conv_3x3+dil_conv_3x3+sandglass_3x3+max_pool_3x3+skip_connect"


def draws(actual: Supernet, which: str) -> Chosen:
    """A random operation on each edge, or the same operation on all."""
    edges, operations = actual.alpha_normal.shape
    if which != "random":
        return Chosen([actual.operations.index(which)] * edges, [actual.operations.index(which)] * edges)
    generator = torch.Generator().manual_seed(edges)
    return Chosen(*torch.randint(operations, (2, edges), generator=generator).tolist())


def only(mixing: Mixing, chosen: Chosen) -> list[Tensor]:
    """The mixing weights with zeros for all operations but the chosen ones."""
    masks = [F.one_hot(torch.tensor(numbers), mixing.normal.shape[1]) for numbers in chosen]
    return [*(w * mask for w, mask in zip(mixing[:2], masks, strict=True)), *(b for b in mixing[2:] if b is not None)]


SMALL = {"channels": 4, "cells": 3, "num_classes": 3, "num_nodes": 2}
HALF = SMALL | {"partial_channels": 2}


@pytest.mark.parametrize(
    ("space", "size", "options", "which"),
    [
        (SPACE, (8, 8), SMALL, "random"),
        (SPACE, (8, 8), HALF, "random"),
        ("none+skip_connect", (9, 7), HALF, "none"),
        ("none+skip_connect", (9, 7), SMALL, "none"),
        ("max_pool_3x3+skip_connect", (9, 7), SMALL, "max_pool_3x3"),
        (EVERY, (9, 7), SMALL | {"num_nodes": 1}, "random"),
    ],
)
def test_chosen_operations_alone_give_what_all_give_with_other_weights_at_zero(
    space: str, size: tuple[int, int], options: dict[str, Any], which: str, backend: str
) -> None:
    actual, expected = pair(space, "partial_channels" in options, backend, **options)
    before = {name: buffer.clone() for name, buffer in plain_tensors(actual, "buffers").items()}
    chosen = draws(actual, which)
    alphas = [a.detach().clone().requires_grad_() for a in actual.alphas()]
    x = torch.randn(3, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    outputs = [actual(x, mixing_of(actual.alphas()), chosen), expected(x, *only(mixing_of(alphas), chosen))]
    assert_equal_tensors(outputs[:1], outputs[1:])
    losses = [F.cross_entropy(logits, torch.arange(3)) for logits in outputs]
    mine = dict(zip(actual.weights(), gradients(losses[0], actual.weights()), strict=True))
    by_edge = plain_tensors(actual, of=lambda weight: mine[weight])
    assert_equal_tensors(by_edge.values(), gradients(losses[1], expected.parameters()))
    assert_equal_tensors(gradients(losses[0], actual.alphas()), gradients(losses[1], alphas))
    # statistics: a chosen operation updates its own once, others keep theirs; pools may share them
    updated = dict(zip(before, statistics(expected), strict=True))
    choosable = [name for name in actual.operations if name != "none"]
    for name, buffer in plain_tensors(actual, "buffers").items():
        parts = name.split(".")
        if parts[2] != "edges":
            assert_equal_tensors([buffer], [updated[name]])
            continue
        cell, edge, column = (int(parts[i]) for i in (1, 3, 5))
        numbers = chosen.reduce if actual.cells[cell].reduction else chosen.normal
        if actual.operations[numbers[edge]] == choosable[column]:
            assert_equal_tensors([buffer], [updated[name]])
        elif "pool" not in choosable[column]:
            assert torch.equal(buffer, before[name])


def test_a_recomputed_pass_gives_the_same_bits_and_updates_statistics_once(backend: str) -> None:
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)  # for the classifier's bias
        net, _ = pair("sep_conv_3x3+max_pool_3x3+none", True, backend, **SMALL)
        net.recompute = recompute
        x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        loss = net(x, mixing_of(net.alphas()), draws(net, "random")).square().sum()
        found.append([loss, *gradients(loss, net.parameters()), *plain_tensors(net, "buffers").values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_operations_without_a_stacked_form_are_chosen_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "chain_of", lambda operation: None)
    actual, expected = pair(SPACE, True, "batched", **HALF)
    chosen, mixing = draws(actual, "random"), mixing_of(actual.alphas())
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    outputs = [actual(x, mixing, chosen), expected(x, *only(mixing, chosen))]
    assert_equal_tensors(outputs[:1], outputs[1:])
    by_alphas = [gradients(F.cross_entropy(logits, torch.arange(3)), actual.alphas()) for logits in outputs]
    assert_equal_tensors(*by_alphas)


def test_copies_and_other_backends_of_a_sampled_supernet_keep_their_own_weights(backend: str) -> None:
    actual, _ = pair("sep_conv_3x3+skip_connect+none", False, backend, channels=4, cells=3, num_nodes=1)
    mixing = Mixing(*(weights.detach() for weights in mixing_of(actual.alphas())[:2]))
    chosen, x = Chosen([0, 0], [1, 0]), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = actual(x, mixing, chosen)
    other = copy.deepcopy(actual)
    with torch.no_grad():
        for weight in other.weights():
            weight.zero_()
    assert torch.equal(actual(x, mixing, chosen), before)
    assert not torch.equal(other(x, mixing, chosen), before)
    accelerate(actual, "eager")
    torch.testing.assert_close(actual(x, mixing, chosen), before)


def test_the_choice_is_that_of_one_hot_mixing_weights() -> None:
    normal, reduce = torch.eye(4)[[3, 0, 2]], torch.eye(4)[[1, 1, 0]]
    assert chosen_by(Mixing(normal, reduce)) == Chosen([3, 0, 2], [1, 1, 0])
