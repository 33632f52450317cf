"""Copying and comparing what two modules hold, matched by the order in which it was registered."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

RELATIVE = 1e-10


def randomize(module: nn.Module, seed: int) -> None:
    """Draw all weights anew, BatchNorm's scales, shifts and running statistics included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                fan_in = layer.weight[0].numel()
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / fan_in**0.5)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.copy_(torch.randn(layer.running_mean.shape, generator=generator) / 4)
                layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.5)
                if layer.affine:
                    layer.weight.copy_(torch.rand(layer.weight.shape, generator=generator) + 0.5)
                    layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) / 4)


def copy_tensors(target: Iterable[Tensor], source: Iterable[Tensor]) -> None:
    """Copy one by one; AssertionError if the two do not hold tensors of the same shapes in the same order."""
    target, source = list(target), list(source)
    assert [t.shape for t in target] == [t.shape for t in source]
    with torch.no_grad():
        for t, s in zip(target, source, strict=True):
            t.copy_(s)


def assert_equal_tensors(actual: Iterable[Tensor], expected: Iterable[Tensor], relative: float = RELATIVE) -> None:
    """All tensors agree to `relative` of their own element, or of the largest element of them all."""
    actual, expected = list(actual), list(expected)
    assert [t.shape for t in actual] == [t.shape for t in expected]
    scale = max((float(t.detach().abs().max()) for t in expected if t.numel()), default=0.0)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=relative, atol=relative * scale, check_stride=False)


def gradients(loss: Tensor, tensors: Iterable[Tensor]) -> list[Tensor]:
    """Derivatives of a loss, zeros where it does not depend on a tensor."""
    return list(torch.autograd.grad(loss, list(tensors), retain_graph=True, materialize_grads=True))
