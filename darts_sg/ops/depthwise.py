"""Depthwise convolution whose weight gradient is fast for wide kernels, too."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NATIVE_WIDTH = 3  # up to this kernel width PyTorch's weight gradient on a CPU is as fast as its forward


class DepthwiseConv2d(nn.Conv2d):
    """k×k depthwise convolution without a bias, padded to keep the size at stride 1: (N, C, H, W) to (N, C, H', W')."""

    def __init__(self, C: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(C, C, kernel_size, stride, dilation * (kernel_size // 2), dilation, groups=C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == (1, 1) and self.dilation == (1, 1):
            return depthwise(x, self.weight)
        return super().forward(x)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, C, H, W) convolved with weight (C, 1, k, k), k odd, padded to the same size."""
    k = weight.shape[-1]
    if x.device.type == "cpu" and k > NATIVE_WIDTH and weight.requires_grad and torch.is_grad_enabled():
        return _WideDepthwise.apply(x, weight)
    return F.conv2d(x, weight, padding=k // 2, groups=x.shape[1])


class _WideDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        k = weight.shape[-1]
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            by_x = _backward(gradient, x, weight, (k // 2, k // 2), 0)
        if ctx.needs_input_grad[1]:
            by_weight = weight_gradient(x, gradient, k)
        return by_x, by_weight


def weight_gradient(x: Tensor, gradient: Tensor, k: int) -> Tensor:
    """The gradient (C, 1, k, k) of the weight of `depthwise`, from its input and the gradient of its output.

    The three middle columns of the kernel are those of a k×3 kernel, each other column is that of a k×1 kernel on an
    input that is shifted sideways. Together that takes a fifth to a half of the time of PyTorch's k×k on a CPU.
    """
    C, W = x.shape[1], x.shape[-1]
    columns = {0: _backward(gradient, x, x.new_empty(C, 1, k, 3), (k // 2, 1), 1)}
    for shift in range(2, k // 2 + 1):
        for sign in (-1, 1):
            column = x.new_empty(C, 1, k, 1)
            if shift < W:
                left, right = (0, W - shift), (shift, W - shift)
                seen, above = (left, right) if sign < 0 else (right, left)
                above_part, seen_part = _dense(gradient.narrow(3, *above)), _dense(x.narrow(3, *seen))
                columns[sign * shift] = _backward(above_part, seen_part, column, (k // 2, 0), 1)
            else:
                columns[sign * shift] = torch.zeros_like(column)
    return torch.cat([columns[i] for i in sorted(columns)], dim=3)


def _dense(x: Tensor) -> Tensor:
    last = x.stride(1) == 1
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], which: int) -> Tensor:
    """The gradient of the input (which = 0) or of the weight (which = 1) of a depthwise convolution of stride 1."""
    mask = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], list(padding), [1, 1], False, [0, 0], x.shape[1], mask
    )[which]
