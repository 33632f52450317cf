"""Every registered operation against the textbook, in float64; and drop path."""

import pytest
import torch
from torch import nn

from darts_sg.errors import UsageError
from darts_sg.ops import OPERATIONS
from darts_sg.ops.drop_path import drop_path
from tests.reference import textbook
from tests.reference.transfer import assert_equal_tensors, copy_tensors, gradients, randomize

SIZES = [(8, 8), (7, 7), (6, 9)]


def pair(name: str, C: int, stride: int, affine: bool) -> tuple[nn.Module, nn.Module]:
    """(the package's, the textbook's) operation in float64, with the same random weights and statistics."""
    expected = textbook.operation(name, C, stride, affine).double()
    randomize(expected, seed=1)
    actual = OPERATIONS[name].build(C, stride, affine).double()
    copy_tensors(actual.parameters(), expected.parameters())
    copy_tensors(actual.buffers(), expected.buffers())
    return actual, expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("C", [4, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if not OPERATIONS[name].is_random])
def test_operation_is_the_textbook_one(name: str, stride: int, C: int, size: tuple[int, int]) -> None:
    for affine in (False, True):
        actual, expected = pair(name, C, stride, affine)
        x = torch.randn(3, C, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        y, z = x.clone().requires_grad_(), x.clone().requires_grad_()
        for training in (True, False):
            out, wanted = actual.train(training)(y), expected.train(training)(z)
            assert out.shape == (3, C, -(-size[0] // stride), -(-size[1] // stride))
            assert_equal_tensors([out], [wanted])
            direction = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
            if name != "none":
                assert_equal_tensors(
                    gradients((out * direction).sum(), [y, *actual.parameters()]),
                    gradients((wanted * direction).sum(), [z, *expected.parameters()]),
                )
            assert_equal_tensors(actual.buffers(), expected.buffers())
        assert torch.equal(x, y), "the operation changed its input"


@pytest.mark.parametrize("name", OPERATIONS)
def test_only_batch_norm_has_affine_parameters_and_no_convolution_has_a_bias(name: str) -> None:
    for stride in (1, 2):
        with_affine, without = (OPERATIONS[name].build(8, stride, affine) for affine in (True, False))
        norms = [m for m in with_affine.modules() if isinstance(m, nn.BatchNorm2d)]
        extra = sum(2 * m.num_features for m in norms)
        filters = sum(m.weight.numel() for m in without.modules() if isinstance(m, nn.Conv2d))
        assert sum(p.numel() for p in without.parameters()) == filters
        assert sum(p.numel() for p in with_affine.parameters()) == filters + extra


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_chain_names_every_batch_norm_of_the_operation(name: str) -> None:
    """With stride 2, where skip_connect has one too; "twice" doubles what stands before it."""
    operation = OPERATIONS[name]
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in operation.build(8, 2, True).modules())
    assert operation.name == name
    assert operation.chain.count("BN") * (2 if "twice" in operation.chain else 1) == norms


@pytest.mark.parametrize(
    ("name", "k", "r"),
    [
        ("sandglass_3x3", 3, 2),
        ("sandglass_3x3_r4", 3, 4),
        ("sandglass_3x3_r6", 3, 6),
        ("sandglass_5x5", 5, 2),
    ],
)
@pytest.mark.parametrize("C", [16, 24, 36])
def test_sandglass_parameters_follow_the_formula(name: str, k: int, r: int, C: int) -> None:
    """Two depthwise k×k and two 1×1 around a bottleneck of C // r, which no rounding changes."""
    for stride in (1, 2):
        block = OPERATIONS[name].build(C, stride, False)
        assert sum(p.numel() for p in block.parameters()) == 2 * C * k * k + 2 * C * (C // r)


def test_sandglass_shortcut_carries_the_input_as_it_is() -> None:
    """With zero filters the block is the identity, negative values included; with stride 2 it is zero."""
    x = torch.randn(2, 8, 6, 6)
    for stride, expected in ((1, x), (2, torch.zeros(2, 8, 3, 3))):
        block = OPERATIONS["sandglass_3x3"].build(8, stride, False)
        for parameter in block.parameters():
            nn.init.zeros_(parameter)
        assert torch.equal(block(x), expected)


def test_average_pool_does_not_count_the_padding() -> None:
    ones = torch.ones(1, 4, 7, 7)
    for stride in (1, 2):
        assert OPERATIONS["avg_pool_3x3"].build(4, stride, False)(ones).eq(1).all()


def test_unknown_operation_is_answered_with_the_nearest_and_all_names() -> None:
    with pytest.raises(UsageError, match=r"sandglas_3x3.*did you mean 'sandglass_3x3'.*choices: .*none, "):
        OPERATIONS["sandglas_3x3"]


@pytest.mark.parametrize("prob", [0.2, 0.5, 0.9])
def test_drop_path_drops_whole_samples_and_keeps_the_mean(prob: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(20_000, 2, 3, dtype=torch.float64)
    before = x.clone()
    y = drop_path(x, prob)
    dropped = (y == 0).flatten(1).all(1)
    torch.testing.assert_close(y[~dropped], x[~dropped] / (1 - prob))
    deviation = (prob * (1 - prob) / len(x)) ** 0.5
    assert abs(dropped.double().mean().item() - prob) < 4 * deviation
    assert torch.equal(x, before)


def test_drop_path_is_repeatable_and_scales_gradients_as_values() -> None:
    x = torch.randn(16, 3, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    y = drop_path(x, 0.4)
    torch.manual_seed(5)
    assert torch.equal(y, drop_path(x, 0.4))
    (factor,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(factor * x, y)


def test_drop_path_of_probability_zero_is_the_identity() -> None:
    x = torch.randn(4, 3)
    assert torch.equal(drop_path(x, 0.0), x)
